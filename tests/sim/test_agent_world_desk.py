"""The real station against the utility's real desk and database, in virtual time: receipts and postings agree."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

import desk_world
from cloud.metering import service as metering
from esci import messages as wire
from esci import topics
from esci.seal import seal
from sim.world import HOUR_MS, MINUTE_MS, Net, Place, World
from sim.world_parts import SECOND_VIN, STRANGER_VIN, VIN, Utility


class DeskUtility(Utility):
    """Seals what the charger says, lets the desk handle it, opens the answers; mirrors the records it acknowledges."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.real = desk_world.Utility()

    def handle(self, message: wire.Up) -> list[wire.Down]:
        """The desk's answers, their seals proven."""
        world = self._world
        self.real.now = (world.place.start + timedelta(milliseconds=world.ms)).replace(microsecond=0)
        payload = seal(message.model_dump(mode="json"), desk_world.key("device"))
        handled = self.real.desk.handle(topics.up("evse-1", message.kind), payload)
        assert handled.refused is None, handled
        answers = desk_world.opened(handled)
        if isinstance(message, wire.Records):
            (mirrored,) = self._on_records(message)
            assert isinstance(mirrored, wire.Ack)
            assert [answer.seq for answer in answers if isinstance(answer, wire.Ack)] == [mirrored.seq]
        return answers


@pytest.mark.req("P1-S3.1", "P1-S3.3", "P1-B4", "P1-S1.13", "P1-S1.16")
@pytest.mark.parametrize("net", [Net(), Net(loss=0.2, double=0.3, delay_max_ms=3_000)])
def test_the_desk_takes_each_record_once_and_bills_what_the_charger_showed(net: Net) -> None:
    world = World(4, Place(), net)
    world.utility = desk = DeskUtility(world)
    world.boot()
    world.run(MINUTE_MS)
    for pev, kind in ((VIN, "kind"), (STRANGER_VIN, "kind"), (VIN, "early"), (SECOND_VIN, "mute")):
        world.vehicle.plug(pev, kind)
        world.run(50 * MINUTE_MS)
        if pev == VIN:
            world.kill(2_000)
        world.run(20 * MINUTE_MS)
        world.vehicle.leave()
        world.run(5 * MINUTE_MS)
    world.settle()
    with Session(desk.real.engine) as session:
        doubts = metering.exceptions(session)
        shown = {ended.session: ended for ended in world.laws.ended}
        seen = metering.sessions(session, "home-1")
        (energy,) = metering.device_energies(session)
        posted: dict[str, int] = {}
        for interval in metering.intervals(session, "home-1"):
            posted[interval.session] = posted.get(interval.session, 0) + (interval.cents or 0)
    assert doubts == ()
    assert len(seen) == len(shown) == 4
    for view in seen:
        assert (view.energy_wh, view.pending_wh) == (shown[view.session].energy_wh, 0)
        assert posted[view.session] == shown[view.session].receipt_cents
    recorded_wh = sum(body.energy_wh for body in world.laws.intervals)
    assert (energy.metered_wh, energy.posted_wh, energy.exception_wh) == (recorded_wh, recorded_wh, 0)
    assert energy.register_delta_wh == recorded_wh > 4 * 6_000


@pytest.mark.req("P1-S3.1")
def test_an_hour_of_the_world_is_the_same_twice() -> None:
    """One seed repeats the world, record by record."""
    def records() -> list[wire.RecordItem]:
        world = World(11, Place(), Net(loss=0.2, double=0.2, delay_max_ms=3_000))
        world.boot()
        world.kill_chance = 0.01
        world.vehicle.plug()
        world.run(HOUR_MS)
        return world.journal.items

    assert records() == records()
