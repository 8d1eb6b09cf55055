"""One plug-in from On-Plug to unplug, and what of the station must survive a restart (P1-B6, S3.1; DESIGN section 2).

`Memory` is what the parts of the station share. `Snapshot` is its durable part, kept in the journal in the same
transaction as the records that led to it.
"""

from dataclasses import dataclass, field

from agent.core.binding import Binding, Bound, State
from agent.core.receipt import Receipt
from esci.messages import BindAck, IntervalS, TariffRef, Wire
from esci.reasons import Reason
from esci.tariff import Tariff


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration fixes. Times in world seconds, power in W, current in mA."""

    device: str
    premises: str
    software: str
    circuit_max_ma: int
    power_max_w: int
    tolerance_s: int
    retry_s: int


@dataclass(slots=True)
class Session:
    """The present session. `metered` is False while the meter has not spoken since it began."""

    id: str
    metered: bool
    receipt: Receipt = field(default_factory=Receipt)
    leaving_ms: int | None = None  # unplugged at that time; waits for the register's last word
    leaving_reason: Reason = Reason.UNPLUGGED


class Kept(Wire):
    """What every part of a snapshot shares."""


class KeptInterval(Kept):
    """Where the running interval began, and where it is to end: a restart must not move its boundary (P1-F24)."""

    utc: str
    register_wh: int
    boundary: str
    flags: list[str]


class KeptBound(Kept):
    """See `agent.core.binding.Bound`."""

    binding: str
    pev: str
    program: str
    tariff: TariffRef
    scenario: str
    valid_until: str
    ticket: str


class KeptSession(Kept):
    """The open session and its binding."""

    id: str
    metered: bool
    running_nano_usd: int
    energy_wh: int
    pending_wh: int
    binding_state: str
    pev: str
    bound: KeptBound | None
    reason: Reason | None
    leaving_reason: Reason | None  # the vehicle was seen leaving; the register's last word was awaited


class KnownBinding(Kept):
    """What re-binding needs of an earlier set-up (P1-F28)."""

    binding: str
    ticket: str


class Snapshot(Kept):
    """The station's memory across restarts."""

    default_tariff: TariffRef | None
    interval_s: IntervalS
    binding_wait_s: int
    charge_without_binding: bool
    known: dict[str, KnownBinding]
    detect: str
    detect_at: str
    params_at: str
    unanswered: BindAck | None  # sent again until the detection message comes (P1-S1.13)
    latched: dict[Reason, str]  # what bars power until a person has looked
    interval: KeptInterval | None
    session: KeptSession | None


@dataclass(slots=True)
class Memory:
    """What the parts of the station share; changed by one of them at a time, in one thread."""

    settings: Settings
    interval_s: IntervalS
    binding_wait_s: int
    charge_without_binding: bool
    default_tariff: TariffRef | None = None
    tariffs: dict[tuple[str, str], Tariff] = field(default_factory=dict)
    known: dict[str, KnownBinding] = field(default_factory=dict)
    detect: str = ""  # id of the last detection message that was applied
    detect_at: str = ""  # when the utility made it; an older one that comes late changes nothing
    params_at: str = ""
    unanswered: BindAck | None = None
    latched: dict[Reason, str] = field(default_factory=dict)
    session: Session | None = None
    binding: Binding = field(default_factory=Binding)
    dirty: bool = False  # the snapshot on disk is older than this

    def tariff(self, ref: TariffRef) -> Tariff | None:
        """The tariff version, when the utility has sent it."""
        return self.tariffs.get((ref.code, ref.version))

    def ref_in_force(self) -> TariffRef | None:
        """Which tariff the energy of this moment is on: the binding's, else the premises' default (P1-B4).

        None when that version has not been received: then neither receipt nor bill can know the price.
        """
        ref = self._ref()
        return None if ref is None or self.tariff(ref) is None else ref

    def _ref(self) -> TariffRef | None:
        if self.session is not None and self.binding.state is State.BOUND and self.binding.bound is not None:
            return self.binding.bound.tariff
        return self.default_tariff

    def may_charge(self) -> bool:
        """True when the binding's outcome lets energy flow (P1-S2.7, B4, F10)."""
        if self.session is None or self.session.leaving_ms is not None:
            return False
        return self.binding.state is State.BOUND or (
            self.binding.state is State.UNBOUND and self.charge_without_binding)

    def learn(self, bound: Bound) -> None:
        """Keep what the next plug-in of this vehicle needs; the oldest of 64 is forgotten."""
        self.known.pop(bound.pev, None)
        self.known[bound.pev] = KnownBinding(binding=bound.binding, ticket=bound.ticket)
        while len(self.known) > 64:
            self.known.pop(next(iter(self.known)))
        self.dirty = True

    def keep(self, interval: KeptInterval | None) -> Snapshot:
        """The snapshot of this moment."""
        return Snapshot(default_tariff=self.default_tariff, interval_s=self.interval_s,
                        binding_wait_s=self.binding_wait_s, charge_without_binding=self.charge_without_binding,
                        known=self.known, detect=self.detect, detect_at=self.detect_at, params_at=self.params_at,
                        unanswered=self.unanswered, latched=self.latched, interval=interval,
                        session=self._keep_session())

    def restore(self, snapshot: Snapshot, mono_ms: int) -> None:
        """Go on as it was. A binding that was under way starts over: its answers were lost with the process."""
        self.default_tariff, self.interval_s = snapshot.default_tariff, snapshot.interval_s
        self.binding_wait_s = snapshot.binding_wait_s
        self.charge_without_binding = snapshot.charge_without_binding
        self.known, self.detect = dict(snapshot.known), snapshot.detect
        self.detect_at, self.params_at = snapshot.detect_at, snapshot.params_at
        self.unanswered, self.latched = snapshot.unanswered, dict(snapshot.latched)
        kept = snapshot.session
        if kept is None:
            return
        self.session = Session(kept.id, kept.metered,
                               Receipt(kept.running_nano_usd, kept.energy_wh, kept.pending_wh))
        if kept.leaving_reason is not None:
            self.session.leaving_ms, self.session.leaving_reason = mono_ms, kept.leaving_reason
        state = State[kept.binding_state]
        if state in (State.BOUND, State.UNBOUND):
            bound = None if kept.bound is None else Bound(**dict(kept.bound))
            self.binding = Binding(state=state, pev=kept.pev, reason=kept.reason, bound=bound)
        else:
            self.binding = Binding(state=State.AWAITING_PEV)

    def _keep_session(self) -> KeptSession | None:
        session, binding = self.session, self.binding
        if session is None:
            return None
        bound = binding.bound
        kept = None if bound is None else KeptBound(
            binding=bound.binding, pev=bound.pev, program=bound.program, tariff=bound.tariff, scenario=bound.scenario,
            valid_until=bound.valid_until, ticket=bound.ticket)
        return KeptSession(id=session.id, metered=session.metered, running_nano_usd=session.receipt.running_nano_usd,
                           energy_wh=session.receipt.energy_wh, pending_wh=session.receipt.pending_wh,
                           binding_state=binding.state.name, pev=binding.pev, bound=kept, reason=binding.reason,
                           leaving_reason=None if session.leaving_ms is None else session.leaving_reason)
