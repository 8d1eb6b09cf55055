"""Journals as received, intervals with their one outcome, sessions, and the exception queue (P1-S3.1, P1-S3.2)."""

from sqlalchemy import BigInteger, CheckConstraint, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from cloud.db import Base


class StreamRow(Base):
    """One epoch of a device's journal: the seq expected next, and the chain digest before it."""

    __tablename__ = "stream"

    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    epoch: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    next_seq: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str] = mapped_column(String(64))


class RecordRow(Base):
    """One record as it came, whatever it says."""

    __tablename__ = "record"

    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    epoch: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(32))
    at: Mapped[str] = mapped_column(String(20))
    clock: Mapped[str] = mapped_column(String(8))
    body: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))


class MeterRow(Base):
    """A device's register. last None: it was reset, and goes on from any value."""

    __tablename__ = "meter"

    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    register_first_wh: Mapped[int] = mapped_column(BigInteger)
    register_last_wh: Mapped[int | None] = mapped_column(BigInteger)
    resets: Mapped[int] = mapped_column(default=0)


class IntervalRow(Base):
    """One interval. Posted ones carry price and amount; those in the exception queue carry the reason."""

    __tablename__ = "metered_interval"
    __table_args__ = (
        CheckConstraint(
            "(outcome = 'posted' AND reason = '' AND amount_cents IS NOT NULL)"
            " OR (outcome = 'exception' AND reason <> '' AND amount_cents IS NULL)",
            name="interval_one_outcome",
        ),
        CheckConstraint("energy_wh >= 0", name="interval_energy_not_negative"),
    )

    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    epoch: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    session: Mapped[str] = mapped_column(String(32), index=True)
    premises_id: Mapped[str] = mapped_column(String(64), index=True)
    pev_id: Mapped[str] = mapped_column(String(17))
    account_id: Mapped[str] = mapped_column(String(64))
    start: Mapped[str] = mapped_column(String(20))
    end: Mapped[str] = mapped_column(String(20))
    energy_wh: Mapped[int] = mapped_column(BigInteger)
    rate_reason: Mapped[str] = mapped_column(String(40))
    outcome: Mapped[str] = mapped_column(String(10))
    reason: Mapped[str] = mapped_column(String(40))
    tariff_code: Mapped[str] = mapped_column(String(64))
    tariff_version: Mapped[str] = mapped_column(String(64))
    period: Mapped[str | None] = mapped_column(String(64))
    price_micro_usd_per_kwh: Mapped[int | None] = mapped_column(BigInteger)
    amount_cents: Mapped[int | None] = mapped_column(BigInteger)


class SessionRow(Base):
    """One plug-in, as its records tell it. "" is not known or not yet."""

    __tablename__ = "charging_session"

    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    session: Mapped[str] = mapped_column(String(32), primary_key=True)
    premises_id: Mapped[str] = mapped_column(String(64), index=True)
    pev_id: Mapped[str] = mapped_column(String(17), default="")
    binding_id: Mapped[str] = mapped_column(String(32), default="")
    begun_at: Mapped[str] = mapped_column(String(20), default="")
    ended_at: Mapped[str] = mapped_column(String(20), default="")
    reason: Mapped[str] = mapped_column(String(40), default="")
    energy_wh: Mapped[int | None] = mapped_column(BigInteger)
    pending_wh: Mapped[int | None] = mapped_column(BigInteger)
    receipt_cents: Mapped[int | None] = mapped_column(BigInteger)
    unmetered: Mapped[bool] = mapped_column(default=False)
    unbound_reason: Mapped[str] = mapped_column(String(40), default="")


class ExceptionRow(Base):
    """One entry of the exception queue; the key keeps a repeated cause from filling it."""

    __tablename__ = "exception_item"

    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    device_id: Mapped[str] = mapped_column(String(64))
    epoch: Mapped[int] = mapped_column(BigInteger)
    seq: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(String(40))
    detail: Mapped[str] = mapped_column(String(300))
    energy_wh: Mapped[int | None] = mapped_column(BigInteger)
    at: Mapped[str] = mapped_column(String(20))


class NoticeRow(Base):
    """Something that the premises' account must be told, once."""

    __tablename__ = "notice"

    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    account_id: Mapped[str] = mapped_column(String(64), index=True)
    premises_id: Mapped[str] = mapped_column(String(64))
    session: Mapped[str] = mapped_column(String(32))
    text: Mapped[str] = mapped_column(String(300))
    at: Mapped[str] = mapped_column(String(20))


class RefusedMessageRow(Base):
    """A message that was refused, kept for an operator; the same one again only counts."""

    __tablename__ = "refused_message"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    topic: Mapped[str] = mapped_column(String(300))
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    reason: Mapped[str] = mapped_column(String(40))
    detail: Mapped[str] = mapped_column(String(300))
    first_at: Mapped[str] = mapped_column(String(20))
    last_at: Mapped[str] = mapped_column(String(20))
    times: Mapped[int]
