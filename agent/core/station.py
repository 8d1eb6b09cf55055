"""The station: composes metering, power, dialogue and outbox into `handle(event, now) -> effects`.

It decides and does nothing: no clock, no file, no socket; the runtime calls it from one thread. Among the effects of an
event openings come first, which need no leave and wait for no disk; then records and the snapshot, so that what is
acknowledged, closed or said was written before (DESIGN section 2; P1-B4, B6, F17).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agent.core.clock import ClockWatch, Now
from agent.core.dialogue import Dialogue
from agent.core.effects import Effect, OpenContactor, Record, Remember, ShowState
from agent.core.events import (
    BoardFailed,
    BoardFound,
    BoardReported,
    Event,
    MeterFailed,
    MeterRead,
    PevAcknowledged,
    PevGone,
    PevIdentified,
    Received,
    RecordsWritten,
    StopAsked,
    UplinkLost,
    UplinkOpened,
    Woke,
)
from agent.core.metering import Metering, record
from agent.core.outbox import Outbox
from agent.core.pilot import Presence
from agent.core.power import Power
from agent.core.session import Memory, Session, Settings, Snapshot
from esci.messages import Ack, Hello, IntervalS, State, TariffRef
from esci.reasons import Reason
from esci.records import JournalBegun, SessionBegun, SessionEnded
from esci.tariff import TariffDocument, parse
from esci.units import format_utc

SHOW_MS = 10_000
PUBLISH_MS = 60_000


@dataclass(frozen=True, slots=True)
class Start:
    """What a station begins with: settings, what holds until the utility's word, and what the journal knows."""

    settings: Settings
    interval_s: IntervalS
    binding_wait_s: int
    charge_without_binding: bool
    epoch: int
    last_seq: int
    acked_seq: int
    tariffs: Sequence[TariffDocument] = ()
    snapshot: Snapshot | None = None


@dataclass(slots=True)
class _Shown:
    """What was shown last, and when."""

    key: tuple[object, ...] = ()
    shown_ms: int | None = None
    published_ms: int | None = None
    faults: list[str] = field(default_factory=list)


class Station:
    """One charger. Same start, events and times: same effects."""

    def __init__(self, start: Start, new_id: Callable[[], str], now: Now) -> None:
        self.memory = memory = Memory(start.settings, start.interval_s, start.binding_wait_s,
                                      start.charge_without_binding)
        for document in start.tariffs:
            memory.tariffs[document.code, document.version] = parse(document)
        self._new_id = new_id
        if start.snapshot is not None:
            memory.restore(start.snapshot, now.mono_ms)
        self.metering = Metering(memory)
        if start.snapshot is not None:
            self.metering.restore(start.snapshot.interval, now)
        self.power = Power(memory)
        self.dialogue = Dialogue(memory, self.metering, new_id, self._hello)
        self.outbox = Outbox(start.epoch, start.last_seq, start.acked_seq, start.settings.retry_s * 1000)
        self._watch = ClockWatch()
        self._is_new = start.last_seq == 0
        self._shown = _Shown()

    # ---- the one entrance

    def handle(self, event: Event, now: Now) -> list[Effect]:
        """What to do about an event, in order: records, snapshot, then the rest."""
        effects: list[Effect] = []
        if self._is_new:
            self._is_new = False
            settings = self.memory.settings
            effects.append(record("journal.begun",
                                  JournalBegun(software=settings.software, premises=settings.premises), now))
        step_s = self._watch.step_s(now)
        if step_s:
            effects += self.metering.on_clock_step(step_s, now)
        effects += self._on_event(event, now)
        effects += self.dialogue.on_time(now)
        effects += self._finish_session(now)
        effects += self.power.decide(self.memory.may_charge(), now)
        if isinstance(event, BoardReported):
            effects += self.power.watch(now)
        effects += self.outbox.due(now.mono_ms)
        effects += self._show(now)
        return self._ordered(effects)

    def next_wake_ms(self) -> int | None:
        """When the station wants to be woken; read from its state after each event."""
        wakes = [self.dialogue.next_wake_ms(), self.outbox.next_wake_ms(), self._leave_at_ms()]
        return min((wake for wake in wakes if wake is not None), default=None)

    # ---- events

    def _on_event(self, event: Event, now: Now) -> list[Effect]:
        match event:
            case MeterRead():
                self.metering.energy_while_open = Reason.ENERGY_WHILE_OPEN in self.power.bars
                return [*self.metering.on_read(event, now), *self.power.on_power(event, now)]
            case MeterFailed(cause=cause):
                return list(self.metering.on_failed(cause, now))
            case BoardReported(status=status):
                before = self.power.presence
                return [*self.power.on_reported(status, now), *self._on_presence(before, now)]
            case BoardFound():
                return self.power.on_found(event, now)
            case BoardFailed(cause=cause):
                return self.power.on_failed(cause, now)
            case PevIdentified():
                return self.dialogue.on_identified(event, now)
            case PevAcknowledged():
                return self.dialogue.on_pev_set(event, now)
            case PevGone():
                self.dialogue.on_gone()
                return []
            case _:
                return self._on_uplink_event(event, now)

    def _on_uplink_event(self, event: Event, now: Now) -> list[Effect]:
        match event:
            case UplinkOpened():
                self.outbox.on_opened()
                return self.dialogue.on_opened(now)
            case UplinkLost():
                self.outbox.on_lost()
                self.dialogue.on_lost()
            case Received(message=Ack() as ack):
                return list(self.outbox.on_ack(ack.epoch, ack.seq, now.mono_ms))
            case Received(message=message):
                return self.dialogue.on_message(message, now)
            case RecordsWritten(epoch=epoch, last_seq=last_seq):
                self.outbox.on_written(epoch, last_seq)
            case StopAsked():
                self.power.on_stop()
            case Woke():
                pass
            case _:
                raise AssertionError(f"no rule for {event!r}")
        return []

    # ---- sessions

    def _on_presence(self, before: Presence, now: Now) -> list[Effect]:
        present = self.power.presence is Presence.PRESENT
        session = self.memory.session
        if self.power.presence is before:
            return []
        if not present:
            if session is not None and session.leaving_ms is None:
                session.leaving_ms, self.memory.dirty = now.mono_ms, True
                session.leaving_reason = Reason.RESTARTED if before is Presence.UNKNOWN else Reason.UNPLUGGED
            return []
        if session is not None and session.leaving_ms is None:
            self.dialogue.on_adopted(now)
            return []
        effects = self._end_session(now) if session is not None else []
        return effects + self._begin_session(now)

    def _begin_session(self, now: Now) -> list[Effect]:
        register_wh = self.metering.register_wh
        idle = self.metering.edge(now)
        self.memory.session = Session(self._new_id(), metered=register_wh is not None)
        self.memory.dirty = True
        body = SessionBegun(session=self.memory.session.id, premises=self.memory.settings.premises,
                            register_wh=register_wh)
        return [*idle, record("session.begun", body, now), *self.dialogue.on_plugged(now)]

    def _leave_at_ms(self) -> int | None:
        session = self.memory.session
        if session is None or session.leaving_ms is None:
            return None
        return session.leaving_ms + self.memory.settings.tolerance_s * 1000

    def _finish_session(self, now: Now) -> list[Effect]:
        """End a session once the register has had its last word, or has not come in time."""
        session, leave_at_ms = self.memory.session, self._leave_at_ms()
        if session is None or session.leaving_ms is None or leave_at_ms is None:
            return []
        last = self.metering.recorder.last
        fresh = last is not None and last.mono_ms >= session.leaving_ms
        closed = self.power.status is not None and self.power.status.closed is True
        if (fresh and not closed) or now.mono_ms >= leave_at_ms:
            return self._end_session(now)
        return []

    def _end_session(self, now: Now) -> list[Effect]:
        session = self.memory.session
        assert session is not None
        records = self.metering.edge(now)
        receipt, register_wh = session.receipt, self.metering.register_wh
        body = SessionEnded(
            session=session.id, reason=session.leaving_reason, energy_wh=receipt.energy_wh if session.metered else None,
            pending_wh=receipt.pending_wh, receipt_cents=receipt.total_cents if session.metered else None,
            unmetered=not session.metered or register_wh is None, register_wh=register_wh)
        self.dialogue.on_unplugged()
        self.memory.session, self.memory.dirty = None, True
        recut = self.metering.edge(now)
        assert not recut, "a second cut at one moment closes nothing"
        return [*records, record("session.ended", body, now)]

    # ---- what others see

    def _hello(self, now: Now) -> Hello:
        memory = self.memory
        held = [TariffRef(code=code, version=version) for code, version in memory.tariffs][-64:]
        return Hello.model_validate({
            "device": memory.settings.device, "id": self._new_id(), "at": format_utc(now.utc),
            "premises": memory.settings.premises, "software": memory.settings.software, "epoch": self.outbox.epoch,
            "last_seq": self.outbox.last_seq, "acked_seq": self.outbox.acked_seq, "clock": now.quality,
            "tariffs": held})

    def state(self, now: Now) -> State:
        """The picture for operators and the technician; None is unknown."""
        memory, power, metering = self.memory, self.power, self.metering
        status, rule, binding = power.status, power.ruling(now), memory.binding
        closed = None if status is None else status.closed
        last = metering.last if metering.silent is None else None
        faults = [f"{reason}: {detail}" for reason, detail in power.bars.items()]
        if metering.silent is not None:
            faults.append(f"{Reason.METER_SILENT}: {metering.silent}")
        phase = binding.state.name.lower() if memory.session is not None else ""
        return State.model_validate({
            "device": memory.settings.device, "at": format_utc(now.utc), "online": True,
            "pilot": "unknown" if status is None else status.pilot.value,
            "contactor": "unknown" if closed is None else "closed" if closed else "open",
            "session": memory.session.id if memory.session else "", "binding": phase,
            "reason": binding.reason or "", "power_w": last.reading.power_w if last else None,
            "register_wh": last.reading.import_wh if last else None, "limit_ma": rule.limit_ma,
            "limit_source": rule.source, "journal_waiting": self.outbox.waiting, "clock": now.quality,
            "faults": faults})

    def _show(self, now: Now) -> list[Effect]:
        """Show at each change and at least every SHOW_MS; publish at each change and every PUBLISH_MS."""
        shown, status, binding = self._shown, self.power.status, self.memory.binding
        session = self.memory.session
        key = (status, session.id if session else "", binding.state, binding.reason, tuple(self.power.bars),
               self.metering.silent, self.outbox.connected)
        changed = key != shown.key
        if not changed and shown.shown_ms is not None and now.mono_ms - shown.shown_ms < SHOW_MS:
            return []
        publish = changed or shown.published_ms is None or now.mono_ms - shown.published_ms >= PUBLISH_MS
        shown.key, shown.shown_ms = key, now.mono_ms
        if publish:
            shown.published_ms = now.mono_ms
        return [ShowState(self.state(now), publish)]

    def _ordered(self, effects: Sequence[Effect]) -> list[Effect]:
        """Openings, which wait for no disk; then what is written; then the rest, in its order."""
        openings: list[Effect] = [effect for effect in effects if isinstance(effect, OpenContactor)]
        records = [effect for effect in effects if isinstance(effect, Record)]
        rest: list[Effect] = [effect for effect in effects if not isinstance(effect, Record | OpenContactor)]
        if records or self.memory.dirty:
            self.memory.dirty = False
            snapshot = self.memory.keep(self.metering.kept())
            return [*openings, *records, Remember(snapshot.model_dump_json()), *rest]
        return [*openings, *rest]
