"""Clocks that jump, drift back and lag behind: nothing is lost, doubled or crashed (P1-N1)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sim.world import HOUR_MS, MINUTE_MS, Place, World


def charging(**place: object) -> World:
    """A world in which a bound vehicle charges since some minutes."""
    world = World(3)
    world = World(3, world.with_place(**place))
    world.boot()
    world.run(MINUTE_MS)
    world.vehicle.plug()
    world.run(3 * MINUTE_MS)
    assert world.board.closed
    return world


@pytest.mark.req("P1-N1")
@pytest.mark.parametrize("poll_ms", [700, 2_000])
@pytest.mark.parametrize("back_s", [1, 2, 3])
def test_energy_is_never_without_time_when_the_clock_is_slewed_back(back_s: int, poll_ms: int) -> None:
    """A step below the watch's threshold, and a session edge at that very moment."""
    world = charging(poll_ms=poll_ms)
    for _ in range(12):
        world.vehicle.leave()
        world.run(poll_ms + 500)
        world.step_clock(-back_s)
        world.vehicle.plug()
        world.run(90_000)
    world.settle()


@pytest.mark.req("P1-N1")
@pytest.mark.parametrize("step_s", [-7200, -3600, -61, 61, 3600, 7200])
def test_a_reading_that_was_under_way_while_the_clock_was_set_loses_nothing(step_s: int) -> None:
    world = charging(lag_ms=9_000, poll_ms=10_000)
    for _ in range(20):
        world.run(100_300)
        world.step_clock(step_s)
        world.run(25_000)
        world.vehicle.leave()
        world.run(20_000)
        world.vehicle.plug()
        world.run(2 * MINUTE_MS)
    world.settle()
    assert len(world.laws.ended) == 21
