"""Decides whether a vehicle may bind, and what each message does to a binding. Pure (P1-S1.10, S1.13, S1.16, S2.5).

A binding belongs to one (device, vehicle) pair and keeps its id. It must not know tables or messages.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from cloud.enrolment.core import Account, Device, Pev, Premises
from esci.reasons import Reason

STALE_AFTER = timedelta(seconds=300)
ANSWER_LIFE = timedelta(seconds=300)
BINDING_LIFE = timedelta(hours=24)

Scenario = Literal["first", "again"]


class State(StrEnum):
    """How far the set-up of a binding has come."""

    CONFIRMED = "confirmed"  # P1-S1.11: the utility said yes
    PEV_ACKED = "pev-acked"  # P1-S1.13: the vehicle has set its parameters; the binding is bound
    SET_UP = "set-up"  # P1-S1.16: the measurement device has, too


class Event(StrEnum):
    """What can happen to a binding."""

    CONFIRMED_FIRST = "confirmed-first"
    CONFIRMED_AGAIN = "confirmed-again"
    PEV_ACK = "pev-ack"
    EUMD_APPLIED = "eumd-applied"
    EUMD_REFUSED = "eumd-refused"
    CHANGED = "changed"


class Step(StrEnum):
    """What becomes of an event that moves nothing."""

    LATE = "late"  # harmless: it came again, or after it was needed
    IMPOSSIBLE = "impossible"  # only a wrong or hostile sender does this: refused and kept


TRANSITIONS: dict[tuple[State, Event], State | Step] = {
    (State.CONFIRMED, Event.CONFIRMED_FIRST): State.CONFIRMED,  # P1-S1.11: plugged in anew before the ack came
    (State.CONFIRMED, Event.CONFIRMED_AGAIN): Step.IMPOSSIBLE,
    (State.CONFIRMED, Event.PEV_ACK): State.PEV_ACKED,  # P1-S1.13
    (State.CONFIRMED, Event.EUMD_APPLIED): Step.IMPOSSIBLE,  # no detection message was sent yet
    (State.CONFIRMED, Event.EUMD_REFUSED): Step.IMPOSSIBLE,
    (State.CONFIRMED, Event.CHANGED): State.CONFIRMED,  # the detection message, still to come, will say it
    (State.PEV_ACKED, Event.CONFIRMED_FIRST): State.CONFIRMED,  # set-up begins anew
    (State.PEV_ACKED, Event.CONFIRMED_AGAIN): Step.IMPOSSIBLE,
    (State.PEV_ACKED, Event.PEV_ACK): Step.LATE,  # P1-S1.13: the ack is retried; the detection is sent again
    (State.PEV_ACKED, Event.EUMD_APPLIED): State.SET_UP,  # P1-S1.16
    (State.PEV_ACKED, Event.EUMD_REFUSED): State.PEV_ACKED,  # P1-S1.15: the reason is kept
    (State.PEV_ACKED, Event.CHANGED): State.PEV_ACKED,  # P1-F24: a new detection message
    (State.SET_UP, Event.CONFIRMED_FIRST): State.CONFIRMED,  # the charger or the vehicle has lost its parameters
    (State.SET_UP, Event.CONFIRMED_AGAIN): State.SET_UP,  # P1-S2.6
    (State.SET_UP, Event.PEV_ACK): Step.LATE,
    (State.SET_UP, Event.EUMD_APPLIED): Step.LATE,
    (State.SET_UP, Event.EUMD_REFUSED): Step.LATE,
    (State.SET_UP, Event.CHANGED): State.PEV_ACKED,  # P1-F18, F24: set up again once the new one is acknowledged
}


@dataclass(frozen=True, slots=True)
class Case:
    """All that a decision needs. None: not known here. `age` is None when the charger's clock was not set."""

    device: Device | None
    asked_premises_id: str
    premises: Premises | None
    premises_account: Account | None
    pev: Pev | None
    pev_account: Account | None
    plan_in_force: bool
    age: timedelta | None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The vehicle may charge here on its program."""

    premises: Premises
    pev: Pev


@dataclass(frozen=True, slots=True)
class Refused:
    """Why not."""

    reason: Reason


def decide(case: Case) -> Accepted | Refused:
    """The first reason against the binding, or Accepted (P1-S1.10, P1-S2.5)."""
    if case.device is None:
        return Refused(Reason.UNKNOWN_DEVICE)
    if case.device.revoked:
        return Refused(Reason.DEVICE_REVOKED)
    if case.age is not None and abs(case.age) > STALE_AFTER:
        return Refused(Reason.STALE)
    if case.asked_premises_id != case.device.premises_id:
        return Refused(Reason.PREMISES_MISMATCH)
    if case.premises is None or not case.premises.served:
        return Refused(Reason.PREMISES_NOT_SERVED)
    if case.premises_account is None or not case.premises_account.open:
        return Refused(Reason.ACCOUNT_CLOSED)
    return _decide_vehicle(case, case.premises)


def _decide_vehicle(case: Case, premises: Premises) -> Accepted | Refused:
    if case.pev is None:
        return Refused(Reason.UNKNOWN_PEV)
    if case.pev.suspended:
        return Refused(Reason.PEV_SUSPENDED)
    if case.pev_account is None or not case.pev_account.open:
        return Refused(Reason.ACCOUNT_CLOSED)
    if case.pev.account_id != premises.account_id and not premises.guests_allowed:
        return Refused(Reason.GUEST_NOT_ALLOWED)
    if not case.pev.program or not case.plan_in_force:
        return Refused(Reason.NO_PROGRAM)
    return Accepted(premises, case.pev)


def scenario(state: State | None, binding_id: str, known_binding: str) -> Scenario:
    """`again` when this binding was set up and the charger still knows it (P1-F28); else `first`."""
    return "again" if state is State.SET_UP and known_binding == binding_id else "first"


def step(state: State, event: Event) -> State | Step:
    """The next state, or why there is none."""
    return TRANSITIONS[state, event]


@dataclass(frozen=True, slots=True)
class Bound:
    """What metering must know of a binding. `tariffs`: each (code, version) it was ever confirmed or detected on."""

    binding_id: str
    device_id: str
    pev_id: str
    account_id: str
    tariffs: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class BindingView:
    """A binding as operators see it. Times are UTC text; "" is not yet. `eumd_reason`: why the EUMD refused, or ""."""

    binding_id: str
    device_id: str
    pev_id: str
    premises_id: str
    account_id: str
    program: str
    tariff_code: str
    tariff_version: str
    interval_s: int
    state: str
    confirmed_at: str
    pev_acked_at: str
    set_up_at: str
    valid_until: str
    eumd_reason: str


def age(at: datetime, now: datetime, clock: str) -> timedelta | None:
    """How old the message is; None when its clock cannot say."""
    return now - at if clock == "synced" else None
