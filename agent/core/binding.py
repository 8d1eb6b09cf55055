"""The binding of one plug-in, on the charger's side (P1-S1.6..S1.13, S2.1..S2.7, F10, F28, N2, N3).

The table is total; rows cite their clause. `Binding` holds the facts of the present plug-in beside its state.
"""

from dataclasses import dataclass
from enum import Enum, auto

from esci.messages import BindConfirm, BindRequest, TariffRef
from esci.reasons import Reason


class State(Enum):
    """Where the binding of one plug-in stands."""

    IDLE = auto()
    AWAITING_PEV = auto()  # plugged, the vehicle has not said who it is
    VALIDATING = auto()  # the utility is being asked
    CONFIRMING = auto()  # first time: the vehicle is setting its parameters
    BOUND = auto()
    UNBOUND = auto()  # on the premises' default rate, or not at all when the customer forbids it


class Happened(Enum):
    """What the binding machine hears of."""

    PLUGGED = auto()
    IDENTIFIED = auto()
    CONFIRMED_FIRST = auto()
    CONFIRMED_AGAIN = auto()
    REFUSED = auto()
    PEV_SET = auto()
    WAIT_OVER = auto()
    UNPLUGGED = auto()


NEXT = {
    (State.IDLE, Happened.PLUGGED): State.AWAITING_PEV,  # P1-S1.6, S2.1
    (State.AWAITING_PEV, Happened.IDENTIFIED): State.VALIDATING,  # P1-S1.8, S2.3
    (State.AWAITING_PEV, Happened.WAIT_OVER): State.UNBOUND,  # P1-F10, N3
    (State.AWAITING_PEV, Happened.UNPLUGGED): State.IDLE,
    (State.VALIDATING, Happened.IDENTIFIED): State.VALIDATING,  # the vehicle's link came back
    (State.VALIDATING, Happened.CONFIRMED_FIRST): State.CONFIRMING,  # P1-S1.11
    (State.VALIDATING, Happened.CONFIRMED_AGAIN): State.BOUND,  # P1-S2.6, F28
    (State.VALIDATING, Happened.REFUSED): State.UNBOUND,  # P1-B4
    (State.VALIDATING, Happened.WAIT_OVER): State.UNBOUND,  # P1-F10
    (State.VALIDATING, Happened.UNPLUGGED): State.IDLE,
    (State.CONFIRMING, Happened.IDENTIFIED): State.CONFIRMING,  # power cycle of the vehicle: tell it again
    (State.CONFIRMING, Happened.PEV_SET): State.BOUND,  # P1-S1.12, S1.13
    (State.CONFIRMING, Happened.WAIT_OVER): State.UNBOUND,  # P1-F10
    (State.CONFIRMING, Happened.UNPLUGGED): State.IDLE,
    (State.BOUND, Happened.IDENTIFIED): State.BOUND,  # the vehicle's link came back
    (State.BOUND, Happened.UNPLUGGED): State.IDLE,
    (State.UNBOUND, Happened.UNPLUGGED): State.IDLE,
}
LATE = {  # true, too late or too early to matter
    (State.IDLE, Happened.IDENTIFIED),  # the link was faster than the pilot: remembered until plugged
    (State.IDLE, Happened.CONFIRMED_FIRST), (State.IDLE, Happened.CONFIRMED_AGAIN), (State.IDLE, Happened.REFUSED),
    (State.IDLE, Happened.PEV_SET), (State.IDLE, Happened.WAIT_OVER),
    (State.AWAITING_PEV, Happened.CONFIRMED_FIRST), (State.AWAITING_PEV, Happened.CONFIRMED_AGAIN),
    (State.AWAITING_PEV, Happened.REFUSED), (State.AWAITING_PEV, Happened.PEV_SET),
    (State.VALIDATING, Happened.PEV_SET),
    (State.CONFIRMING, Happened.CONFIRMED_FIRST), (State.CONFIRMING, Happened.CONFIRMED_AGAIN),
    (State.CONFIRMING, Happened.REFUSED),
    (State.BOUND, Happened.CONFIRMED_FIRST), (State.BOUND, Happened.CONFIRMED_AGAIN), (State.BOUND, Happened.REFUSED),
    (State.BOUND, Happened.PEV_SET), (State.BOUND, Happened.WAIT_OVER),
    (State.UNBOUND, Happened.IDENTIFIED), (State.UNBOUND, Happened.CONFIRMED_FIRST),
    (State.UNBOUND, Happened.CONFIRMED_AGAIN), (State.UNBOUND, Happened.REFUSED), (State.UNBOUND, Happened.PEV_SET),
    (State.UNBOUND, Happened.WAIT_OVER),
}
IMPOSSIBLE = {  # the station broke its promise: crash; start-up reads the board, in doubt opens
    (State.IDLE, Happened.UNPLUGGED),
    (State.AWAITING_PEV, Happened.PLUGGED), (State.VALIDATING, Happened.PLUGGED), (State.CONFIRMING, Happened.PLUGGED),
    (State.BOUND, Happened.PLUGGED), (State.UNBOUND, Happened.PLUGGED),
}
WAITING = frozenset({State.AWAITING_PEV, State.VALIDATING, State.CONFIRMING})


def step(state: State, event: Happened) -> State:
    """Next state. Raises KeyError for what cannot happen."""
    return state if (state, event) in LATE else NEXT[state, event]


@dataclass(frozen=True, slots=True)
class Bound:
    """What the utility confirmed."""

    binding: str
    pev: str
    program: str
    tariff: TariffRef
    scenario: str
    valid_until: str
    ticket: str


@dataclass(slots=True)
class Binding:
    """The present plug-in's binding. Empty texts are unknown."""

    state: State = State.IDLE
    pev: str = ""
    request: str = ""
    known: str = ""  # the binding id that we hold for this vehicle, when its ticket fits
    asked: BindRequest | None = None  # sent again as it is until it is answered or grows stale
    asked_ms: int = 0
    sent_ms: int | None = None
    deadline_ms: int | None = None
    bound: Bound | None = None
    reason: Reason | None = None  # why UNBOUND

    def on(self, event: Happened) -> bool:
        """Take the step; False when the event was late."""
        late = (self.state, event) in LATE
        self.state = step(self.state, event)
        return not late

    def reason_for_wait_over(self) -> Reason:
        """Who kept us waiting."""
        return Reason.UTILITY_UNREACHABLE if self.state is State.VALIDATING else Reason.NO_PEV_LINK


def bound_of(message: BindConfirm) -> Bound:
    """The confirmation's content."""
    return Bound(message.binding, message.pev, message.program, message.tariff, message.scenario, message.valid_until,
                 message.ticket)
