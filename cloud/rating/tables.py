"""Running totals of rated energy, and which tariff versions each device holds (P1-S3.3, P1-F18)."""

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from cloud.db import Base


class RunningTotalRow(Base):
    """The exact sum, in nano-USD, of what is rounded together: a session, or a month of idle time."""

    __tablename__ = "running_total"

    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    running_nano_usd: Mapped[int] = mapped_column(BigInteger)


class HeldTariffRow(Base):
    """A tariff version that a device has said it holds, or that was sent to it since."""

    __tablename__ = "held_tariff"

    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    code: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[str] = mapped_column(String(64), primary_key=True)
