"""What the station hears of: facts, in the past tense, posted by drivers and adapters. Nothing here does anything."""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from agent.core.clock import Now

if TYPE_CHECKING:  # drivers use these events, and begin before the wire's models are loaded
    from esci.messages import Down


class Pilot(Enum):
    """Pilot states of IEC 61851-1 table A.2 as the board reports them."""

    UNKNOWN = "unknown"  # the board cannot see the line (disabled, starting)
    A = "A"  # no vehicle
    B = "B"  # vehicle present
    C = "C"  # vehicle asks for power
    D = "D"  # vehicle asks for power and ventilation
    E = "E"  # pilot shorted
    F = "F"  # portal not available


@dataclass(frozen=True, slots=True)
class BoardStatus:
    """What the pilot board says of itself. Booleans None: the board cannot tell in this state."""

    pilot: Pilot
    plugged: bool | None
    closed: bool | None  # contactor
    asleep: bool  # the board withholds power until the agent asks
    fault: str | None  # the board's own name for it, e.g. "06 ground fault"; None: no fault
    limit_ma: int  # what the pilot offers


@dataclass(frozen=True, slots=True)
class BoardIdentity:
    """Read once when the board is found."""

    firmware: str
    protections_off: tuple[str, ...]  # e.g. ("diode", "ground"); empty is safe
    stored_max_ma: int  # what the board falls back to by itself


@dataclass(frozen=True, slots=True)
class BoardFound:
    """The board answers (again); the first report follows."""

    identity: BoardIdentity


@dataclass(frozen=True, slots=True)
class BoardReported:
    """The board's state, at least every poll and at each change."""

    status: BoardStatus


@dataclass(frozen=True, slots=True)
class BoardFailed:
    """The board is silent or refuses; sent once, then BoardFound when it is back."""

    cause: str


@dataclass(frozen=True, slots=True)
class MeterReading:
    """One reading. Everything but the register may be unknown."""

    import_wh: int
    power_w: int | None = None
    current_ma: tuple[int, ...] | None = None  # one for each phase
    voltage_mv: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class MeterRead:
    """The meter answered; `read_at` is when it was asked: the value is as old as that at most."""

    reading: MeterReading
    read_at: Now


@dataclass(frozen=True, slots=True)
class MeterFailed:
    """The meter is silent or sends nonsense; sent once, then MeterRead when it is back."""

    cause: str


@dataclass(frozen=True, slots=True)
class PevIdentified:
    """The vehicle proved its PEV I.D. on the link (P1-S1.8). `resumed`: by TLS resumption (S2.2)."""

    pev: str
    ticket: str
    resumed: bool


@dataclass(frozen=True, slots=True)
class PevAcknowledged:
    """The vehicle has stored its parameters (P1-S1.12)."""

    binding: str


@dataclass(frozen=True, slots=True)
class PevGone:
    """The PEV link closed."""


@dataclass(frozen=True, slots=True)
class UplinkOpened:
    """Connected to the broker and subscribed."""


@dataclass(frozen=True, slots=True)
class UplinkLost:
    """The broker is away."""

    cause: str


@dataclass(frozen=True, slots=True)
class Received:
    """A message of the utility: seal proven, form checked, meant for this device."""

    message: "Down"


@dataclass(frozen=True, slots=True)
class RecordsWritten:
    """The journal stands at (epoch, last_seq)."""

    epoch: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Woke:
    """The wake time that the station asked for has come."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The agent is to stop."""


Event = (BoardFound | BoardReported | BoardFailed | MeterRead | MeterFailed | PevIdentified | PevAcknowledged | PevGone
         | UplinkOpened | UplinkLost | Received | RecordsWritten | Woke | StopAsked)
