"""Bindings and the requests for them, with the answers given (P1-S1.10, P1-S1.11)."""

from sqlalchemy import String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from cloud.db import Base


class BindingRow(Base):
    """One (device, vehicle) pair. `detect_id` "": no detection message is due. Times: UTC text, "" not yet."""

    __tablename__ = "binding"
    __table_args__ = (UniqueConstraint("device_id", "pev_id"),)

    binding_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    device_id: Mapped[str] = mapped_column(String(64))
    pev_id: Mapped[str] = mapped_column(String(17))
    premises_id: Mapped[str] = mapped_column(String(64))
    account_id: Mapped[str] = mapped_column(String(64))
    program: Mapped[str] = mapped_column(String(64))
    tariff_code: Mapped[str] = mapped_column(String(64))
    tariff_version: Mapped[str] = mapped_column(String(64))
    interval_s: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    request_id: Mapped[str] = mapped_column(String(32))
    confirmed_at: Mapped[str] = mapped_column(String(20))
    pev_acked_at: Mapped[str] = mapped_column(String(20), default="")
    set_up_at: Mapped[str] = mapped_column(String(20), default="")
    valid_until: Mapped[str] = mapped_column(String(20))
    detect_id: Mapped[str] = mapped_column(String(32), default="")
    eumd_reason: Mapped[str] = mapped_column(String(40), default="")


class BindRequestRow(Base):
    """A request and the answer it got, so that a repeated request gets the same answer. `reason` "": confirmed."""

    __tablename__ = "bind_request"

    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    body: Mapped[str] = mapped_column(Text)
    answer: Mapped[str] = mapped_column(Text)
    answered_at: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str] = mapped_column(String(40))
    session: Mapped[str] = mapped_column(String(32))
    binding_id: Mapped[str] = mapped_column(String(32), index=True)
    tariff_code: Mapped[str] = mapped_column(String(64))
    tariff_version: Mapped[str] = mapped_column(String(64))


class SentParamsRow(Base):
    """The premises' parameters as last sent to a device, so that a change is seen and sent (P1-F18)."""

    __tablename__ = "sent_params"

    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    params: Mapped[str] = mapped_column(String(300))
