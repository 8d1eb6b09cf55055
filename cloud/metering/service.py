"""Takes in journal records exactly once, and answers what has come in. It never commits (P1-S3.1, P1-S3.2, P1-N1).

The key of a record is (device, epoch, seq). A repeated record changes nothing; one with other content never overwrites.
"""

import hashlib
from dataclasses import dataclass

from sqlalchemy.orm import Session

from cloud.enrolment.core import Premises
from cloud.metering import records, store
from cloud.metering.core import (
    DeviceEnergy,
    ExceptionView,
    IntervalView,
    NoticeView,
    Refused,
    RefusedView,
    SessionView,
    examine,
    ordered,
)
from cloud.metering.intake import Intake, Source
from cloud.metering.tables import ExceptionRow, IntervalRow, MeterRow, NoticeRow, RefusedMessageRow, SessionRow
from cloud.rating.service import Catalogue
from esci.messages import Records
from esci.reasons import Reason

KEPT_BYTES = 65_536
KEPT_MESSAGES = 10_000
_OVERFLOW = "0" * 64


@dataclass(frozen=True, slots=True)
class Received:
    """What became of a batch: the epoch's last committed seq, how many records were new, and why none was, if so."""

    seq: int
    new: int
    refused: Reason | None


def accept(session: Session, batch: Records, premises: Premises, catalogue: Catalogue, now: str) -> Received:
    """Take what is new of the batch; each interval is posted or goes to the exception queue."""
    stream = store.stream(session, batch.device, batch.epoch)
    before = range(max(1, batch.first_seq - 1), min(batch.first_seq + len(batch.records), stream.next_seq))
    found = examine(batch, stream, store.stored(session, batch.device, batch.epoch, before))
    if isinstance(found, Refused):
        key = f"{found.reason}:{batch.device}:{batch.epoch}:{found.seq}:{_short_digest(batch)}"
        place = (batch.device, batch.epoch, found.seq)
        store.add_exceptions(session, [ExceptionView(key, *place, found.reason.value, found.detail, None, now)])
        return Received(stream.next_seq - 1, 0, found.reason)
    if found.records:
        store.append(session, batch.device, batch.epoch, found.records)
        with session.no_autoflush:  # what is read below was not changed by this transaction
            intake = Intake(session, Source(batch.device, batch.epoch, now), premises, catalogue)
            for record in found.records:
                records.take(intake, record)
            intake.write()
    return Received(stream.next_seq - 1 + len(found.records), len(found.records), None)


def last_seq(session: Session, device_id: str, epoch: int) -> int:
    """The last seq of the epoch up to which everything is here; 0 when nothing is."""
    return store.stream(session, device_id, epoch).next_seq - 1


def keep_refused(session: Session, topic: str, payload: bytes, why: tuple[str, str], now: str) -> None:
    """Keep a refused message and (reason, detail), its payload up to 64 KiB; the same one again only counts.

    Beyond KEPT_MESSAGES different ones the first that finds no room is kept and counts for all that follow.
    """
    digest = hashlib.sha256(topic.encode(errors="replace") + b"\n" + payload).hexdigest()
    row = store.refused(session, digest)
    if row is None and store.refused_count(session) >= KEPT_MESSAGES:
        digest = _OVERFLOW
        row = store.refused(session, digest)
    if row is not None:
        row.times, row.last_at = row.times + 1, now
        return
    reason, detail = why
    row = RefusedMessageRow(
        digest=digest,
        topic=_printable(topic),
        payload=payload[:KEPT_BYTES],
        reason=reason,
        detail=_printable(detail),
        first_at=now,
        last_at=now,
        times=1,
    )
    store.add(session, row)


def exceptions(session: Session) -> tuple[ExceptionView, ...]:
    """The exception queue, oldest first."""
    views = [
        ExceptionView(row.key, row.device_id, row.epoch, row.seq, row.reason, row.detail, row.energy_wh, row.at)
        for row in store.every(session, ExceptionRow)
    ]
    return tuple(sorted(views, key=lambda view: (view.at, view.key)))


def refused_messages(session: Session) -> tuple[RefusedView, ...]:
    """Every refused message, oldest first."""
    rows = store.every(session, RefusedMessageRow)
    views = [RefusedView(row.topic, row.reason, row.detail, row.first_at, row.times) for row in rows]
    return tuple(sorted(views, key=lambda view: (view.first_at, view.topic)))


def notices(session: Session) -> tuple[NoticeView, ...]:
    """What accounts must be told, oldest first."""
    rows = store.every(session, NoticeRow)
    views = [NoticeView(row.account_id, row.premises_id, row.session, row.text, row.at) for row in rows]
    return tuple(sorted(views, key=lambda view: (view.at, view.session)))


def intervals(session: Session, premises_id: str) -> tuple[IntervalView, ...]:
    """Every interval at the premises, in order of time."""
    return ordered([_interval_view(row) for row in store.intervals(session, premises_id)])


def sessions(session: Session, premises_id: str) -> tuple[SessionView, ...]:
    """Every session at the premises, in order of beginning."""
    return tuple(_session_view(row) for row in store.sessions(session, premises_id))


def device_energies(session: Session) -> tuple[DeviceEnergy, ...]:
    """For each device all energy in its intervals, by outcome, and what its register says."""
    sums = store.energies(session)
    deltas = {row.device_id: _delta_wh(row) for row in store.every(session, MeterRow)}
    return tuple(
        DeviceEnergy(
            device_id,
            sum(outcomes.values()),
            outcomes.get("posted", 0),
            outcomes.get("exception", 0),
            deltas.get(device_id),
        )
        for device_id, outcomes in sorted(sums.items())
    )


def _delta_wh(row: MeterRow) -> int | None:
    return None if row.register_last_wh is None or row.resets else row.register_last_wh - row.register_first_wh


def _short_digest(batch: Records) -> str:
    return hashlib.sha256(batch.model_dump_json(include={"first_seq", "prev", "records"}).encode()).hexdigest()[:32]


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "�" for letter in text)[:300]


def _interval_view(row: IntervalRow) -> IntervalView:
    return IntervalView(
        row.device_id,
        row.epoch,
        row.seq,
        row.session,
        row.premises_id,
        row.pev_id,
        row.account_id,
        row.start,
        row.end,
        row.energy_wh,
        row.outcome,
        row.reason,
        row.rate_reason,
        row.tariff_code,
        row.tariff_version,
        row.period,
        row.price_micro_usd_per_kwh,
        row.amount_cents,
    )


def _session_view(row: SessionRow) -> SessionView:
    return SessionView(
        row.device_id,
        row.session,
        row.premises_id,
        row.pev_id,
        row.binding_id,
        row.begun_at,
        row.ended_at,
        row.reason,
        row.energy_wh,
        row.pending_wh,
        row.receipt_cents,
        row.unmetered,
        row.unbound_reason,
    )
