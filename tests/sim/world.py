"""Virtual time around the real station: an hour takes milliseconds, and one seed repeats the world.

The world owns time, the process (it can be killed between any two effects) and the network; its people and things are
in `world_parts`, what must hold at every step is in `world_laws`. Shares no decision with the agent's core.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from agent.core.clock import Now
from agent.core.effects import (
    AskToClose,
    Effect,
    Forget,
    KeepTariff,
    OpenContactor,
    Record,
    Remember,
    Send,
    SendBatch,
    ShowState,
    TellPev,
)
from agent.core.events import Event, Received, RecordsWritten, StopAsked, UplinkLost, UplinkOpened, Woke
from agent.core.session import Settings, Snapshot
from agent.core.station import Start, Station
from esci.messages import Down, IntervalS, Records, Up
from esci.tariff import TariffDocument
from esci.units import format_utc
from sim.world_laws import Laws
from sim.world_parts import Board, MemoryJournal, Meter, Utility, Vehicle

START = datetime(2025, 7, 16, 3, 0, 0, tzinfo=UTC)
DEVICE, PREMISES = "evse-1", "home-1"
SETTINGS = Settings(device=DEVICE, premises=PREMISES, software="1.0", circuit_max_ma=32_000, power_max_w=9_600,
                    tolerance_s=30, retry_s=20)
SECOND_MS, MINUTE_MS, HOUR_MS = 1_000, 60_000, 3_600_000


def seeds(default: int) -> list[int]:
    """Which worlds a campaign visits: PLUGBIND_SEED names one, PLUGBIND_CAMPAIGN says how many, else `default`."""
    one = os.environ.get("PLUGBIND_SEED")
    return [int(one)] if one else list(range(int(os.environ.get("PLUGBIND_CAMPAIGN", default))))


@dataclass(frozen=True, slots=True)
class Net:
    """How bad the network is. Chances of one message to be lost or doubled; each copy has a delay of its own."""

    loss: float = 0.0
    double: float = 0.0
    delay_max_ms: int = 50


@dataclass(frozen=True, slots=True)
class Place:
    """Where the world is and what the configuration says before the utility has spoken."""

    start: datetime = START
    timezone: str = "America/Los_Angeles"
    interval_s: IntervalS = 900
    binding_wait_s: int = 60
    charge_without_binding: bool = True
    poll_ms: int = 10_000
    lag_ms: int = 0  # from the reading of the meter to its event


class World:
    """One charger with its agent, board, meter, vehicle, network and utility."""

    def __init__(self, seed: int = 0, place: Place = Place(), net: Net = Net()) -> None:
        self.seed, self.place, self.net = seed, place, net
        self.rng = random.Random(seed)
        self.ms = 0
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._ids = itertools.count(1)
        self._utc_shift = timedelta(0)
        self.synced = True
        self._mono_origin_ms = 0
        self.journal = MemoryJournal(epoch=seed + 7)
        self.meter, self.board, self.vehicle = Meter(self), Board(self), Vehicle(self)
        self.utility = Utility(self)
        self.station: Station | None = None
        self.life = 0
        self.net_up, self.linked = True, False
        self.kill_chance = 0.0
        self.kill_in: int | None = None  # kill after that many more effects
        self._woken_for: tuple[int, int] | None = None
        self.person_looks = False  # before each start a person looks at the contactor and clears what it is barred for
        self.laws = Laws(self)

    # ---- time

    def now(self) -> Now:
        """Both clocks as the agent would read them."""
        utc = self.place.start + timedelta(milliseconds=self.ms) + self._utc_shift
        return Now(self.ms - self._mono_origin_ms, utc.replace(microsecond=0), self.synced)

    def real_ms(self, now: Now) -> int:
        """World time of what the agent's monotonic clock showed in this life of the machine."""
        return now.mono_ms + self._mono_origin_ms

    def step_clock(self, seconds: int) -> None:
        """Set the charger's utc."""
        self._utc_shift += timedelta(seconds=seconds)

    def sync(self) -> None:
        """A time server is found."""
        self.synced = True
        self.set_clock(None)

    def set_clock(self, utc: datetime | None) -> None:
        """Set the charger's utc to a moment; None: to the truth."""
        true = self.place.start + timedelta(milliseconds=self.ms)
        self._utc_shift = timedelta(0) if utc is None else utc - true

    def at(self, after_ms: int, what: Callable[[], None]) -> None:
        """Let it happen after that time; things of one millisecond keep their order."""
        heapq.heappush(self._due, (self.ms + after_ms, next(self._order), what))

    def run(self, for_ms: int) -> None:
        """Everything up to and including that time from now."""
        until_ms = self.ms + for_ms
        while self._due and self._due[0][0] <= until_ms:
            self.ms, _, what = heapq.heappop(self._due)
            what()
        self.ms = until_ms

    def new_id(self) -> str:
        """32 hex digits, never the same."""
        return f"{next(self._ids):032x}"

    # ---- the process

    def boot(self) -> None:
        """Start the agent from what its journal holds, and its drivers with it."""
        assert self.station is None
        journal, place = self.journal, self.place
        kept = None if journal.snapshot is None else Snapshot.model_validate_json(journal.snapshot)
        if kept is not None and self.person_looks:
            kept = kept.model_copy(update={"latched": {}})
        tariffs = [TariffDocument.model_validate_json(text) for text in journal.tariffs.values()]
        start = Start(SETTINGS, place.interval_s, place.binding_wait_s, place.charge_without_binding, journal.epoch,
                      journal.last_seq, journal.acked_seq, tariffs, kept)
        self.life += 1
        self.laws.on_boot(kept)
        self.station = Station(start, self.new_id, self.now())
        self.board.on_boot()
        self.meter.on_boot()
        self.vehicle.on_boot()
        self.linked = False
        self._reconnect()

    def kill(self, down_ms: int, power_loss: bool = False) -> None:
        """kill -9, or the power of the whole charger goes; after down_ms it starts again."""
        if self.station is None:
            return
        self.station, self._woken_for = None, None
        self.linked = False
        if power_loss:
            self.board.power_off()

        def again() -> None:
            if power_loss:
                self._mono_origin_ms = self.ms - 5_000
                self.board.power_on()
            self.boot()

        self.at(down_ms, again)

    def stop(self) -> None:
        """Ask the agent to stop, as systemd does."""
        self.post(StopAsked())

    def post(self, event: Event) -> None:
        """One event to the station, its effects, and the journal's word after them."""
        if self.station is None:
            return
        life = self.life
        self._handle(event)
        while self.is_alive(life) and self.journal.wrote:
            self.journal.wrote = False
            self._handle(RecordsWritten(self.journal.epoch, self.journal.last_seq))
        self._plan_wake(event)

    def is_alive(self, life: int) -> bool:
        """True while that life of the process goes on."""
        return self.station is not None and self.life == life

    def _handle(self, event: Event) -> None:
        assert self.station is not None
        now = self.now()
        effects = self.station.handle(event, now)
        self.laws.on_handled(event, now, effects)
        records: list[Record] = []
        for effect in effects:
            if self._is_killed():
                return
            if isinstance(effect, Record):
                records.append(effect)
            elif isinstance(effect, Remember):
                self.journal.append(records, effect.snapshot)
                self.laws.on_written(records)
                records = []
            else:
                assert not records, "records come first, with a snapshot after them"
                self._do(effect)
        assert not records, "records without a snapshot"

    def _is_killed(self) -> bool:
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in < 0:
                self.kill_in = None
                self.kill(self.rng.choice([500, 5_000, 60_000]))
                return True
        if self.kill_chance and self.rng.random() < self.kill_chance:
            self.kill(self.rng.choice([500, 5_000, 60_000, 20 * MINUTE_MS]), power_loss=self.rng.random() < 0.3)
            return True
        return False

    def _do(self, effect: Effect) -> None:
        self.laws.on_doing(effect)
        match effect:
            case AskToClose(limit_ma=limit_ma):
                self.board.ask(limit_ma)
            case OpenContactor():
                self.board.open()
            case Send(message=message):
                self._up(message)
            case SendBatch(first_seq=first_seq, count=count):
                prev, items = self.journal.batch(first_seq, count)
                self._up(Records(device=DEVICE, id=self.new_id(), at=format_utc(self.now().utc),
                                 epoch=self.journal.epoch, first_seq=first_seq, prev=prev, records=items))
            case Forget(seq=seq):
                self.journal.forget(seq)
            case TellPev(message=to_pev):
                self.vehicle.told(to_pev)
            case KeepTariff(code=code, version=version, document=document):
                self.journal.tariffs[code, version] = document
            case ShowState():
                pass
            case _:
                raise AssertionError(f"no hand for {effect!r}")

    def _plan_wake(self, event: Event) -> None:
        station = self.station
        if station is None:
            return
        wake_ms, mono_ms = station.next_wake_ms(), self.now().mono_ms
        if isinstance(event, Woke):
            assert wake_ms is None or wake_ms > mono_ms, f"woken at {mono_ms}, wants {wake_ms}"
        key = None if wake_ms is None else (self.life, wake_ms)
        if wake_ms is None or key == self._woken_for:
            return
        self._woken_for = key

        def wake() -> None:
            if key == self._woken_for and self.life == (key or (0, 0))[0]:
                self._woken_for = None
                self.post(Woke())

        self.at(max(0, wake_ms - mono_ms), wake)

    # ---- the network

    def net_down(self) -> None:
        """The utility can no longer be reached; the agent hears of it within the keep-alive."""
        self.net_up = False
        self._later(self.rng.randint(0, 15_000), self._lost)

    def net_back(self) -> None:
        """It can again."""
        self.net_up = True
        self._reconnect()

    def _later(self, after_ms: int, what: Callable[[], None]) -> None:
        """Unless the process was killed meanwhile."""
        life = self.life
        self.at(after_ms, lambda: what() if self.life == life and self.station is not None else None)

    later = _later

    def _lost(self) -> None:
        if self.linked and not self.net_up:
            self.linked = False
            self.post(UplinkLost("no answer"))

    def _reconnect(self) -> None:
        def opened() -> None:
            if self.net_up and not self.linked:
                self.linked = True
                self.post(UplinkOpened())

        self._later(self.rng.randint(200, 5_000), opened)

    def _up(self, message: Up) -> None:
        if self.linked and self.net_up:
            for delay_ms in self._delays_ms():
                self.at(delay_ms, lambda: self._arrive_up(message))

    def _arrive_up(self, message: Up) -> None:
        if self.net_up:
            for answer in self.utility.handle(message):
                self.down(answer)

    def down(self, message: Down) -> None:
        """The utility speaks to the charger."""
        for delay_ms in self._delays_ms():
            self._later(delay_ms, lambda: self.post(Received(message)) if self.net_up and self.linked else None)

    def _delays_ms(self) -> list[int]:
        copies = 0 if self.rng.random() < self.net.loss else 2 if self.rng.random() < self.net.double else 1
        return [self.rng.randint(1, self.net.delay_max_ms) for _ in range(copies)]

    # ---- the end

    def calm(self) -> None:
        """Faults end and the network is good, so that what must happen eventually can be asserted."""
        self.kill_chance, self.kill_in = 0.0, None
        self.net = Net()
        self.board.heal()
        self.meter.heal()
        self.vehicle.leave()
        if not self.synced:
            self.sync()
        if not self.net_up:
            self.net_back()

    def settle(self) -> None:
        """Calm, and long enough for everything to be delivered; then the laws of the end hold."""
        self.calm()
        self.run(2 * HOUR_MS)
        for _ in range(60):  # not at the very moment at which a record is under way
            if self.journal.acked_seq == self.journal.last_seq:
                break
            self.run(SECOND_MS)
        self.laws.at_end()
