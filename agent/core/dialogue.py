"""The dialogue part of the station: what vehicle and utility say to the charger, and what it answers.

Bindings (P1-S1.6..S1.16, S2.1..S2.7, F10, F28, N2, N3), parameters (F18, F24) and tariffs. Retries are the same message
with the same id, so that the other side can tell a repeat from a new question.
"""

from collections.abc import Callable

from agent.core.binding import WAITING, Binding, Happened, State, bound_of
from agent.core.clock import Now
from agent.core.effects import Effect, KeepTariff, Send, TellPev
from agent.core.events import PevAcknowledged, PevIdentified
from agent.core.metering import Metering, record
from agent.core.session import Memory
from esci import messages as wire
from esci import pevlink
from esci.reasons import Reason, sentence
from esci.records import Happening, SessionBound, SessionUnbound
from esci.tariff import parse
from esci.units import format_utc, parse_utc

ACK_TRIES = 20
REQUEST_LIFE_MS = 240_000  # the utility refuses a request over 300 s old: then ask a new question


class Dialogue:
    """Speaks with vehicle and utility for the present plug-in. Shares `Memory` and asks `Metering` to cut intervals."""

    def __init__(self, memory: Memory, metering: Metering, new_id: Callable[[], str],
                 hello: Callable[[Now], wire.Hello]) -> None:
        self._memory, self._metering, self._new_id, self._hello = memory, metering, new_id, hello
        self._hello_again_ms: int | None = None  # a broker takes a hello that nobody hears: said again until answered
        self._early: PevIdentified | None = None  # the link was faster than the pilot
        self._confirm: wire.BindConfirm | None = None
        self._ack_sent_ms = 0
        self._ack_tries = 0
        self.connected = False

    # ---- from the pilot

    def on_plugged(self, now: Now) -> list[Effect]:
        """A new plug-in: wait for the vehicle (P1-S1.6, S2.1)."""
        binding = self._memory.binding = Binding()
        binding.on(Happened.PLUGGED)
        binding.deadline_ms = now.mono_ms + self._memory.binding_wait_s * 1000
        early, self._early = self._early, None
        if early is None:
            return []
        binding.on(Happened.IDENTIFIED)
        return self._validate(early, now)

    def on_unplugged(self) -> None:
        """The plug-in is over."""
        self._memory.binding.on(Happened.UNPLUGGED)
        self._memory.binding = Binding()
        self._confirm = None

    def on_adopted(self, now: Now) -> None:
        """The agent was restarted while a vehicle was plugged in."""
        binding = self._memory.binding
        if binding.state in WAITING:
            binding.deadline_ms = now.mono_ms + self._memory.binding_wait_s * 1000

    # ---- from the vehicle

    def on_identified(self, event: PevIdentified, now: Now) -> list[Effect]:
        """P1-S1.8, S2.3: ask the utility, or answer from what is known already."""
        binding = self._memory.binding
        before = binding.state
        if not binding.on(Happened.IDENTIFIED):
            if before is State.IDLE:
                self._early = event
                return [TellPev(pevlink.Wait())]
            reason = binding.reason or Reason.UTILITY_UNREACHABLE
            return [TellPev(pevlink.Reject(reason=reason, sentence=sentence(reason)))]
        if before is not State.AWAITING_PEV and event.pev != binding.pev:
            reason = Reason.PEV_MISMATCH  # a second link proves no second plug: the first vehicle's binding stands
            return [TellPev(pevlink.Reject(reason=reason, sentence=sentence(reason)))]
        match before:
            case State.AWAITING_PEV:
                return [TellPev(pevlink.Wait()), *self._validate(event, now)]
            case State.VALIDATING:
                return [TellPev(pevlink.Wait())]
            case State.CONFIRMING:
                return self._tell_confirmed(ack=True)
            case _:
                return self._tell_confirmed(ack=False)

    def on_gone(self) -> None:
        """The PEV link closed; a vehicle that identified itself early is forgotten."""
        self._early = None

    def on_pev_set(self, event: PevAcknowledged, now: Now) -> list[Effect]:
        """P1-S1.12, S1.13: the vehicle has stored its parameters."""
        binding = self._memory.binding
        if self._confirm is None or event.binding != self._confirm.binding or not binding.on(Happened.PEV_SET):
            return []
        confirm = self._confirm
        self._memory.unanswered = wire.BindAck(
            device=self._memory.settings.device, id=self._new_id(), at=format_utc(now.utc), request=confirm.request,
            binding=confirm.binding, pev=confirm.pev)
        self._ack_tries = 0
        return [*self._become_bound(confirm, now, State.CONFIRMING), *self._send_ack(now)]

    # ---- from the utility

    def on_opened(self, now: Now) -> list[Effect]:
        """Connected: say who we are, and ask again what is unanswered."""
        self.connected = True
        effects = self._say_hello(now)
        if self._memory.binding.state is State.VALIDATING:
            effects += self._ask(now)
        return effects + (self._send_ack(now) if self._memory.unanswered is not None else [])

    def on_lost(self) -> None:
        """The utility cannot be reached."""
        self.connected, self._hello_again_ms = False, None

    def on_message(self, message: wire.Down, now: Now) -> list[Effect]:
        """Everything but acknowledgements of records."""
        match message:
            case wire.BindConfirm():
                return self._on_confirm(message, now)
            case wire.BindReject():
                return self._on_reject(message, now)
            case wire.EumdDetect():
                return self._on_detect(message, now)
            case wire.Params():
                return self._on_params(message, now)
            case wire.TariffSent():
                return self._on_tariff(message, now)
            case _:
                return []

    def _on_confirm(self, message: wire.BindConfirm, now: Now) -> list[Effect]:
        binding = self._memory.binding
        if message.request != binding.request or message.pev != binding.pev:
            return []  # the answer to an earlier plug-in
        if message.premises != self._memory.settings.premises:
            return [self._noted(Reason.PREMISES_MISMATCH, message.id, now)]
        first = message.scenario == "first"
        before = binding.state
        if not binding.on(Happened.CONFIRMED_FIRST if first else Happened.CONFIRMED_AGAIN):
            return []
        self._confirm, binding.bound = message, bound_of(message)
        if first:
            return self._tell_confirmed(ack=True)
        return [*self._become_bound(message, now, before), *self._tell_confirmed(ack=False)]

    def _on_reject(self, message: wire.BindReject, now: Now) -> list[Effect]:
        binding = self._memory.binding
        if message.request != binding.request or binding.state is not State.VALIDATING:
            return []
        return self._become_unbound(Happened.REFUSED, message.reason, now)

    def _on_detect(self, message: wire.EumdDetect, now: Now) -> list[Effect]:
        memory = self._memory
        if now.quality == "synced" and now.utc > parse_utc(message.expires_at) and message.id != memory.detect:
            return [self._noted(Reason.STALE, message.id, now)]
        if memory.unanswered is not None and memory.unanswered.binding == message.binding:
            memory.unanswered, memory.dirty = None, True
        applied, reason = True, None
        if all(known.binding != message.binding for known in memory.known.values()):
            applied, reason = False, Reason.UNKNOWN_BINDING
        elif message.interval_s not in wire.INTERVALS_S:
            applied, reason = False, Reason.INTERVAL_NOT_ALLOWED
        elif message.at < memory.detect_at:
            applied, reason = False, Reason.STALE  # a newer one was applied
        elif message.id != memory.detect:
            self._set_interval(message.interval_s)
            memory.detect, memory.detect_at, memory.dirty = message.id, message.at, True
        ack = wire.EumdAck(device=memory.settings.device, id=self._new_id(), at=format_utc(now.utc), detect=message.id,
                           binding=message.binding, applied=applied, reason=reason, interval_s=memory.interval_s)
        return [Send(ack)]

    def _on_params(self, message: wire.Params, now: Now) -> list[Effect]:
        memory = self._memory
        self._hello_again_ms = None
        if message.premises != memory.settings.premises:
            return [self._noted(Reason.PREMISES_MISMATCH, message.id, now)]
        if message.at < memory.params_at:
            return []  # newer ones are in force
        changed = message.default_tariff != memory.default_tariff
        records = self._metering.edge(now) if changed else []
        memory.default_tariff, memory.params_at, memory.dirty = message.default_tariff, message.at, True
        memory.binding_wait_s = message.binding_wait_s
        memory.charge_without_binding = message.charge_without_binding
        if not memory.detect:
            self._set_interval(message.interval_s)
        if changed:
            records += self._metering.edge(now)  # closes nothing; from here on the other tariff's prices cut
        return list(records)

    def _on_tariff(self, message: wire.TariffSent, now: Now) -> list[Effect]:
        document = message.document
        try:
            tariff = parse(document)
        except ValueError as error:
            detail: dict[str, str | int | None] = {"tariff": f"{document.code} {document.version}"[:120],
                                                   "error": str(error)[:200]}
            return [record("event", Happening(code=Reason.UNKNOWN_TARIFF, session="", detail=detail), now)]
        if self._memory.tariffs.get((document.code, document.version)) == tariff:
            return []
        records = self._metering.edge(now)
        self._memory.tariffs[document.code, document.version] = tariff
        records += self._metering.edge(now)  # closes nothing; from here on the new prices cut
        self._memory.dirty = True
        return [*records, KeepTariff(document.code, document.version, document.model_dump_json())]

    def _set_interval(self, interval_s: int) -> None:
        assert interval_s in wire.INTERVALS_S
        self._memory.interval_s = interval_s  # type: ignore[assignment]  # checked one line above
        self._metering.recorder.set_interval(interval_s)

    # ---- time

    def on_time(self, now: Now) -> list[Effect]:
        """What is due: the end of the wait, or the same question again."""
        binding = self._memory.binding
        retry_ms = self._memory.settings.retry_s * 1000
        effects: list[Effect] = []
        if binding.state in WAITING and binding.deadline_ms is not None and now.mono_ms >= binding.deadline_ms:
            effects += self._become_unbound(Happened.WAIT_OVER, binding.reason_for_wait_over(), now)
        if not self.connected:
            return effects
        if self._hello_again_ms is not None and now.mono_ms >= self._hello_again_ms:
            effects += self._say_hello(now)
        asked_ms = binding.sent_ms if binding.state is State.VALIDATING else None
        if asked_ms is not None and now.mono_ms >= asked_ms + retry_ms:
            effects += self._ask(now)
        if self._memory.unanswered is not None and now.mono_ms >= self._ack_sent_ms + retry_ms:
            effects += self._send_ack(now)
        return effects

    def next_wake_ms(self) -> int | None:
        """When `on_time` has something to do."""
        binding = self._memory.binding
        retry_ms = self._memory.settings.retry_s * 1000
        wakes = [self._hello_again_ms, binding.deadline_ms if binding.state in WAITING else None]
        if self.connected and binding.state is State.VALIDATING and binding.sent_ms is not None:
            wakes.append(binding.sent_ms + retry_ms)
        if self.connected and self._memory.unanswered is not None:
            wakes.append(self._ack_sent_ms + retry_ms)
        return min((wake for wake in wakes if wake is not None), default=None)

    # ---- pieces

    def _say_hello(self, now: Now) -> list[Effect]:
        self._hello_again_ms = now.mono_ms + self._memory.settings.retry_s * 1000
        return [Send(self._hello(now))]

    def _validate(self, event: PevIdentified, now: Now) -> list[Effect]:
        """Begin to ask the utility about a vehicle; a ticket of ours makes it a re-binding (P1-F28)."""
        binding, known = self._memory.binding, self._memory.known.get(event.pev)
        binding.pev, binding.request = event.pev, self._new_id()
        binding.known = known.binding if known is not None and known.ticket == event.ticket else ""
        return self._ask(now)

    def _ask(self, now: Now) -> list[Effect]:
        """P1-S1.9, S2.4."""
        memory, binding = self._memory, self._memory.binding
        assert memory.session is not None, "only a plugged-in vehicle is validated"
        binding.sent_ms = now.mono_ms
        if not self.connected:
            return []
        quality: wire.ClockQuality = "synced" if now.quality == "synced" else "unsynced"
        request = binding.asked
        if request is None or now.mono_ms - binding.asked_ms >= REQUEST_LIFE_MS:
            binding.request = binding.request if request is None else self._new_id()
            binding.asked_ms = now.mono_ms
            request = binding.asked = wire.BindRequest(
                device=memory.settings.device, id=binding.request, at=format_utc(now.utc), session=memory.session.id,
                premises=memory.settings.premises, pev=binding.pev, known_binding=binding.known, clock=quality)
        return [Send(request)]

    def _send_ack(self, now: Now) -> list[Effect]:
        self._ack_sent_ms = now.mono_ms
        self._ack_tries += 1
        ack = self._memory.unanswered
        assert ack is not None
        if self._ack_tries > ACK_TRIES:  # the utility sends its detection message again after the next hello
            self._memory.unanswered, self._memory.dirty = None, True
        return [Send(ack)] if self.connected else []

    def _become_bound(self, confirm: wire.BindConfirm, now: Now, before: State) -> list[Effect]:
        binding = self._memory.binding
        after, binding.state = binding.state, before
        records = self._metering.edge(now)  # what was metered until here was not bound
        binding.state, binding.bound = after, bound_of(confirm)
        session = self._memory.session
        assert session is not None and after is State.BOUND
        self._memory.learn(binding.bound)
        if confirm.scenario == "again":
            self._set_interval(confirm.interval_s)
        body = SessionBound(session=session.id, binding=confirm.binding, pev=confirm.pev, program=confirm.program,
                            tariff=confirm.tariff, scenario=confirm.scenario)
        recut = self._metering.edge(now)
        assert not recut, "a second cut at one moment closes nothing"
        return [*records, record("session.bound", body, now)]

    def _become_unbound(self, event: Happened, reason: Reason, now: Now) -> list[Effect]:
        memory, binding = self._memory, self._memory.binding
        records = self._metering.edge(now)
        binding.on(event)
        binding.reason, binding.bound, memory.dirty = reason, None, True
        assert memory.session is not None
        body = SessionUnbound(session=memory.session.id, pev=binding.pev, reason=reason,
                              charging=memory.charge_without_binding)
        tell = TellPev(pevlink.Reject(reason=reason, sentence=sentence(reason)))
        return [*records, record("session.unbound", body, now), tell]

    def _tell_confirmed(self, ack: bool) -> list[Effect]:
        bound = self._memory.binding.bound
        if bound is None:
            return []
        return [TellPev(pevlink.Confirm(binding=bound.binding, program=bound.program, tariff=bound.tariff,
                                        valid_until=bound.valid_until, ticket=bound.ticket, ack=ack))]

    def _noted(self, code: Reason, message_id: str, now: Now) -> Effect:
        return record("event", Happening(code=code, session="", detail={"message": message_id}), now)
