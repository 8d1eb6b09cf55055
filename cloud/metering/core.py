"""Judges batches of journal records and single intervals. Pure (P1-S3.1, P1-S3.2, P1-N1).

A batch is taken whole, in part or not at all; an interval has one outcome: charged to an account, or the exception
queue with its reason. In doubt about money: exception queue. It must not rate, query or post.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cloud.binding.core import Bound
from cloud.enrolment.core import Premises
from esci.messages import RecordItem, Records
from esci.reasons import SENTENCES, Reason
from esci.records import ORIGIN, Interval, digest, doubt
from esci.seal import canonical
from esci.units import REGISTER_LIMIT_WH, parse_utc

LONGEST_S = 31 * 86_400
POWER_LIMIT_W = 1_000_000  # no charger of ours carries a megawatt


@dataclass(frozen=True, slots=True)
class Stream:
    """Where one epoch of a device's journal stands here: the seq expected next and the digest before it."""

    next_seq: int = 1
    digest: str = ORIGIN


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A record that follows from the one before it, and the canonical text of its body."""

    seq: int
    item: RecordItem
    body: str
    digest: str


@dataclass(frozen=True, slots=True)
class Taken:
    """The new records of a batch; none when all had come before, or when some are missing in between."""

    records: tuple[NewRecord, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing new is taken. The record it shows in, and why: CONFLICT or CHAIN_BROKEN."""

    reason: Reason
    seq: int
    detail: str


def examine(batch: Records, stream: Stream, stored: Mapping[int, tuple[RecordItem, str]]) -> Taken | Refused:
    """What to take of a batch. `stored`: records with their digests from `first_seq - 1` on that came before."""
    if batch.first_seq > stream.next_seq:
        return Taken(())  # a gap: the ack says what is missing, the device sends again
    before = stored[batch.first_seq - 1][1] if batch.first_seq > 1 else ORIGIN
    if batch.prev != before:
        return Refused(Reason.CHAIN_BROKEN, batch.first_seq, "the batch does not follow from the record before it")
    for seq, item in enumerate(batch.records, batch.first_seq):
        if seq < stream.next_seq and stored[seq][0] != item:
            return Refused(Reason.CONFLICT, seq, "the record came again with other content; the first one stands")
    found: list[NewRecord] = []
    link = stream.digest
    for item in batch.records[max(0, stream.next_seq - batch.first_seq):]:
        seq = stream.next_seq + len(found)
        link = digest(link, batch.epoch, seq, item)
        found.append(NewRecord(seq, item, canonical(item.body).decode(), link))
    return Taken(tuple(found))


@dataclass(frozen=True, slots=True)
class Span:
    """An interval's times, checked."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the utility knows when it judges an interval. last_register_wh None: nothing to compare with."""

    device_id: str
    premises: Premises
    binding: Bound | None
    last_register_wh: int | None


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why an interval goes to the exception queue, and a sentence for the operator."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Payer:
    """Who is charged: the bound vehicle's account, else the premises'."""

    account_id: str


def span(interval: Interval) -> Span | None:
    """The checked times; None when they are no times, run backwards, or the registers are beyond any meter's."""
    try:
        start, end = parse_utc(interval.start), parse_utc(interval.end)
    except ValueError:
        return None
    if not 2000 <= start.year <= end.year <= 2999 or end < start:
        return None
    if max(interval.register_start_wh, interval.register_end_wh, interval.energy_wh) > REGISTER_LIMIT_WH:
        return None
    return Span(start, end)


def judge(interval: Interval, when: Span, known: Circumstances) -> Payer | Doubt:
    """Who pays for the interval, or the first doubt about it (P1-S3.2, P1-B4)."""
    if interval.premises != known.premises.premises_id:
        return Doubt(Reason.PREMISES_MISMATCH, f"the record says {interval.premises}")
    wrong = _doubt_register(interval, known.last_register_wh)
    if wrong is not None:
        return wrong
    if interval.energy_wh == 0:
        return Payer(known.premises.account_id)  # no energy, no money, no doubt
    return _doubt_time(interval, when) or _payer(interval, known)


def _doubt_register(interval: Interval, last_register_wh: int | None) -> Doubt | None:
    start_wh, end_wh = interval.register_start_wh, interval.register_end_wh
    if end_wh < start_wh:
        return Doubt(Reason.METER_RESET, f"register {start_wh} to {end_wh} Wh")
    if interval.energy_wh != end_wh - start_wh:
        return Doubt(Reason.BODY_INVALID, f"{interval.energy_wh} Wh is not register {start_wh} to {end_wh} Wh")
    if last_register_wh not in (None, start_wh) and "meter-reset" not in interval.flags:
        return Doubt(Reason.REGISTER_DISCONTINUOUS, f"begins at {start_wh} Wh, not {last_register_wh} Wh")
    return None


def _doubt_time(interval: Interval, when: Span) -> Doubt | None:
    """The rule that charger and utility share, and what no sound charger sends."""
    reason = doubt(interval)
    if reason is not None:
        return Doubt(reason, SENTENCES[reason])
    length_s = int((when.end - when.start).total_seconds())
    if length_s == 0:
        return Doubt(Reason.CLOCK_STEPPED, "the interval has energy but no length")
    if interval.energy_wh * 3600 > POWER_LIMIT_W * length_s:
        return Doubt(Reason.METER_JUMP, f"{interval.energy_wh} Wh in {length_s} s")
    if length_s > LONGEST_S:
        return Doubt(Reason.METERING_GAP, f"{length_s} s without a reading")
    return None


def _payer(interval: Interval, known: Circumstances) -> Payer | Doubt:
    if interval.tariff is None:
        return Doubt(Reason.UNKNOWN_TARIFF, "the charger had no tariff")
    tariff = (interval.tariff.code, interval.tariff.version)
    if not interval.binding:
        if interval.tariff.code != known.premises.default_plan:
            return Doubt(Reason.UNKNOWN_TARIFF, f"{tariff[0]} is not the premises' default plan")
        return Payer(known.premises.account_id)
    bound = known.binding
    if bound is None or bound.device_id != known.device_id or bound.pev_id != interval.pev or not interval.session:
        return Doubt(Reason.UNKNOWN_BINDING, f"binding {interval.binding}")
    if tariff not in bound.tariffs:
        return Doubt(Reason.UNKNOWN_TARIFF, f"{tariff[0]} {tariff[1]} was not confirmed for this binding")
    return Payer(bound.account_id)


def running_key(device_id: str, session: str, local_month: str) -> str:
    """What is rounded together: one session, or one device's idle time in a month (`2025-07`) of its premises."""
    return f"session:{device_id}:{session}" if session else f"idle:{device_id}:{local_month}"


@dataclass(frozen=True, slots=True)
class IntervalView:
    """One interval and its one outcome. `cents`, `period` and price are None while it is in the exception queue."""

    device_id: str
    epoch: int
    seq: int
    session: str
    premises_id: str
    pev_id: str
    account_id: str
    start: str
    end: str
    energy_wh: int
    outcome: str
    reason: str
    rate_reason: str
    tariff_code: str
    tariff_version: str
    period: str | None
    price_micro_usd_per_kwh: int | None
    cents: int | None


@dataclass(frozen=True, slots=True)
class SessionView:
    """One session as its records tell it. None: not known, or not yet."""

    device_id: str
    session: str
    premises_id: str
    pev_id: str
    binding_id: str
    begun_at: str
    ended_at: str
    reason: str
    energy_wh: int | None
    pending_wh: int | None
    receipt_cents: int | None
    unmetered: bool
    unbound_reason: str


@dataclass(frozen=True, slots=True)
class ExceptionView:
    """One entry of the exception queue. energy_wh None: it cannot be known, or it is not about energy."""

    key: str
    device_id: str
    epoch: int
    seq: int
    reason: str
    detail: str
    energy_wh: int | None
    at: str


@dataclass(frozen=True, slots=True)
class DeviceEnergy:
    """All interval energy of a device. register_delta_wh None: no interval yet, or the register was reset."""

    device_id: str
    metered_wh: int
    posted_wh: int
    exception_wh: int
    register_delta_wh: int | None


@dataclass(frozen=True, slots=True)
class NoticeView:
    """Something that an account must be told."""

    account_id: str
    premises_id: str
    session: str
    text: str
    at: str


@dataclass(frozen=True, slots=True)
class RefusedView:
    """A message that was refused; `times` it came."""

    topic: str
    reason: str
    detail: str
    first_at: str
    times: int


def ordered(views: Sequence[IntervalView]) -> tuple[IntervalView, ...]:
    """By time, then by place in the journal."""
    return tuple(sorted(views, key=lambda view: (view.start, view.epoch, view.seq)))
