"""Clocks that jump, drift back and lag behind: nothing is lost, doubled or crashed (P1-N1)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sim.world import HOUR_MS, MINUTE_MS, Place, World


def charging(place: Place) -> World:
    """A world in which a bound vehicle charges since some minutes."""
    world = World(3, place)
    world.boot()
    world.run(MINUTE_MS)
    world.vehicle.plug()
    world.run(3 * MINUTE_MS)
    assert world.board.closed
    return world


@pytest.mark.req("P1-N1")
@pytest.mark.parametrize("poll_ms", [2_000])
@pytest.mark.parametrize("back_s", [1, 2, 3])
def test_energy_is_never_without_time_when_the_clock_is_slewed_back(back_s: int, poll_ms: int) -> None:
    """A step below the watch's threshold, and a session edge at that very moment."""
    world = charging(Place(poll_ms=poll_ms))
    for _ in range(8):
        world.vehicle.leave()
        world.run(poll_ms + 500)
        world.step_clock(-back_s)
        world.vehicle.plug()
        world.run(90_000)
    world.settle()


@pytest.mark.req("P1-N1")
@pytest.mark.parametrize("step_s", [-7200, -3600, -61, 61, 3600, 7200])
def test_a_reading_that_was_under_way_while_the_clock_was_set_loses_nothing(step_s: int) -> None:
    world = charging(Place(lag_ms=9_000))
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
    assert not any("gap" in body.flags for body in world.laws.intervals)


@pytest.mark.req("P1-N1")
def test_time_before_the_clock_was_set_is_flagged_and_time_after_it_is_not() -> None:
    world = World(5)
    world.synced = False
    world.set_clock(datetime(1970, 1, 1, 0, 0, 30, tzinfo=UTC))
    world.boot()
    world.run(20 * MINUTE_MS)
    world.vehicle.plug()
    world.run(40 * MINUTE_MS)
    world.synced = True
    world.set_clock(None)
    world.run(HOUR_MS)
    world.settle()
    flagged = [body for body in world.laws.intervals if "clock-unsynced" in body.flags]
    assert flagged and all(body.start < "2000" for body in flagged)
    assert any(body.energy_wh for body in flagged)
    (ended,) = world.laws.ended
    assert ended.energy_wh and 0 < ended.pending_wh < ended.energy_wh
    assert ended.pending_wh == sum(body.energy_wh for body in flagged)


@pytest.mark.req("P1-N1")
@pytest.mark.parametrize("power_loss", [False, True])
def test_unsynced_ends_when_the_clock_was_set_while_the_agent_was_down(power_loss: bool) -> None:
    """The flag of the interval before must not stick to all that follow."""
    world = World(6)
    world.synced = False
    world.set_clock(datetime(1970, 1, 1, 0, 0, 30, tzinfo=UTC))
    world.boot()
    world.run(20 * MINUTE_MS)
    world.kill(MINUTE_MS, power_loss)
    world.synced = True
    world.set_clock(None)
    world.run(5 * MINUTE_MS)
    world.vehicle.plug()
    world.run(HOUR_MS)
    world.settle()
    (ended,) = world.laws.ended
    assert ended.energy_wh and ended.pending_wh == 0


@pytest.mark.req("P1-N1")
@pytest.mark.parametrize("step_s", [-7200, -61, 61, 3600 * 5])
def test_the_receipt_of_a_session_is_the_same_energy_when_the_clock_jumps(step_s: int) -> None:
    straight, jumped = charging(Place()), charging(Place())
    jumped.step_clock(step_s)
    for world in (straight, jumped):
        world.run(HOUR_MS)
        world.settle()
    assert jumped.laws.ended[0].energy_wh == straight.laws.ended[0].energy_wh
    assert any("clock-stepped" in body.flags for body in jumped.laws.intervals)


@pytest.mark.req("P1-N1", "P1-S3.1")
@pytest.mark.parametrize("back_s", [600, 7200])
def test_a_clock_set_back_while_the_agent_was_down_makes_no_jump_and_loses_nothing(back_s: int) -> None:
    """The interval that was running lies in the future then: it begins anew, flagged."""
    world = charging(Place())
    world.kill(MINUTE_MS)
    world.step_clock(-back_s)
    world.run(HOUR_MS)
    world.settle()
    assert not any("jump" in body.flags for body in world.laws.intervals)
    assert any("clock-stepped" in body.flags for body in world.laws.intervals)
    (ended,) = world.laws.ended
    assert ended.energy_wh
    assert 0 < ended.pending_wh < ended.energy_wh
