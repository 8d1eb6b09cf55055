"""The bodies of journal records, and the chain that binds them (DESIGN section 2, Journal; P1-S3.1, P1-N1).

Each record's digest is SHA-256 over the previous digest and the canonical form of the record, so that nothing can be
taken out, put in or changed without a trace. The chain of an epoch starts at `ORIGIN`.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from esci.ids import PremisesId, UtcText
from esci.messages import ClockQuality, Count, Message, RecordItem, TariffRef, Wire
from esci.reasons import Reason
from esci.seal import canonical

ORIGIN = "0" * 64
Session = Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")]
Pev = Annotated[str, Field(pattern=r"^([A-HJ-NPR-Z0-9]{17})?$")]
Flag = Literal["gap", "jump", "restart", "clock-stepped", "clock-unsynced", "meter-reset", "energy-while-open"]


class JournalBegun(Wire):
    """First record of an epoch."""

    software: str
    premises: PremisesId


class SessionBegun(Wire):
    """A vehicle was plugged in (P1-S1.6). register_wh None: the meter is silent."""

    session: Session
    premises: PremisesId
    register_wh: Count | None


class SessionBound(Wire):
    """The binding is confirmed; intervals from here on carry it (P1-S2.6)."""

    session: Session
    binding: Session
    pev: Pev
    program: str
    tariff: TariffRef
    scenario: Literal["first", "again"]


class SessionUnbound(Wire):
    """Charging goes on (not when `charging` is false) without a binding, and why (P1-B4, F10). pev "" is unknown."""

    session: Session
    pev: Pev
    reason: Reason
    charging: bool


class Interval(Wire):
    """Energy between two register readings. Session "" is idle time. Registers telescope from record to record.

    `tariff` None: the premises' default tariff has not come yet. `rate_reason` says why the default rate applies.
    """

    session: Session
    binding: Session
    pev: Pev
    premises: PremisesId
    tariff: TariffRef | None
    rate_reason: Reason | None
    start: UtcText
    end: UtcText
    register_start_wh: Count
    register_end_wh: Count
    energy_wh: Count
    flags: Annotated[list[Flag], Field(max_length=8)]


class SessionEnded(Wire):
    """A vehicle left. energy_wh None: the session was unmetered (P1-B6), nothing is invented.

    `receipt_cents` is what the charger showed; `pending_wh` is energy that waits for the utility's decision.
    """

    session: Session
    reason: Reason
    energy_wh: Count | None
    pending_wh: Count
    receipt_cents: int | None
    unmetered: bool
    register_wh: Count | None


class Happening(Wire):
    """Something that an operator must be able to see later: faults, resets, gaps, clock steps."""

    code: Reason
    session: Session
    detail: Annotated[dict[str, str | int | None], Field(max_length=16)]


BODIES: dict[str, type[Wire]] = {
    "journal.begun": JournalBegun,
    "session.begun": SessionBegun,
    "session.bound": SessionBound,
    "session.unbound": SessionUnbound,
    "interval": Interval,
    "session.ended": SessionEnded,
    "event": Happening,
}


def digest(prev: str, epoch: int, seq: int, item: RecordItem) -> str:
    """The chain's next digest: 64 hex digits."""
    return raw_digest(prev, epoch, seq, item.kind, item.at, item.clock, item.body)


def raw_digest(
    prev: str, epoch: int, seq: int, kind: str, at: str, clock: ClockQuality, body: dict[str, object]
) -> str:
    """As `digest`, from the parts, for a journal that has no models at hand."""
    data = canonical({"epoch": epoch, "seq": seq, "kind": kind, "at": at, "clock": clock, "body": body})
    return hashlib.sha256(prev.encode() + data).hexdigest()


def stored_digest(prev: str, epoch: int, seq: int, kind: str, at: str, clock: str, body_text: str) -> str:
    """As `raw_digest`, from a body that is stored as its canonical text: nothing is parsed and written again.

    kind, at and clock must need no escapes, as their models say; another text simply gives another digest.
    """
    text = f'{{"at":"{at}","body":{body_text},"clock":"{clock}","epoch":{epoch},"kind":"{kind}","seq":{seq}}}'
    return hashlib.sha256(prev.encode() + text.encode()).hexdigest()


def item_text(kind: str, at: str, clock: str, body_text: str) -> str:
    """The canonical text of a RecordItem, from its body's canonical text."""
    return f'{{"at":"{at}","body":{body_text},"clock":"{clock}","kind":"{kind}"}}'


def batch_text(head: Message, epoch: int, first_seq: int, prev: str, items: Sequence[str]) -> bytes:
    """The canonical form of a `Records` message, from its records' canonical texts (`item_text`)."""
    records = ",".join(items)
    return (f'{{"at":"{head.at}","device":"{head.device}","epoch":{epoch},"first_seq":{first_seq},"id":"{head.id}",'
            f'"kind":"records","prev":"{prev}","records":[{records}]}}').encode()


def doubt(interval: Interval) -> Reason | None:
    """Why a person must decide about an interval's energy before it is billed; None when it can be rated at once.

    Charger and utility share this rule, so that receipt and bill leave out the same energy (DESIGN section 2, Offline).
    """
    if interval.energy_wh == 0:
        return None
    if interval.end <= interval.start:
        return Reason.CLOCK_STEPPED
    if "clock-unsynced" in interval.flags:
        return Reason.CLOCK_UNSYNCED
    if "jump" in interval.flags:
        return Reason.METER_JUMP
    if "gap" in interval.flags:
        return Reason.METERING_GAP
    return Reason.UNKNOWN_TARIFF if interval.tariff is None else None
