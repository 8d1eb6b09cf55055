"""Laws of the interval recorder under any readings, clock steps, cuts, resets, restarts: nothing lost or doubled."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.clock import STEP_S, ClockWatch, Now
from agent.core.intervals import (
    IntervalClosed,
    IntervalRecorder,
    MeterJumped,
    MeterWentBack,
    Outcome,
    Reading,
    next_clean,
)
from esci.messages import INTERVALS_S

START = datetime(2025, 3, 9, 9, 58, 20, tzinfo=UTC)
POWER_W, TOLERANCE_S = 9_600, 30
moments = st.datetimes(datetime(2024, 1, 1), datetime(2034, 1, 1), timezones=st.just(UTC))
actions = st.one_of(
    st.tuples(st.just("read"), st.integers(1, 60), st.integers(0, 9_600)),  # after s, at W
    st.tuples(st.just("read"), st.integers(61, 9_000), st.integers(0, 9_600)),  # the meter was silent
    st.tuples(st.just("reset"), st.integers(1, 60), st.integers(0, 100)),
    st.tuples(st.just("jump"), st.integers(1, 60), st.integers(20_000, 90_000)),
    st.tuples(st.just("cut"), st.just(0), st.just(0)),
    st.tuples(st.just("step"), st.integers(-9_000, 9_000), st.just(0)),
    st.tuples(st.just("slew"), st.integers(-STEP_S, STEP_S), st.just(0)),
    st.tuples(st.just("length"), st.sampled_from(INTERVALS_S), st.just(0)),
    st.tuples(st.just("restart"), st.integers(0, 9_000), st.just(0)),
    st.tuples(st.just("sync"), st.integers(0, 1), st.just(0)),
)


@dataclass
class Bench:
    """A recorder, a register and a clock that can be set."""

    interval_s: int
    price_hours: int = 0
    mono_s: int = 0
    register_wh: int = 50_000
    shift_s: int = 0
    synced: bool = True
    lost_wh: int = 0
    first_wh: int | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    watch: ClockWatch = field(default_factory=ClockWatch)

    def __post_init__(self) -> None:
        self.recorder = self.new()

    def new(self) -> IntervalRecorder:
        return IntervalRecorder(self.interval_s, TOLERANCE_S, POWER_W, self._price)

    def now(self) -> Now:
        return Now(self.mono_s * 1000, START + timedelta(seconds=self.mono_s + self.shift_s), self.synced)

    def do(self, kind: str, number: int, value: int) -> None:
        """One action of the story."""
        match kind:
            case "cut":
                self.outcomes += self.recorder.cut_now()
            case "step" | "slew":
                self.shift_s += number
                self._notice()
            case "length":
                self.interval_s = number
                self.recorder.set_interval(number)
            case "restart":
                self._restart(number)
            case "sync":
                self.synced = bool(number)
            case _:
                self.mono_s += number
                if kind == "reset":
                    self.lost_wh += self.register_wh - min(value, self.register_wh)
                    self.register_wh = min(value, self.register_wh)
                else:
                    self.register_wh += value if kind == "jump" else number * value // 3_600
                self.read()

    def read(self) -> None:
        """The meter is read at this moment."""
        self._notice()
        if self.first_wh is None:
            self.first_wh = self.register_wh
        self.outcomes += self.recorder.on_reading(self.register_wh, self.now())

    def _notice(self) -> None:
        step_s = self.watch.step_s(self.now())
        if step_s:
            self.outcomes += self.recorder.on_clock_step(step_s, self.synced)

    def _restart(self, down_s: int) -> None:
        """Only where the running interval began, where it ends, and its flags survive."""
        start, boundary, flags = self.recorder.start, self.recorder.boundary, self.recorder.flags
        self.mono_s += down_s
        self.recorder, self.watch = self.new(), ClockWatch()
        if start is not None and boundary is not None:
            age_ms = max(0, round((self.now().utc - start.utc).total_seconds() * 1000))
            begun = Reading(start.utc, start.register_wh, self.now().mono_ms - age_ms)
            self.recorder.resume(begun, boundary, set(flags))

    def _price(self, moment: datetime) -> datetime | None:
        return next_clean(moment, self.price_hours * 3600) if self.price_hours else None


def play(story: list[tuple[str, int, int]], interval_s: int, price_hours: int = 0) -> Bench:
    bench = Bench(interval_s, price_hours)
    bench.read()
    for kind, number, value in story:
        bench.do(kind, number, value)
    bench.mono_s += 5
    bench.read()
    bench.outcomes += bench.recorder.cut_now()
    return bench


stories = st.lists(actions, max_size=40)
lengths = st.sampled_from(INTERVALS_S)


def closed(bench: Bench) -> list[IntervalClosed]:
    return [outcome for outcome in bench.outcomes if isinstance(outcome, IntervalClosed)]


@pytest.mark.req("P1-S3.1", "P1-N1", "P1-F24")
@given(stories, lengths)
def test_energies_telescope_to_the_register(story: list[tuple[str, int, int]], interval_s: int) -> None:
    bench = play(story, interval_s)
    expected = bench.first_wh
    for outcome in bench.outcomes:
        if isinstance(outcome, IntervalClosed):
            assert outcome.register_start_wh == expected
            assert outcome.register_start_wh <= outcome.register_end_wh
            expected = outcome.register_end_wh
        elif isinstance(outcome, MeterWentBack):
            assert expected is not None and expected <= outcome.before_wh
            expected = outcome.after_wh
    assert expected == bench.register_wh
    if not any(kind in ("reset",) for kind, _, _ in story):
        total_wh = sum(one.register_end_wh - one.register_start_wh for one in closed(bench))
        assert bench.first_wh is not None and bench.first_wh + total_wh == bench.register_wh


@pytest.mark.req("P1-N1")
@given(stories, lengths)
def test_an_interval_never_ends_before_it_starts(story: list[tuple[str, int, int]], interval_s: int) -> None:
    assert all(one.start <= one.end for one in closed(play(story, interval_s)))


@pytest.mark.req("P1-S3.1", "P1-F24")
@given(st.lists(st.one_of(
    st.tuples(st.just("read"), st.integers(1, TOLERANCE_S), st.integers(0, 9_600)),
    st.tuples(st.just("length"), st.sampled_from(INTERVALS_S), st.just(0))), min_size=50, max_size=400),
    lengths, st.sampled_from([0, 1, 3]))
def test_with_a_good_meter_and_clock_every_boundary_is_clean_and_none_is_missed(
    story: list[tuple[str, int, int]], interval_s: int, price_hours: int
) -> None:
    bench = Bench(interval_s, price_hours)
    bench.read()
    for kind, number, value in story:
        bench.do(kind, number, value)
        found = closed(bench)
        for before, after in pairwise(found):
            assert before.end == after.start
    second = [one.end.hour * 3600 + one.end.minute * 60 + one.end.second for one in closed(bench)]
    assert all(any(at % length == 0 for length in INTERVALS_S) for at in second)
    assert all(one.flags == () for one in closed(bench))
    if price_hours:
        assert all(next_clean(one.start, price_hours * 3600) >= one.end for one in closed(bench))


@pytest.mark.req("P1-F24")
@pytest.mark.parametrize("old_s", INTERVALS_S)
@pytest.mark.parametrize("new_s", INTERVALS_S)
def test_another_length_begins_when_the_running_interval_is_over(old_s: int, new_s: int) -> None:
    bench = Bench(old_s)
    bench.read()
    bench.do("read", 10, 7_200)
    first_end = next_clean(bench.now().utc, old_s)
    bench.do("length", new_s, 0)
    for _ in range(1_000):
        bench.do("read", 15, 7_200)
    ends = [one.end for one in closed(bench)]
    assert ends[0] == first_end
    assert ends[1] == next_clean(first_end, new_s)
    assert all(after - before == timedelta(seconds=new_s) for before, after in pairwise(ends[1:]))


@pytest.mark.req("P1-B6", "P1-S3.1")
@given(st.integers(TOLERANCE_S + 1, 90_000), lengths, st.integers(0, 9_600))
def test_a_hole_over_a_boundary_is_one_flagged_interval(silent_s: int, interval_s: int, power_w: int) -> None:
    bench = Bench(interval_s)
    bench.read()
    bench.do("read", 10, power_w)
    last = bench.now().utc
    boundary = next_clean(START, interval_s)
    bench.do("read", silent_s, power_w)
    gaps = [one for one in closed(bench) if "gap" in one.flags]
    if last + timedelta(seconds=silent_s) > boundary + timedelta(seconds=TOLERANCE_S) and last < boundary:
        assert [(one.start, one.end) for one in gaps] == [(last, bench.now().utc)]
        assert "jump" not in gaps[0].flags
    else:
        assert gaps == []


@pytest.mark.req("P1-S3.1")
@given(st.integers(1, 3_600), st.integers(0, 100_000))
def test_a_rise_beyond_the_circuit_is_a_jump_and_one_within_it_is_not(seconds: int, rise_wh: int) -> None:
    bench = Bench(3600)
    bench.read()
    bench.do("jump", seconds, rise_wh)
    told = [one for one in bench.outcomes if isinstance(one, MeterJumped)]
    possible_wh = POWER_W * seconds / 3600
    if rise_wh > possible_wh + 30:
        assert told == [MeterJumped(50_000, 50_000 + rise_wh, seconds)]
    if rise_wh <= possible_wh:
        assert told == []


@pytest.mark.req("P1-N1")
@given(stories, lengths)
def test_unsynced_is_flagged_while_it_lasts_and_not_after(story: list[tuple[str, int, int]], interval_s: int) -> None:
    bench = play([*story, ("sync", 0, 0), ("read", 20, 7_200), ("read", 20, 7_200), ("cut", 0, 0)], interval_s)
    found = closed(play([*story, ("sync", 0, 0), ("read", 20, 7_200), ("read", 20, 7_200), ("cut", 0, 0)], interval_s))
    assert "clock-unsynced" in found[-1].flags
    bench.do("sync", 1, 0)
    for _ in range(3):
        bench.do("read", 20, 7_200)
        bench.do("cut", 0, 0)
    assert "clock-unsynced" not in closed(bench)[-1].flags


@pytest.mark.req("P1-S3.1")
def test_a_reset_is_told_on_the_interval_after_it_even_when_that_is_cut_at_once() -> None:
    bench = Bench(900)
    bench.read()
    bench.do("reset", 10, 0)
    bench.do("cut", 0, 0)
    bench.do("read", 10, 7_200)
    bench.do("cut", 0, 0)
    assert closed(bench)[-1].flags == ("meter-reset",)


@pytest.mark.req("P1-N1")
def test_a_reading_older_than_the_last_is_ignored() -> None:
    bench = Bench(900)
    bench.read()
    bench.do("read", 10, 7_200)
    assert bench.recorder.on_reading(1, Now(9_000, START, synced=True)) == []
    assert bench.recorder.last is not None and bench.recorder.last.register_wh == bench.register_wh


@pytest.mark.req("P1-F24", "P1-N1")
@given(moments, lengths)
def test_the_next_clean_boundary_is_the_first_that_divides_the_day(moment: datetime, interval_s: int) -> None:
    clean = next_clean(moment, interval_s)
    assert moment < clean <= moment + timedelta(seconds=interval_s)
    assert (clean.hour * 3600 + clean.minute * 60 + clean.second) % interval_s == 0 and clean.microsecond == 0
