"""Every query on journals, intervals, sessions and the exception queue. Imported by cloud.metering only."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar, cast

from sqlalchemy import Table, func, insert, select
from sqlalchemy.orm import Session

from cloud.db import Base
from cloud.metering.core import ExceptionView, IntervalView, NewRecord, Stream
from cloud.metering.tables import (
    ExceptionRow,
    IntervalRow,
    MeterRow,
    RecordRow,
    RefusedMessageRow,
    SessionRow,
    StreamRow,
)
from esci.messages import RecordItem
from esci.seal import load

Row = TypeVar("Row", bound=Base)
_RECORDS = cast(Table, RecordRow.__table__)
_INTERVALS = cast(Table, IntervalRow.__table__)
_EXCEPTIONS = cast(Table, ExceptionRow.__table__)


def stream(session: Session, device_id: str, epoch: int) -> Stream:
    """Where the epoch stands, locked for this transaction; a new epoch stands at its beginning."""
    row = session.get(StreamRow, (device_id, epoch), with_for_update=True)
    return Stream() if row is None else Stream(row.next_seq, row.digest)


def stored(session: Session, device_id: str, epoch: int, seqs: range) -> Mapping[int, tuple[RecordItem, str]]:
    """Records that came before, with their digests, by seq."""
    query = select(RecordRow).where(
        RecordRow.device_id == device_id,
        RecordRow.epoch == epoch,
        RecordRow.seq >= seqs.start,
        RecordRow.seq < seqs.stop,
    )
    return {row.seq: (_item(row), row.digest) for row in session.scalars(query)}


def append(session: Session, device_id: str, epoch: int, records: Sequence[NewRecord]) -> None:
    """Write the records as they came and move the epoch on. The primary key refuses one that is there."""
    rows = [
        {
            "device_id": device_id,
            "epoch": epoch,
            "seq": record.seq,
            "kind": record.item.kind,
            "at": record.item.at,
            "clock": record.item.clock,
            "body": record.body,
            "digest": record.digest,
        }
        for record in records
    ]
    session.execute(insert(_RECORDS), rows)
    last = records[-1]
    session.merge(StreamRow(device_id=device_id, epoch=epoch, next_seq=last.seq + 1, digest=last.digest))
    session.flush()


def add_intervals(session: Session, intervals: Sequence[IntervalView]) -> None:
    """Write new intervals, each with its one outcome. The primary key refuses one that is there."""
    rows = [
        {
            "device_id": found.device_id,
            "epoch": found.epoch,
            "seq": found.seq,
            "session": found.session,
            "premises_id": found.premises_id,
            "pev_id": found.pev_id,
            "account_id": found.account_id,
            "start": found.start,
            "end": found.end,
            "energy_wh": found.energy_wh,
            "rate_reason": found.rate_reason,
            "outcome": found.outcome,
            "reason": found.reason,
            "tariff_code": found.tariff_code,
            "tariff_version": found.tariff_version,
            "period": found.period,
            "price_micro_usd_per_kwh": found.price_micro_usd_per_kwh,
            "amount_cents": found.cents,
        }
        for found in intervals
    ]
    if rows:
        session.execute(insert(_INTERVALS), rows)


def add_exceptions(session: Session, exceptions: Sequence[ExceptionView]) -> None:
    """Write those whose key is not there; the first under a key stands."""
    first: dict[str, ExceptionView] = {}
    for found in exceptions:
        first.setdefault(found.key, found)
    if not first:
        return
    there = frozenset(session.scalars(select(ExceptionRow.key).where(ExceptionRow.key.in_(first))))
    rows = [asdict(found) for key, found in first.items() if key not in there]
    if rows:
        session.execute(insert(_EXCEPTIONS), rows)


def add_once(session: Session, row: Base, key: str) -> None:
    """Write a row whose text key is its primary key, unless it is there."""
    if session.get(type(row), key) is None:
        session.add(row)
        session.flush()


def add(session: Session, row: Base) -> None:
    """Write a new row."""
    session.add(row)
    session.flush()


def meter(session: Session, device_id: str) -> MeterRow | None:
    """The device's register; None before its first interval."""
    return session.get(MeterRow, device_id, with_for_update=True)


def charging_session(session: Session, device_id: str, session_id: str) -> SessionRow | None:
    """The session; None before its first record."""
    return session.get(SessionRow, (device_id, session_id))


def new_charging_session(session: Session, device_id: str, session_id: str, premises_id: str) -> SessionRow:
    """A session of which nothing more is known, written with the next flush."""
    row = SessionRow(
        device_id=device_id,
        session=session_id,
        premises_id=premises_id,
        pev_id="",
        binding_id="",
        begun_at="",
        ended_at="",
        reason="",
        unmetered=False,
        unbound_reason="",
    )
    session.add(row)
    return row


def refused(session: Session, digest: str) -> RefusedMessageRow | None:
    """The refused message of that digest."""
    return session.get(RefusedMessageRow, digest, with_for_update=True)


def refused_count(session: Session) -> int:
    """How many different refused messages are kept."""
    return int(session.scalar(select(func.count()).select_from(RefusedMessageRow)) or 0)


def posted_cents(session: Session, device_id: str, session_id: str) -> int:
    """Cents of the session's posted intervals."""
    query = select(func.coalesce(func.sum(IntervalRow.amount_cents), 0))
    query = query.where(IntervalRow.device_id == device_id, IntervalRow.session == session_id)
    return int(session.scalar(query) or 0)


def intervals(session: Session, premises_id: str) -> Sequence[IntervalRow]:
    """Every interval at the premises."""
    return session.scalars(select(IntervalRow).where(IntervalRow.premises_id == premises_id)).all()


def sessions(session: Session, premises_id: str) -> Sequence[SessionRow]:
    """Every session at the premises, in order of beginning."""
    query = select(SessionRow).where(SessionRow.premises_id == premises_id)
    return session.scalars(query.order_by(SessionRow.begun_at, SessionRow.session)).all()


def every(session: Session, kind: type[Row]) -> Sequence[Row]:
    """All rows of a table."""
    return session.scalars(select(kind)).all()


def energies(session: Session) -> dict[str, dict[str, int]]:
    """Watt-hours of all intervals, by device and outcome."""
    query = select(IntervalRow.device_id, IntervalRow.outcome, func.sum(IntervalRow.energy_wh))
    found: dict[str, dict[str, int]] = {}
    for device_id, outcome, energy in session.execute(query.group_by(IntervalRow.device_id, IntervalRow.outcome)):
        found.setdefault(device_id, {})[outcome] = int(energy)
    return found


def _item(row: RecordRow) -> RecordItem:
    return RecordItem.model_validate(
        {"kind": row.kind, "at": row.at, "clock": row.clock, "body": load(row.body.encode())}
    )
