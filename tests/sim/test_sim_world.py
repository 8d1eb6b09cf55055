"""Laws of the simulated world: energy is counted once, never lost, never invented; the same seed is the same world."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_sim import faults
from firmware_sim.bench import meter_values
from firmware_sim.rapi_wire import frame
from firmware_sim.vehicle import MJ_PER_WH, Vehicle, VehicleModel, duty_to_ma
from firmware_sim.world import World

START_UTC_S = 1_752_636_000


def make_world(seed: int = 1, soc: int = 40, phases: int = 1, capacity_wh: int = 40_000) -> World:
    leaf = Vehicle(VehicleModel("leaf", "1N4AZ0CPXDC400001", capacity_wh, phases, 32_000), 0)
    leaf.set_soc(soc)
    zoe = Vehicle(VehicleModel("zoe", "VF1AGVYA453000002", 52_000, 3, 16_000), 0)
    world = World(seed, START_UTC_S, register_start_wh=1_234_567, vehicles={"leaf": leaf, "zoe": zoe})
    world.board.power_on()
    world.advance(5000)
    return world


def do(world: World, name: str, **arguments: object) -> None:
    assert faults.do(world, name, arguments) == faults.DONE


DEEDS = st.sampled_from(
    [
        ("plug", {"vehicle": "leaf"}),
        ("plug", {"vehicle": "zoe"}),
        ("unplug", {}),
        ("meter_unplug", {}),
        ("meter_plug", {}),
        ("meter_frozen", {}),
        ("meter_jump", {"wh": 500}),
        ("meter_reset", {}),
        ("board_fault", {"fault": "ground_fault"}),
        ("board_fault", {"fault": "ground_fault", "on": False}),
        ("board_fault", {"fault": "weld"}),
        ("board_power_off", {}),
        ("board_power_on", {}),
    ]
)


@pytest.mark.req("P1-F20")
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(DEEDS, st.integers(1, 120_000)), max_size=8), st.integers(0, 1000))
def test_every_joule_is_in_a_battery_and_in_one_count(
    deeds: list[tuple[tuple[str, dict[str, object]], int]], seed: int
) -> None:
    world = make_world(seed)
    before_mj = sum(vehicle.stored_mj for vehicle in world.vehicles.values())
    for (name, arguments), ms in deeds:
        faults.do(world, name, arguments)
        counted_mj, unmetered_mj, register_mj = world.energy_mj, world.unmetered_mj, world.register_mj
        cut_off = world.meter.unplugged
        world.advance(world.now_ms + ms)
        assert world.energy_mj >= counted_mj
        assert world.unmetered_mj >= unmetered_mj
        assert world.energy_mj == counted_mj or not cut_off
        assert world.register_mj - register_mj == world.energy_mj - counted_mj
    stored_mj = sum(vehicle.stored_mj for vehicle in world.vehicles.values()) - before_mj
    assert stored_mj == world.energy_mj + world.unmetered_mj
    assert world.register_mj == 1_234_567 * MJ_PER_WH + world.energy_mj


@pytest.mark.req("P1-F20")
def test_no_energy_flows_while_the_contactor_is_open() -> None:
    world = make_world()
    do(world, "plug", vehicle="leaf")
    world.advance(world.now_ms + 120_000)
    assert world.energy_mj > 0
    world.board.receive(frame(b"$FD"))
    world.advance(world.now_ms + 1000)
    assert not world.powered
    counted_mj = world.energy_mj
    world.advance(world.now_ms + 600_000)
    assert world.energy_mj == counted_mj


@pytest.mark.req("P1-F20")
def test_the_same_seed_is_the_same_world() -> None:
    def history(seed: int) -> list[tuple[int, int]]:
        world = make_world(seed)
        do(world, "plug", vehicle="leaf")
        seen = []
        for _ in range(60):
            world.advance(world.now_ms + 10_000)
            seen.append((world.energy_mj, sum(world.voltages_mv)))
        return seen

    assert history(5) == history(5)
    assert history(5) != history(6)


@pytest.mark.req("P1-F20")
def test_how_the_time_is_cut_changes_nothing() -> None:
    """Whoever advances in other pieces sees the same energy, as long as the pieces are whole steps."""
    counts = []
    for piece_ms in (100, 600, 5000):
        world = make_world()
        do(world, "plug", vehicle="leaf")
        while world.now_ms < 305_000:
            world.advance(min(305_000, world.now_ms + piece_ms))
        counts.append(world.energy_mj)
    assert counts[0] == counts[1] == counts[2] > 0


@pytest.mark.req("P1-F7")
@pytest.mark.parametrize(("amps", "phases", "expected_ma"), [(16, 1, (15_960, 0, 0)), (10, 3, (9_975, 9_975, 9_975))])
def test_the_vehicle_follows_the_pilot_within_five_seconds(
    amps: int, phases: int, expected_ma: tuple[int, int, int]
) -> None:
    world = make_world(phases=phases)
    do(world, "plug", vehicle="leaf")
    world.advance(world.now_ms + 20_000)
    assert world.currents_ma[0] == 31_920
    world.board.receive(frame(b"$SC %d V" % amps))
    world.advance(world.now_ms + 5000)
    assert world.currents_ma == expected_ma


@pytest.mark.req("P1-F7")
def test_a_vehicle_tapers_and_stops_when_full() -> None:
    world = make_world(soc=79, capacity_wh=3000)
    leaf = world.vehicles["leaf"]
    do(world, "plug", vehicle="leaf")
    world.advance(world.now_ms + 15_000)
    assert leaf.current_ma == 31_920
    world.advance(world.now_ms + 200_000)
    assert 0 < leaf.current_ma < 25_000
    world.advance(world.now_ms + 2_000_000)
    assert leaf.full
    assert leaf.current_ma == 0
    assert not world.powered


@pytest.mark.req("P1-S1.6", "P1-S2.1")
def test_one_socket_holds_one_vehicle() -> None:
    world = make_world()
    do(world, "plug", vehicle="leaf")
    outcome = faults.do(world, "plug", {"vehicle": "zoe"})
    assert outcome == faults.Refused("leaf is in the socket; unplug it first")


@pytest.mark.req("P1-B6")
def test_an_unplugged_meter_is_silent_and_its_register_stands() -> None:
    world = make_world()
    do(world, "plug", vehicle="leaf")
    world.advance(world.now_ms + 60_000)
    do(world, "meter_unplug")
    register_mj = world.register_mj
    world.advance(world.now_ms + 60_000)
    assert meter_values(world, 1).silent
    assert world.register_mj == register_mj
    assert world.unmetered_mj > 6_000_000
    do(world, "meter_plug")
    world.advance(world.now_ms + 60_000)
    assert world.register_mj > register_mj


@pytest.mark.req("P1-F20")
def test_faults_of_the_register_leave_the_true_one_alone() -> None:
    world = make_world()
    do(world, "plug", vehicle="leaf")
    world.advance(world.now_ms + 60_000)
    true_mj = world.register_mj
    do(world, "meter_jump", wh=1000)
    assert world.shown_register_mj == true_mj + 1000 * MJ_PER_WH
    do(world, "meter_reset")
    assert world.shown_register_mj == 0
    do(world, "meter_frozen")
    world.advance(world.now_ms + 60_000)
    assert world.shown_register_mj == 0
    assert world.register_mj > true_mj


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("dance", {}),
        ("plug", {}),
        ("plug", {"vehicle": ["leaf"]}),
        ("plug", {"vehicle": "bus"}),
        ("set_soc", {"vehicle": "leaf", "percent": 101}),
        ("meter_jump", {"wh": "many"}),
        ("board_fault", {"fault": "rust"}),
        ("board_fault", {"fault": "over_current"}),
        ("temperature", {"celsius": 1000}),
    ],
)
@pytest.mark.req("P1-F20")
def test_a_bad_deed_is_refused_with_a_sentence(name: str, arguments: dict[str, object]) -> None:
    outcome = faults.do(make_world(), name, arguments)
    assert isinstance(outcome, faults.Refused)
    assert outcome.sentence


@pytest.mark.req("P1-F7")
@pytest.mark.parametrize(
    ("duty_ppm", "current_ma"),
    [(0, 0), (50_000, 0), (99_750, 6000), (266_000, 15_960), (532_000, 31_920), (960_000, 80_000), (1_000_000, 0)],
)
def test_duty_means_current(duty_ppm: int, current_ma: int) -> None:
    assert duty_to_ma(duty_ppm) == current_ma
