"""Intervals of energy between register readings, on clean UTC boundaries (P1-S3.1, F20, F24, N1, B6).

An interval ends with the first reading at or after its boundary. When no reading comes in time, the hole becomes one
interval with flag `gap` from the last reading to the next: its energy is known, its spread over time is not, and
nothing is smoothed. Registers telescope: the energies of all intervals add up to the register, resets apart.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from agent.core.clock import Now

Cut = Callable[[datetime], datetime | None]  # first moment after the given one at which the price changes
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class IntervalClosed:
    """Energy from start to end; both registers in Wh."""

    start: datetime
    end: datetime
    register_start_wh: int
    register_end_wh: int
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MeterWentBack:
    """The register fell: reset, roll-over or another meter. The energy in between is unknown."""

    before_wh: int
    after_wh: int


@dataclass(frozen=True, slots=True)
class MeterJumped:
    """The register rose by more than the circuit can carry."""

    before_wh: int
    after_wh: int
    seconds: int


Outcome = IntervalClosed | MeterWentBack | MeterJumped


def next_clean(moment: datetime, interval_s: int) -> datetime:
    """The first clean boundary after the moment; boundaries divide the UTC day."""
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    passed_s = int((moment - midnight).total_seconds())
    return midnight + timedelta(seconds=min(_DAY_S, (passed_s // interval_s + 1) * interval_s))


@dataclass(slots=True)
class Reading:
    """The last reading, or where the running interval began."""

    utc: datetime
    register_wh: int
    mono_ms: int
    synced: bool = True


@dataclass(slots=True)
class IntervalRecorder:
    """Cuts the register's course into intervals.

    tolerance_s: how long after a boundary a reading still counts as the boundary's.
    power_max_w: what the circuit can carry; a faster rise is a jump.
    """

    interval_s: int
    tolerance_s: int
    power_max_w: int
    cut: Cut = field(default=lambda _moment: None)
    start: Reading | None = None
    last: Reading | None = None
    boundary: datetime | None = None
    flags: set[str] = field(default_factory=set)

    def on_reading(self, register_wh: int, read_at: Now) -> list[Outcome]:
        """What this reading closes. A reading older than the last one is ignored."""
        reading = Reading(read_at.utc, register_wh, read_at.mono_ms, read_at.quality == "synced")
        last = self.last
        if last is None:
            self._begin(reading)
            return []
        if reading.mono_ms < last.mono_ms:
            return []
        if not reading.synced:
            self.flags.add("clock-unsynced")
        if register_wh < last.register_wh:
            return self._went_back(reading)
        outcomes: list[Outcome] = []
        if self._is_jump(last, reading):
            self.flags.add("jump")
            seconds = (reading.mono_ms - last.mono_ms) // 1000
            outcomes.append(MeterJumped(last.register_wh, register_wh, seconds))
        assert self.boundary is not None
        if reading.utc >= self.boundary:
            outcomes += self._cross(last, reading)
        self.last = reading
        return outcomes

    def cut_now(self) -> list[Outcome]:
        """Close at the last reading, for a session edge or another rate; nothing when no time has passed."""
        if self.last is None or self.start is None:
            return []
        outcomes = self._close(self.last)
        kept = set() if outcomes else self.flags  # nothing was closed that could tell them
        self._begin(self.last)
        self.flags |= kept
        return outcomes

    def on_clock_step(self, step_s: int, synced: bool) -> list[Outcome]:
        """utc was set: close by the old clock, go on by the new one from the same register."""
        if self.last is None:
            return []
        self.flags.add("clock-stepped")
        outcomes = self._close(self.last)
        moved = Reading(self.last.utc + timedelta(seconds=step_s), self.last.register_wh, self.last.mono_ms, synced)
        self._begin(moved)
        self.flags.add("clock-stepped")
        return outcomes

    def set_interval(self, interval_s: int) -> None:
        """Takes effect after the running interval, on a clean boundary of the new length (P1-F24)."""
        self.interval_s = interval_s

    def _begin(self, reading: Reading) -> None:
        self.start = self.last = reading
        self.flags = set() if reading.synced else {"clock-unsynced"}
        clean = next_clean(reading.utc, self.interval_s)
        priced = self.cut(reading.utc)
        self.boundary = clean if priced is None else min(clean, priced)

    def _is_jump(self, last: Reading, reading: Reading) -> bool:
        rise_wh = reading.register_wh - last.register_wh
        passed_ms = reading.mono_ms - last.mono_ms
        return rise_wh > 20 + self.power_max_w * (passed_ms + 2_000) // 3_600_000

    def _cross(self, last: Reading, reading: Reading) -> list[Outcome]:
        assert self.boundary is not None
        if reading.utc <= self.boundary + timedelta(seconds=self.tolerance_s):
            edge = Reading(self.boundary, reading.register_wh, reading.mono_ms, reading.synced)
            outcomes = self._close(edge)
            self._begin(edge)
            return outcomes
        kept = self.flags & ({"jump"} if reading.synced else {"jump", "clock-unsynced"})
        self.flags -= {"jump"}
        outcomes = self._close(last)
        self._begin(last)
        self.flags |= kept | {"gap"}
        outcomes += self._close(reading)
        self._begin(reading)
        return outcomes

    def _went_back(self, reading: Reading) -> list[Outcome]:
        assert self.last is not None
        before_wh = self.last.register_wh
        outcomes = [*self._close(self.last), MeterWentBack(before_wh, reading.register_wh)]
        self._begin(reading)
        self.flags.add("meter-reset")
        return outcomes

    def _close(self, end: Reading) -> list[Outcome]:
        assert self.start is not None
        begun = self.start
        assert end.register_wh >= begun.register_wh, "a closed interval never has negative energy"
        if end.utc <= begun.utc and end.register_wh == begun.register_wh:
            return []
        return [IntervalClosed(begun.utc, max(end.utc, begun.utc), begun.register_wh, end.register_wh,
                               tuple(sorted(self.flags)))]

    def resume(self, start: Reading, boundary: datetime | None, flags: set[str]) -> None:
        """Go on after a restart with the running interval; it is flagged. boundary None: the next clean one."""
        self._begin(Reading(start.utc, start.register_wh, start.mono_ms, "clock-unsynced" not in flags))
        self.flags = flags | {"restart"}
        if boundary is not None:
            priced = self.cut(start.utc)
            self.boundary = boundary if priced is None else min(boundary, priced)
