"""Plain days and named misfortunes of one charger in virtual time; the laws of `world_laws` hold in each of them."""

from __future__ import annotations

import pytest

from agent.core.events import BoardFailed
from agent.core.pilot import Permission
from esci.messages import INTERVALS_S, IntervalS
from esci.reasons import Reason
from sim.world import HOUR_MS, MINUTE_MS, Net, Place, World
from sim.world_parts import SECOND_VIN, STRANGER_VIN, VIN


def at_home(place: Place | None = None, net: Net | None = None, seed: int = 1) -> World:
    """A world whose charger has said hello; nobody is plugged in."""
    world = World(seed, place or Place(), net or Net())
    world.boot()
    world.run(MINUTE_MS)
    return world


# ---- binding, consent and the contactor ----


@pytest.mark.req("P1-S1.6", "P1-S1.13", "P1-S1.16", "P1-S2.7", "P1-F28", "P1-N2")
def test_the_first_visit_sets_up_and_the_second_skips_it() -> None:
    world = at_home()
    for _ in range(2):
        world.vehicle.plug()
        world.run(30 * MINUTE_MS)
        assert world.board.closed
        world.vehicle.leave()
        world.run(5 * MINUTE_MS)
        assert not world.board.closed
    assert [bound.scenario for bound in world.laws.bound] == ["first", "again"]
    assert [ack.applied for ack in world.utility.set_up] == [True]
    world.settle()
    assert all(body.session for body in world.laws.intervals if body.energy_wh), "the last watt-hours are the session's"


@pytest.mark.req("P1-N3", "P1-S2.7")
def test_with_communication_charging_starts_at_once_after_the_confirmation() -> None:
    world = at_home(Place(binding_wait_s=300))
    world.vehicle.plug()
    world.run(30_000)
    assert world.board.closed
    world.settle()


@pytest.mark.req("P1-F10", "P1-B4", "P1-N3")
@pytest.mark.parametrize("wait_s", [0, 5, 60])
@pytest.mark.parametrize("why", ["mute", "dumb", "down"])
def test_without_binding_the_default_rate_after_the_wait_with_its_reason(why: str, wait_s: int) -> None:
    world = at_home(Place(binding_wait_s=wait_s))
    if why == "dumb":
        world.utility.dumb = True
    if why == "down":
        world.net_down()
    world.vehicle.plug(VIN, "mute" if why == "mute" else "early")
    world.run(max(0, wait_s * 1000 - 1_000))
    assert wait_s == 0 or world.laws.asks == 0
    world.run(40 * MINUTE_MS)
    assert world.board.closed
    world.utility.dumb = False
    world.settle()
    (unbound,), (ended,) = world.laws.unbound, world.laws.ended
    silent_utility = why != "mute" and (wait_s > 0)
    assert unbound.charging and (not silent_utility or unbound.reason is Reason.UTILITY_UNREACHABLE)
    assert ended.energy_wh and ended.pending_wh == 0
    lines = [body for body in world.laws.intervals if body.session and body.energy_wh]
    assert lines and {body.rate_reason for body in lines} == {unbound.reason}
    assert {body.tariff.code for body in lines if body.tariff} == {"DEFAULT"}


@pytest.mark.req("P1-F10", "P1-B4")
@pytest.mark.parametrize("pev", [VIN, STRANGER_VIN])
def test_without_consent_nothing_closes_without_a_binding(pev: str) -> None:
    world = at_home(Place(charge_without_binding=False))
    world.vehicle.plug(pev, "mute" if pev == VIN else "kind")
    world.run(2 * HOUR_MS)
    assert world.laws.asks == 0 and not world.board.closed
    assert [(one.charging, one.reason) for one in world.laws.unbound] == [
        (False, Reason.NO_PEV_LINK if pev == VIN else Reason.UNKNOWN_PEV)]
    world.settle()


@pytest.mark.req("P1-B4")
def test_an_unknown_vehicle_charges_on_the_default_rate() -> None:
    world = at_home()
    world.vehicle.plug(STRANGER_VIN)
    world.run(30_000)
    assert world.board.closed and world.vehicle.told_kinds[-1] == "reject"
    world.run(HOUR_MS)
    world.settle()
    assert [one.reason for one in world.laws.unbound] == [Reason.UNKNOWN_PEV]


@pytest.mark.req("P1-F10")
def test_consent_that_is_withdrawn_opens_the_contactor() -> None:
    world = at_home()
    world.vehicle.plug(VIN, "mute")
    world.run(10 * MINUTE_MS)
    assert world.board.closed
    world.utility.consent = False
    world.down(world.utility.params())
    world.run(30_000)
    assert not world.board.closed
    world.settle()


@pytest.mark.req("P1-S1.8")
def test_a_vehicle_that_becomes_another_is_refused() -> None:
    world = at_home()
    world.vehicle.plug(VIN, "swap")
    world.run(5 * MINUTE_MS)
    assert world.vehicle.told_kinds[-1] == "reject"
    world.settle()
    assert {body.pev for body in world.laws.intervals if body.binding} == {VIN}


@pytest.mark.req("P1-S1.12", "P1-S1.13")
def test_a_lost_acknowledgement_of_the_vehicle_is_heard_after_its_power_cycle() -> None:
    world = at_home(Place(binding_wait_s=300))
    world.vehicle.acks = False
    world.vehicle.plug()
    world.run(MINUTE_MS)
    assert not world.laws.bound
    world.vehicle.acks = True
    world.vehicle.power_cycle()
    world.run(MINUTE_MS)
    assert world.laws.bound and world.utility.bound
    world.settle()


# ---- the board ----


@pytest.mark.req("P1-S2.7")
@pytest.mark.parametrize("fault", ["fault", "silent", "unprotected"])
def test_a_fault_opens_and_charging_goes_on_when_it_is_gone(fault: str) -> None:
    world = at_home()
    world.vehicle.plug()
    world.run(10 * MINUTE_MS)
    board = world.board
    assert board.closed and world.station
    match fault:
        case "fault":
            board.set(fault="06 ground fault")
        case "silent":
            board.set(silent=True)
        case _:
            board.replace_by(("diode",))
    world.run(MINUTE_MS // 2)
    assert world.station.power.permission is Permission.BARRED
    board.heal()
    if fault == "unprotected":
        board.replace_by(())
    world.run(2 * MINUTE_MS)
    assert board.closed
    world.settle()


@pytest.mark.req("P1-S2.7")
def test_a_board_that_started_anew_is_asked_again() -> None:
    world = at_home()
    world.vehicle.plug()
    world.run(10 * MINUTE_MS)
    world.board.reboot()
    world.run(10 * MINUTE_MS)
    assert world.board.closed


@pytest.mark.req("P1-S2.7")
def test_a_contactor_that_closes_unasked_is_told_to_open_and_a_weld_is_named() -> None:
    world = at_home()
    world.vehicle.plug(VIN, "mute")
    world.run(30_000)
    world.board.set(rogue=True, wants=True)
    world.run(MINUTE_MS)
    assert world.station and world.station.power.permission is Permission.BARRED
    assert [event.code for event in world.laws.events] == [Reason.CONTACTOR_WELDED]
    world.settle()


@pytest.mark.req("P1-S2.7")
def test_after_silence_nothing_is_asked_before_the_board_has_reported() -> None:
    world = at_home()
    world.vehicle.plug()
    world.run(10 * MINUTE_MS)
    asks = world.laws.asks
    world.post(BoardFailed("no answer"))
    world.board.silent = True
    world.run(HOUR_MS)
    assert world.laws.asks == asks
    world.settle()


# ---- the meter ----


@pytest.mark.req("P1-B6")
def test_a_session_without_a_meter_is_unmetered_and_shows_nothing() -> None:
    world = at_home()
    world.meter.silent = True
    world.run(MINUTE_MS)
    world.vehicle.plug()
    world.run(HOUR_MS)
    assert world.board.closed and world.station
    state = world.station.state(world.now())
    assert (state.register_wh, state.power_w) == (None, None)
    world.vehicle.leave()
    world.run(5 * MINUTE_MS)
    (ended,) = world.laws.ended
    assert ended.unmetered and (ended.energy_wh, ended.receipt_cents, ended.register_wh) == (None, None, None)
    world.settle()
    gap = [body for body in world.laws.intervals if body.energy_wh]
    assert [("gap" in body.flags, body.session) for body in gap] == [(True, "")]


@pytest.mark.req("P1-B6")
def test_a_meter_that_falls_silent_during_a_session_leaves_a_gap_that_waits() -> None:
    world = at_home()
    world.vehicle.plug()
    world.run(20 * MINUTE_MS)
    world.meter.silent = True
    world.run(HOUR_MS)
    world.meter.heal()
    world.run(20 * MINUTE_MS)
    world.settle()
    (ended,) = world.laws.ended
    gap_wh = sum(body.energy_wh for body in world.laws.intervals if "gap" in body.flags)
    assert ended.pending_wh == gap_wh > 7_000 and ended.energy_wh and ended.energy_wh > gap_wh
    assert [event.detail["cause"] for event in world.laws.events] == ["no answer", None]


@pytest.mark.req("P1-S3.1")
def test_a_reset_and_a_jump_are_recorded_and_never_billed() -> None:
    world = at_home()
    world.vehicle.plug()
    world.run(20 * MINUTE_MS)
    world.meter.jump()
    world.run(20 * MINUTE_MS)
    world.meter.reset()
    world.run(20 * MINUTE_MS)
    world.settle()
    (ended,) = world.laws.ended
    assert [event.code for event in world.laws.events] == [Reason.METER_JUMP, Reason.METER_RESET]
    assert ended.energy_wh and ended.pending_wh >= 500_000 > ended.energy_wh - ended.pending_wh


# ---- the measurement interval ----


@pytest.mark.req("P1-F24", "P1-F18", "P1-S1.14")
@pytest.mark.parametrize("new_s", INTERVALS_S)
@pytest.mark.parametrize("restart", [False, True])
def test_another_interval_length_begins_on_a_clean_boundary_and_loses_nothing(new_s: IntervalS, restart: bool) -> None:
    world, before = _changed_interval(new_s, restart)
    ends = [body.end for body in world.laws.intervals[before:] if not set(body.flags) & {"restart", "gap"}]
    seconds = [int(end[11:13]) * 3600 + int(end[14:16]) * 60 + int(end[17:19]) for end in ends]
    assert all(second % new_s == 0 for second in seconds[2:])
    world.settle()


@pytest.mark.req("P1-F24")
@pytest.mark.parametrize("new_s", INTERVALS_S)
def test_a_restart_of_two_seconds_leaves_no_gap(new_s: IntervalS) -> None:
    world, _ = _changed_interval(new_s, restart=True)
    world.settle()
    assert world.laws.ended[0].pending_wh == 0


def _changed_interval(new_s: IntervalS, restart: bool) -> tuple[World, int]:
    """A charging world whose interval length was changed in the middle of one, and how many intervals came before."""
    world = at_home()
    world.vehicle.plug()
    world.run(22 * MINUTE_MS)
    before = len(world.laws.intervals)
    world.down(world.utility.detect(VIN, new_s))
    world.run(4 * MINUTE_MS)
    if restart:
        world.kill(2_000)
    world.run(3 * HOUR_MS)
    assert world.utility.set_up[-1].interval_s == new_s
    return world, before


@pytest.mark.req("P1-S1.15", "P1-F24")
def test_an_interval_length_that_is_not_allowed_is_refused_and_the_old_one_kept() -> None:
    world = at_home()
    world.vehicle.plug()
    world.run(10 * MINUTE_MS)
    world.down(world.utility.detect(VIN, 7))
    world.run(MINUTE_MS)
    ack = world.utility.set_up[-1]
    assert (ack.applied, ack.reason, ack.interval_s) == (False, Reason.INTERVAL_NOT_ALLOWED, 900)
    world.settle()


@pytest.mark.req("P1-F18")
def test_prices_that_change_during_a_session_split_it_there() -> None:
    world = at_home()
    world.vehicle.plug(VIN, "mute")
    world.run(20 * MINUTE_MS)
    for message in world.utility.new_version():
        world.down(message)
    world.run(HOUR_MS)
    world.settle()
    versions = [body.tariff.version for body in world.laws.intervals if body.tariff and body.session]
    assert versions == sorted(versions) and set(versions) == {"v1", "v2"}
    assert world.laws.ended[0].pending_wh == 0


# ---- delivery ----


@pytest.mark.req("P1-S3.1")
@pytest.mark.parametrize("seed", range(6))
def test_records_arrive_once_over_a_bad_line(seed: int) -> None:
    world = at_home(Place(interval_s=60, poll_ms=20_000), Net(loss=0.4, double=0.3, delay_max_ms=30_000), seed)
    world.run(8 * HOUR_MS)
    world.settle()


@pytest.mark.req("P1-S3.1")
def test_records_of_a_long_outage_arrive_in_batches_when_it_is_over() -> None:
    world = at_home(Place(interval_s=60, poll_ms=30_000))
    world.net_down()
    world.run(12 * HOUR_MS)
    assert world.journal.last_seq - world.journal.acked_seq > 600
    world.settle()


# ---- restarts ----


@pytest.mark.req("P1-S3.1", "P1-S2.7")
@pytest.mark.parametrize("kill_in", range(0, 60, 3))
def test_killed_between_any_two_effects_it_goes_on_and_loses_nothing(kill_in: int) -> None:
    world = at_home()
    world.kill_in = kill_in
    world.vehicle.plug(SECOND_VIN)
    world.run(40 * MINUTE_MS)
    assert world.board.closed, "the session goes on"
    world.settle()
    assert len(world.laws.begun) == len(world.laws.ended) == 1


@pytest.mark.req("P1-S1.13")
def test_a_lost_bind_ack_is_sent_again_after_a_restart() -> None:
    world = at_home()
    world.vehicle.plug()
    while "confirm" not in world.vehicle.told_kinds:
        world.run(100)
    world.net = Net(loss=1.0)
    world.run(3_000)
    assert world.laws.bound and not world.utility.bound
    world.kill(2_000)
    world.net = Net()
    world.run(30 * MINUTE_MS)
    assert world.utility.bound


@pytest.mark.req("P1-S3.1", "P1-S3.2")
def test_a_vehicle_that_was_seen_leaving_does_not_leave_its_session_to_the_next_one() -> None:
    world = at_home()
    world.vehicle.plug()
    world.run(20 * MINUTE_MS)
    world.meter.silent = True
    world.run(15_000)
    world.vehicle.leave()
    world.run(2_000)
    world.kill(MINUTE_MS)
    world.run(20_000)
    world.meter.heal()
    world.vehicle.plug(SECOND_VIN)
    world.run(30 * MINUTE_MS)
    assert len(world.laws.begun) == 2
    world.settle()


@pytest.mark.req("P1-S2.7")
def test_a_weld_bars_after_a_restart_too() -> None:
    world = at_home()
    world.vehicle.plug(VIN, "mute")
    world.run(30_000)
    world.board.set(rogue=True, wants=True)
    world.run(MINUTE_MS)
    world.board.set(rogue=False)
    asks = world.laws.asks
    world.kill(5_000)
    world.run(10 * MINUTE_MS)
    assert world.laws.asks == asks


@pytest.mark.req("P1-S3.1")
def test_a_vehicle_that_left_while_the_agent_was_down_ends_its_session() -> None:
    world = at_home()
    world.vehicle.plug()
    world.run(20 * MINUTE_MS)
    world.kill(5 * MINUTE_MS)
    world.run(MINUTE_MS)
    world.vehicle.leave()
    world.run(10 * MINUTE_MS)
    (ended,) = world.laws.ended
    assert ended.reason is Reason.RESTARTED
    world.settle()


@pytest.mark.req("P1-S2.7")
def test_a_stop_opens_and_bars() -> None:
    world = at_home()
    world.vehicle.plug()
    world.run(10 * MINUTE_MS)
    world.stop()
    world.run(5_000)
    assert not world.board.closed
    world.kill(1_000)
    world.run(MINUTE_MS)
    assert world.board.closed
    world.settle()


@pytest.mark.req("P1-S2.7")
def test_a_restart_adopts_a_charging_session_without_opening() -> None:
    """The board is read before any order: what charged with consent goes on charging."""
    world = at_home()
    world.vehicle.plug()
    world.run(20 * MINUTE_MS)
    opened: list[int] = []
    order = world.board.open

    def open_and_tell() -> None:
        opened.append(world.ms)
        order()

    world.board.open = open_and_tell  # type: ignore[method-assign]  # the order itself is still carried out
    world.kill(2_000)
    world.run(5 * MINUTE_MS)
    assert world.board.closed
    assert opened == []
    world.settle()
