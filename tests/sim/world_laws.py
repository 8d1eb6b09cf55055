"""What must hold in every world: after each event, after each write, before each effect, and at the end.

The laws look at events, effects and the journal only; they share the tariff arithmetic and `doubt` with the agent, and
nothing else. `Laws` never changes the world.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent.core.clock import Now
from agent.core.effects import AskToClose, Effect, Forget, OpenContactor, Record, SendBatch, ShowState
from agent.core.events import BoardFailed, BoardFound, BoardReported, Event, MeterFailed, MeterRead, Received
from agent.core.outbox import BATCH, WINDOW
from agent.core.session import Snapshot
from esci.messages import INTERVALS_S, Ack, BindConfirm, BindReject, Params, TariffSent
from esci.reasons import Reason
from esci.records import Happening, Interval, SessionBegun, SessionBound, SessionEnded, SessionUnbound, doubt
from esci.tariff import Tariff, TariffDocument, Unrateable, Usage, cents, parse, price_at, rate
from esci.units import parse_utc

if TYPE_CHECKING:
    from sim.world import World

EXCUSED = {"gap", "restart", "clock-stepped", "clock-unsynced", "meter-reset"}
LAST_WINDOW = WINDOW * BATCH


class Laws:
    """The observer of one world. `intervals` are all that were written, in order, with what the charger held then."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.intervals: list[Interval] = []
        self.receipts: dict[str, tuple[int, int, int]] = {}  # session -> nano-USD, Wh, pending Wh, recomputed here
        self.ended: list[SessionEnded] = []
        self.events: list[Happening] = []
        self.bound: list[SessionBound] = []
        self.unbound: list[SessionUnbound] = []
        self.begun: list[SessionBegun] = []
        self.asks = 0
        self.first_read_wh: int | None = None
        self.lost_wh = 0  # what resets took from the register
        self._tariffs: dict[tuple[str, str], Tariff] = {}
        self._acked = 0
        self._fresh()
        self._session = ""
        self._outcome: SessionBound | SessionUnbound | None = None
        self._begun_ms = 0
        self._wait_s = 0
        self._answers: list[BindConfirm | BindReject] = []
        self._ended = True
        self._quality = "synced"
        self._unsynced = 0
        self._reads = 0
        self._boot_ms = 0

    def _fresh(self) -> None:
        """What only this life of the process knows."""
        self._order: str | None = None
        self._board_bad: str | None = "not heard yet"
        self._unprotected = False
        self._meter: MeterRead | None = None

    # ---- the process starts

    def on_boot(self, kept: Snapshot | None) -> None:
        """A new life: the board's state is unknown, and the journal is all that is left."""
        self._fresh()
        self._boot_ms = self._world.ms
        written = self._session if not self._ended else ""
        if self._world.journal.snapshot is not None:
            assert kept is not None
            assert (kept.session.id if kept.session else "") == written, "the snapshot fits the records"

    # ---- after each event

    def on_handled(self, event: Event, now: Now, effects: Sequence[Effect]) -> None:
        """The laws of one step."""
        self._take_in(event)
        self._unsynced += now.quality != "synced"
        self._records_first(effects)
        self._opens_at_once(event, effects)
        self._shows_the_truth(effects)
        self._cuts_are_clean(event, effects)
        self._sends_within_the_window(effects)

    def _take_in(self, event: Event) -> None:
        match event:
            case BoardFailed():
                self._board_bad = "silent"
            case BoardFound(identity=identity):
                self._unprotected = bool(identity.protections_off)
            case BoardReported(status=status):
                self._board_bad = status.fault
            case MeterRead():
                self._meter = event
                self._read_ms = self._world.real_ms(event.read_at)
                self._reads += 1
                self._unsynced += event.read_at.quality != "synced"
                if self.first_read_wh is None:
                    self.first_read_wh = event.reading.import_wh
            case MeterFailed():
                self._meter = None
            case Received(message=BindConfirm() | BindReject() as answer):
                self._answers.append(answer)
            case Received(message=Ack() as ack):
                if ack.epoch == self._world.journal.epoch:
                    self._acked = max(self._acked, ack.seq)
            case _:
                pass

    @staticmethod
    def _records_first(effects: Sequence[Effect]) -> None:
        """P1-S3.1: what is acknowledged, closed or said was written before; an opening waits for nothing."""
        names = [type(effect).__name__ for effect in effects]
        openings = names.count("OpenContactor")
        assert names[:openings] == ["OpenContactor"] * openings, names
        kinds = names[openings:]
        records = kinds.count("Record")
        assert kinds[:records] == ["Record"] * records, kinds
        assert kinds.count("Remember") <= 1 and "Remember" not in kinds[:records]
        assert not records or kinds[records] == "Remember", kinds
        if "Remember" in kinds:
            assert kinds.index("Remember") == records, kinds

    def _opens_at_once(self, event: Event, effects: Sequence[Effect]) -> None:
        """A fault or silence withdraws the permission in the same step."""
        bad = (isinstance(event, BoardFailed)
               or (isinstance(event, BoardReported) and event.status.fault is not None)
               or (isinstance(event, BoardFound) and bool(event.identity.protections_off)))
        if bad and self._order == "ask":
            assert any(isinstance(effect, OpenContactor) for effect in effects), f"{event!r} leaves the permission"

    def _shows_the_truth(self, effects: Sequence[Effect]) -> None:
        """P1-B6: unknown is None, never 0 and never an old value."""
        for effect in effects:
            if isinstance(effect, ShowState):
                read = self._meter
                assert effect.state.register_wh == (None if read is None else read.reading.import_wh)
                assert effect.state.power_w == (None if read is None else read.reading.power_w)

    def _cuts_are_clean(self, event: Event, effects: Sequence[Effect]) -> None:
        """P1-F24, S3.1: clean boundaries, price changes, session edges, and flagged exceptions; nothing else."""
        records = [effect for effect in effects if isinstance(effect, Record)]
        edge = isinstance(event, Received) and isinstance(event.message, TariffSent | Params)
        for record in records:
            edge |= record.kind.startswith("session.") or (isinstance(record.body, Happening) and record.body.code in (
                Reason.METER_RESET, Reason.CLOCK_STEPPED))
        bodies = [record.body for record in records if isinstance(record.body, Interval)]
        edge |= any("gap" in body.flags for body in bodies)
        for body in bodies:
            if not edge and not self._is_clean(body):
                raise AssertionError(f"{body!r} ends at no boundary, after {type(event).__name__}")

    def _is_clean(self, body: Interval) -> bool:
        end = parse_utc(body.end)
        second = end.hour * 3600 + end.minute * 60 + end.second
        if any(second % interval_s == 0 for interval_s in INTERVALS_S):
            return True
        tariff = None if body.tariff is None else self._tariffs.get((body.tariff.code, body.tariff.version))
        start = parse_utc(body.start)
        return tariff is not None and price_at(tariff, start) != price_at(tariff, end)

    def _sends_within_the_window(self, effects: Sequence[Effect]) -> None:
        """P1-S3.1: never beyond the window, never what is not written."""
        for effect in effects:
            if isinstance(effect, SendBatch):
                assert 1 <= effect.count <= BATCH
                assert effect.first_seq + effect.count - 1 - self._world.journal.acked_seq <= LAST_WINDOW + BATCH

    # ---- before an effect is done

    def on_doing(self, effect: Effect) -> None:
        """The laws of one effect, at the moment it is done."""
        match effect:
            case AskToClose():
                self._may_ask()
                self._order = "ask"
            case OpenContactor():
                self._order = "open"
            case Forget(seq=seq):
                assert seq <= self._acked, "forgotten without an acknowledgement"
            case SendBatch(first_seq=first_seq, count=count):
                assert first_seq + count - 1 <= self._world.journal.last_seq, "sent before it was written"
            case _:
                pass

    def _may_ask(self) -> None:
        """P1-S2.7, N2, N3: only after the binding's outcome is written, and never beside a fault or silence."""
        self.asks += 1
        assert self._board_bad is None, f"asked to close while the board is bad: {self._board_bad}"
        assert not self._unprotected, "asked to close an unprotected board"
        assert not self._ended, "asked to close without a session"
        outcome = self._outcome
        assert outcome is not None, "asked to close before the binding's outcome was written"
        if isinstance(outcome, SessionBound):
            assert any(isinstance(one, BindConfirm) and one.binding == outcome.binding for one in self._answers)
            return
        station = self._world.station
        assert station is not None and station.memory.charge_without_binding, "the customer forbids it"
        if outcome.reason in (Reason.NO_PEV_LINK, Reason.UTILITY_UNREACHABLE):
            waited = self._world.ms - self._begun_ms >= self._wait_s * 1000
            adopted = self._boot_ms > self._begun_ms and self._world.ms - self._boot_ms >= self._waiting_s() * 1000
            assert waited or adopted, "asked to close before the wait was over"
        else:
            assert any(isinstance(one, BindReject) and one.reason == outcome.reason for one in self._answers)

    # ---- after each write

    def on_written(self, records: Sequence[Record]) -> None:
        """The laws of the journal."""
        journal = self._world.journal
        self._tariffs = {key: self._tariffs.get(key) or parse(TariffDocument.model_validate_json(text))
                         for key, text in journal.tariffs.items()}
        flags = {flag for record in records if isinstance(record.body, Interval) for flag in record.body.flags}
        is_plain = not flags & EXCUSED and not any(record.kind == "event" for record in records)
        for record in records:
            match record.body:
                case Interval() as body:
                    self._on_interval(body)
                    self._times_are_true(body, is_plain)
                case SessionBegun() as begun:
                    assert self._ended, "a session begins when none is open"
                    self.begun.append(begun)
                    self._session, self._ended, self._outcome = begun.session, False, None
                    self._begun_ms, self._wait_s = self._world.ms, self._waiting_s()
                case SessionBound() | SessionUnbound() as outcome:
                    assert outcome.session == self._session and not self._ended
                    self._on_outcome(outcome)
                case SessionEnded() as ended:
                    self._on_ended(ended)
                case Happening() as event:
                    self._on_event(event)
                case _:
                    pass

    def _waiting_s(self) -> int:
        station = self._world.station
        assert station is not None
        return station.memory.binding_wait_s

    def _on_outcome(self, outcome: SessionBound | SessionUnbound) -> None:
        assert self._outcome is None, "a plug-in has one outcome"
        self._outcome = outcome
        if isinstance(outcome, SessionBound):
            self.bound.append(outcome)
        else:
            self.unbound.append(outcome)

    def _on_interval(self, body: Interval) -> None:
        """Energy telescopes; the interval belongs to the session that is open; the receipt follows."""
        assert body.energy_wh == body.register_end_wh - body.register_start_wh >= 0
        assert body.start <= body.end
        before = self.intervals[-1] if self.intervals else None
        expected = self.first_read_wh if before is None else before.register_end_wh
        if self._reset_wh is not None:
            expected, self._reset_wh = self._reset_wh, None
        assert body.register_start_wh == expected, f"{body!r} does not go on at {expected}"
        assert body.session == ("" if self._ended else self._session), "the interval's session is the open one"
        bound = self._outcome if isinstance(self._outcome, SessionBound) and not self._ended else None
        assert body.binding == (bound.binding if bound else ""), "the interval's binding is the session's"
        assert body.start < body.end or body.energy_wh == 0 or doubt(body) is not None, f"energy without time: {body!r}"
        self._quality_is_told(body)
        self.intervals.append(body)
        if body.session:
            self._add_to_receipt(body)

    _reset_wh: int | None = None
    _read_ms = 0
    _cut_ms: int | None = None

    def _times_are_true(self, body: Interval, is_plain: bool) -> None:
        """P1-N1: an interval without a flag is as long as it says, and never longer than an hour."""
        told_s = (parse_utc(body.end) - parse_utc(body.start)).total_seconds()
        if is_plain and self._cut_ms is not None:
            true_s = (self._read_ms - self._cut_ms) / 1000
            assert abs(told_s - true_s) <= 60, f"{body!r} took {true_s} s in truth"
            assert told_s <= 3660, f"{body!r} is too long"
        self._cut_ms = self._read_ms

    def _quality_is_told(self, body: Interval) -> None:
        """P1-N1: unsynced is flagged; and once every reading was synced again, no longer."""
        flagged = "clock-unsynced" in body.flags
        if self._unsynced:
            self._quality = "unsynced"
        elif self._reads > 3 and "restart" not in body.flags and "gap" not in body.flags:
            assert not flagged or self._quality == "unsynced", f"flagged long after the clock was set: {body!r}"
            self._quality = "synced"
        self._unsynced = self._reads = 0

    def _add_to_receipt(self, body: Interval) -> None:
        nano, energy_wh, pending_wh = self.receipts.get(body.session, (0, 0, 0))
        tariff = None if body.tariff is None else self._tariffs.get((body.tariff.code, body.tariff.version))
        pending = body.energy_wh
        if doubt(body) is None and tariff is not None:
            (line,), _ = rate(tariff, [Usage(parse_utc(body.start), parse_utc(body.end), body.energy_wh)])
            if isinstance(line, Unrateable):
                assert line.reason is not Reason.PRICE_CHANGE_INSIDE or body.energy_wh == 0, f"straddles: {body!r}"
            else:
                nano, pending = nano + body.energy_wh * line.micro_usd_per_kwh, 0
        self.receipts[body.session] = nano, energy_wh + body.energy_wh, pending_wh + pending

    def _on_ended(self, ended: SessionEnded) -> None:
        """P1-B4, B6: the receipt is the sum of its lines to the cent; without a meter there is none."""
        assert ended.session == self._session and not self._ended
        self._ended = True
        self.ended.append(ended)
        nano, energy_wh, pending_wh = self.receipts.get(ended.session, (0, 0, 0))
        assert ended.pending_wh == pending_wh, f"{ended!r}: the intervals say {pending_wh} Wh are pending"
        if ended.energy_wh is None:
            assert ended.unmetered and ended.receipt_cents is None and energy_wh == 0
        else:
            assert ended.energy_wh == energy_wh and ended.receipt_cents == cents(nano), (ended, energy_wh, nano)

    def _on_event(self, event: Happening) -> None:
        self.events.append(event)
        if event.code is Reason.METER_RESET:
            before_wh, after_wh = event.detail["before_wh"], event.detail["after_wh"]
            assert isinstance(before_wh, int) and isinstance(after_wh, int)
            known_wh = self._reset_wh if self._reset_wh is not None or not self.intervals else (
                self.intervals[-1].register_end_wh)
            assert known_wh is None or known_wh <= before_wh
            self._reset_wh = after_wh
            self.lost_wh += before_wh - after_wh

    # ---- at the end

    def at_end(self) -> None:
        """P1-S3.1: metered = recorded + running; recorded = taken by the utility, once, with an unbroken chain."""
        journal, utility = self._world.journal, self._world.utility
        taken = utility.items.get(journal.epoch, [])
        assert journal.acked_seq == journal.last_seq == len(taken), (journal.acked_seq, journal.last_seq, len(taken))
        assert taken == journal.items
        assert utility.digests[journal.epoch] == journal.digests
        assert self._ended, "no session stays open"
        station = self._world.station
        assert station is not None
        recorder = station.metering.recorder
        assert recorder.start is not None and recorder.last is not None
        recorded_wh = sum(body.energy_wh for body in self.intervals)
        running_wh = recorder.last.register_wh - recorder.start.register_wh
        assert self.first_read_wh is not None
        assert self.first_read_wh + recorded_wh - self.lost_wh + running_wh == self._world.meter.register_wh
        assert recorder.last.register_wh == self._world.meter.register_wh, "nothing flows any more"
