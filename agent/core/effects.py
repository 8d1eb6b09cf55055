"""What the station wants done: imperatives, carried out in order by the runtime.

A Record comes before what it records.
"""

from dataclasses import dataclass

from esci.messages import State, Up, Wire
from esci.pevlink import ToPev
from esci.reasons import Reason


@dataclass(frozen=True, slots=True)
class Record:
    """Append to the journal, synced to disk before the next effect. `body` is one of `esci.records.BODIES`."""

    kind: str
    body: Wire
    at: str
    clock: str


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep the station's snapshot (JSON text) in the same transaction as the records before it."""

    snapshot: str


@dataclass(frozen=True, slots=True)
class AskToClose:
    """Offer limit_ma on the pilot and let the board close when the vehicle asks."""

    limit_ma: int


@dataclass(frozen=True, slots=True)
class OpenContactor:
    """Withdraw the permission; the board opens."""

    reason: Reason | None


@dataclass(frozen=True, slots=True)
class Send:
    """Seal and publish to the utility, once; the station asks again when no answer comes."""

    message: Up


@dataclass(frozen=True, slots=True)
class SendBatch:
    """Publish `count` records from first_seq on, as one sealed message."""

    first_seq: int
    count: int


@dataclass(frozen=True, slots=True)
class Forget:
    """The utility has committed every record up to and including seq."""

    seq: int


@dataclass(frozen=True, slots=True)
class TellPev:
    """Send to the vehicle, if its link is open."""

    message: ToPev


@dataclass(frozen=True, slots=True)
class KeepTariff:
    """Store one tariff version (the document's JSON text) for good."""

    code: str
    version: str
    document: str


@dataclass(frozen=True, slots=True)
class ShowState:
    """Show the device's state on the charger; publish it too when `publish`."""

    state: State
    publish: bool


Effect = (Record | Remember | AskToClose | OpenContactor | Send | SendBatch | Forget | TellPev | KeepTariff | ShowState)
