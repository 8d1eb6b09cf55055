"""The campaign: the real station in seeded worlds full of faults. One seed repeats a world; `world_laws` has the laws.

`PLUGBIND_CAMPAIGN=N ./run test tests/sim/test_agent_world.py` visits N worlds; a failure prints the command that
repeats its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from esci.messages import IntervalS
from sim.world import HOUR_MS, MINUTE_MS, Net, Place, World, seeds
from sim.world_parts import SECOND_VIN, STRANGER_VIN, VIN

ZONES = ("America/Los_Angeles", "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe")
INTERVALS: tuple[IntervalS, ...] = (60, 300, 900, 1800, 3600)
STARTS = (datetime(2025, 7, 16, 3, tzinfo=UTC), datetime(2025, 3, 9, 4, tzinfo=UTC),
          datetime(2025, 11, 2, 3, tzinfo=UTC), datetime(2025, 10, 25, 18, tzinfo=UTC),
          datetime(2025, 4, 5, 9, tzinfo=UTC))
KINDS = ("kind", "kind", "kind", "early", "mute", "swap")
VINS = (VIN, VIN, SECOND_VIN, STRANGER_VIN)


@dataclass(slots=True)
class Fate:
    """Lets vehicles come and go and things go wrong in one world, all by the world's own dice."""

    world: World
    every_ms: int
    is_over: bool = False

    def begin(self) -> None:
        """Start the agent, the traffic and the faults."""
        self.world.boot()
        self.world.at(self.world.rng.randint(0, 10 * MINUTE_MS), self._arrive)
        self.world.at(self.every_ms, self._strike)

    def _arrive(self) -> None:
        if self.is_over:
            return
        rng, vehicle = self.world.rng, self.world.vehicle
        vehicle.power_w = rng.choice([0, 1_440, 3_300, 7_200])
        vehicle.acks = rng.random() < 0.9
        vehicle.plug(rng.choice(VINS), rng.choice(KINDS))
        self.world.at(rng.randint(30_000, 3 * HOUR_MS), self._depart)

    def _depart(self) -> None:
        if self.is_over:
            return
        self.world.vehicle.leave()
        self.world.at(self.world.rng.choice([1_000, 20_000, 30 * MINUTE_MS]), self._arrive)

    def _strike(self) -> None:
        if self.is_over:
            return
        self.world.at(int(self.world.rng.expovariate(1 / self.every_ms)) + 1, self._strike)
        self.world.rng.choice(self._faults())()

    def _faults(self) -> list[Callable[[], None]]:
        world, rng = self.world, self.world.rng
        board, meter, vehicle = world.board, world.meter, world.vehicle
        long_ms = rng.choice([3_000, 40_000, 15 * MINUTE_MS])
        return [
            lambda: self._while(world.net_down, world.net_back),
            lambda: self._while(lambda: setattr(meter, "silent", True), meter.heal),
            meter.reset, meter.jump,
            lambda: self._broken(fault="06 ground fault"), lambda: self._broken(silent=True),
            lambda: self._broken(blind=True), lambda: self._broken(welded=True), lambda: self._broken(rogue=True),
            lambda: self._while(lambda: board.replace_by(("diode",)), lambda: board.replace_by(())),
            board.reboot, vehicle.power_cycle,
            lambda: vehicle.want(not board.wants),
            lambda: world.kill(long_ms, power_loss=rng.random() < 0.3),
            lambda: setattr(world, "kill_in", rng.randint(0, 40)),
            self._clock, self._clock, self._utility, self._utility,
            lambda: self._while(lambda: setattr(world.utility, "dumb", True),
                                lambda: setattr(world.utility, "dumb", False)),
        ]

    def _broken(self, **fault: object) -> None:
        healthy: dict[str, object] = {name: None if isinstance(value, str) else False for name, value in fault.items()}
        self._while(lambda: self.world.board.set(**fault), lambda: self.world.board.set(**healthy))

    def _while(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        begin()
        self.world.at(self.world.rng.choice([3_000, 40_000, 15 * MINUTE_MS]), end)

    def _clock(self) -> None:
        world, rng = self.world, self.world.rng
        if not world.synced:
            world.sync()
        elif rng.random() < 0.2:
            world.synced = False
            world.set_clock(rng.choice([datetime(1970, 1, 3, tzinfo=UTC), None]))
        else:
            world.step_clock(rng.choice([-7200, -3600, -61, -3, -2, -1, 1, 2, 3, 61, 3600, 7200]))

    def _utility(self) -> None:
        world, rng, utility = self.world, self.world.rng, self.world.utility
        what = rng.randrange(5)
        if what == 0:
            utility.interval_s = rng.choice(INTERVALS)
            if VIN in utility.bound:
                world.down(utility.detect(VIN, rng.choice([*INTERVALS, 7])))
        elif what == 1:
            for message in utility.new_version():
                world.down(message)
        elif what == 2:
            utility.consent = not utility.consent
            world.down(utility.params())
        elif what == 3:
            utility.binding_wait_s = rng.choice([0, 10, 60, 300])
            world.down(utility.params())
        else:
            utility.known ^= {SECOND_VIN}


def visit(seed: int, hours: int, faults: bool = True) -> World:
    """The world of a seed after so many hours of traffic and faults and a calm end; every law was held."""
    world = World(seed)
    rng = world.rng
    hard = faults and rng.random() < 0.7
    place = Place(start=rng.choice(STARTS), timezone=rng.choice(ZONES), interval_s=rng.choice(INTERVALS),
                  binding_wait_s=rng.choice([0, 30, 60]), charge_without_binding=rng.random() < 0.8,
                  lag_ms=rng.choice([0, 0, 900]) if hard else 0)
    world = World(seed, place, Net(loss=0.15, double=0.2, delay_max_ms=4_000) if hard else Net())
    if hard and rng.random() < 0.3:
        world.synced = False
        world.set_clock(datetime(1970, 1, 1, 0, 0, 40, tzinfo=UTC))
        world.at(rng.randint(MINUTE_MS, HOUR_MS), world.sync)
    world.person_looks = True
    fate = Fate(world, every_ms=rng.choice([4, 20]) * MINUTE_MS if hard else 1000 * HOUR_MS)
    try:
        fate.begin()
        world.kill_chance = rng.choice([0.0, 0.002]) if hard else 0.0
        world.run(hours * HOUR_MS)
        fate.is_over = True
        world.settle()
    except (AssertionError, KeyError, ValueError) as error:
        error.add_note(f"repeat it: PLUGBIND_SEED={seed} ./run test tests/sim/test_agent_world.py  (at {world.now()})")
        raise
    return world


@pytest.mark.req("P1-S3.1", "P1-S2.7", "P1-N1", "P1-N2", "P1-N3", "P1-F24", "P1-B4", "P1-B6")
@pytest.mark.parametrize("seed", seeds(24))
def test_every_law_holds_in_a_hostile_world(seed: int) -> None:
    visit(seed, hours=5)
