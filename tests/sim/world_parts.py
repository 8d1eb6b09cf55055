"""The people and things of the virtual-time world: journal, meter, board, vehicle, utility and tariffs.

Each is small and honest, knows nothing of the agent's decisions, and has its faults as plain methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from agent.core.effects import Record
from agent.core.events import (
    BoardFailed,
    BoardFound,
    BoardIdentity,
    BoardReported,
    BoardStatus,
    MeterFailed,
    MeterRead,
    MeterReading,
    PevAcknowledged,
    PevGone,
    PevIdentified,
    Pilot,
)
from esci import messages as wire
from esci import pevlink
from esci.reasons import Reason
from esci.records import ORIGIN, digest, raw_digest
from esci.tariff import TariffDocument
from esci.units import format_utc

if TYPE_CHECKING:
    from sim.world import World

VIN, SECOND_VIN, STRANGER_VIN = "1HGCM82633A004352", "5YJ3E1EA7KF317000", "WVWZZZ1JZXW000001"
_WMS_PER_WH = 3_600_000


def tariff(code: str, version: str, timezone: str, prices: dict[str, int], hours: str) -> TariffDocument:
    """A plan whose day reads as 24 letters, each a period with its price in micro-USD."""
    entries = [{"day_types": ["weekday", "weekend"], "from_hour": hour, "to_hour": hour + 1, "period": letter}
               for hour, letter in enumerate(hours)]
    return TariffDocument.model_validate({
        "code": code, "version": version, "title": code, "currency": "USD", "timezone": timezone,
        "effective_from": "2024-01-01",
        "periods": [{"name": name, "micro_usd_per_kwh": price} for name, price in prices.items()],
        "seasons": [{"name": "year", "months": list(range(1, 13)), "hours": entries}]})


class MemoryJournal:
    """As `agent.ports.Journal`, in memory: numbers and chains records, and outlives the process."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.acked_seq, self.snapshot = epoch, 0, None
        self.items: list[wire.RecordItem] = []
        self.digests = [ORIGIN]
        self.tariffs: dict[tuple[str, str], str] = {}
        self.wrote = False

    snapshot: str | None

    @property
    def last_seq(self) -> int:
        """Number of the newest record."""
        return len(self.items)

    def append(self, records: Sequence[Record], snapshot: str) -> None:
        """Records and snapshot in one transaction."""
        for record in records:
            body = record.body.model_dump(mode="json")
            item = wire.RecordItem.model_validate({"kind": record.kind, "at": record.at, "clock": record.clock,
                                                   "body": body})
            self.items.append(item)
            self.digests.append(raw_digest(self.digests[-1], self.epoch, len(self.items), item.kind, item.at,
                                           item.clock, body))
        self.snapshot, self.wrote = snapshot, self.wrote or bool(records)

    def batch(self, first_seq: int, count: int) -> tuple[str, list[wire.RecordItem]]:
        """The digest before first_seq, and the records."""
        assert first_seq >= 1 and count >= 1 and first_seq + count - 1 <= self.last_seq
        return self.digests[first_seq - 1], self.items[first_seq - 1:first_seq - 1 + count]

    def forget(self, seq: int) -> None:
        """The utility has every record up to seq."""
        assert self.acked_seq < seq <= self.last_seq
        self.acked_seq = seq


class Meter:
    """A cumulative register that counts whether anybody reads it or not."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._energy_wms, self._offset_wh, self._since_ms = 0, 1_000_000, 0
        self.power_w = 0
        self.silent = False
        self._told_silent = False

    @property
    def register_wh(self) -> int:
        """What the register shows at this moment."""
        self.count()
        return self._offset_wh + self._energy_wms // _WMS_PER_WH

    def count(self) -> None:
        """Add what has flowed since the last look."""
        self._energy_wms += self.power_w * (self._world.ms - self._since_ms)
        self._since_ms = self._world.ms

    def flow(self, power_w: int) -> None:
        """From now on this much flows."""
        self.count()
        self.power_w = power_w

    def reset(self) -> None:
        """The register starts again at zero."""
        self._offset_wh = -(self._energy_wms // _WMS_PER_WH)

    def jump(self) -> None:
        """The register rises by more than the circuit can carry."""
        self._offset_wh += 500_000

    def on_boot(self) -> None:
        """The driver starts with the agent and polls."""
        self._told_silent = False
        self._world.later(self._world.rng.randint(0, 2_000), self._poll)

    def heal(self) -> None:
        """Speaks again."""
        self.silent = False

    def _poll(self) -> None:
        world = self._world
        world.later(world.place.poll_ms, self._poll)
        if self.silent:
            if not self._told_silent:
                self._told_silent = True
                world.post(MeterFailed("no answer"))
            return
        self._told_silent = False
        event = MeterRead(MeterReading(self.register_wh, self.power_w), world.now())
        if world.place.lag_ms:
            world.later(world.rng.randint(0, world.place.lag_ms), lambda: world.post(event))
        else:
            world.post(event)


class Board:
    """Makes the pilot and holds the contactor: closes only when asked and the vehicle wants, unless it is broken."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.plugged = self.wants = self.closed = False
        self.asked_ma = 0
        self.fault: str | None = None
        self.silent = self.welded = self.rogue = self.blind = False
        self.protections_off: tuple[str, ...] = ()
        self._told_silent = False
        self._found = False

    def ask(self, limit_ma: int) -> None:
        """The host's order, when the line works."""
        if not self.silent:
            self.asked_ma = limit_ma
            self._world.at(self._world.rng.randint(10, 400), self.settle)

    def open(self) -> None:
        """The host's order, when the line works."""
        if not self.silent:
            self.asked_ma = 0
            self._world.at(self._world.rng.randint(10, 3_000), self.settle)

    def settle(self) -> None:
        """The contactor follows; energy follows the contactor."""
        before = self.closed
        wanted = self.asked_ma > 0 and self.plugged and self.wants and self.fault is None
        self.closed = ((wanted or self.rogue) and self.plugged) or (self.closed and self.welded)
        draws = self.closed and self.plugged and self.wants
        self._world.meter.flow(self._world.vehicle.power_w if draws else 0)
        if self.closed != before:
            self.report()

    def set(self, **faults: object) -> None:
        """Change what is wrong with the board, or what the vehicle does to it; it reports."""
        for name, value in faults.items():
            assert hasattr(self, name)
            setattr(self, name, value)
        self.settle()
        self.report()

    def heal(self) -> None:
        """Nothing is wrong any more."""
        self.set(fault=None, silent=False, welded=False, rogue=False, blind=False, protections_off=())

    def reboot(self) -> None:
        """The board's own processor starts anew: it opens, forgets the order and introduces itself."""
        self.power_off()
        self._found = False
        self._world.later(1_500, self.report)

    def replace_by(self, protections_off: tuple[str, ...]) -> None:
        """Another set of protections is off, seen when the board introduces itself again."""
        self.protections_off = protections_off
        self.reboot()

    def power_off(self) -> None:
        """No order survives."""
        self.asked_ma = 0
        self.settle()

    def power_on(self) -> None:
        """As after each power loss: open, waiting for orders."""
        self.settle()

    def on_boot(self) -> None:
        """The driver starts with the agent."""
        self._found = self._told_silent = False
        self._world.later(self._world.rng.randint(0, 2_000), self._poll)

    def report(self) -> None:
        """To the agent, if it lives and the line works."""
        if self._world.station is None or self.silent:
            return
        if not self._found or self._told_silent:
            self._found, self._told_silent = True, False
            self._world.post(BoardFound(BoardIdentity("D8.2.1", self.protections_off, 16_000)))
        self._world.post(BoardReported(self.status()))

    def status(self) -> BoardStatus:
        """What it says of itself."""
        pilot = Pilot.C if self.plugged and self.wants else Pilot.B if self.plugged else Pilot.A
        if self.blind:
            return BoardStatus(Pilot.UNKNOWN, None, None, False, self.fault, 0)
        return BoardStatus(pilot, self.plugged, self.closed, self.asked_ma == 0, self.fault, self.asked_ma)

    def _poll(self) -> None:
        world = self._world
        world.later(world.place.poll_ms, self._poll)
        if not self.silent:
            self.report()
        elif not self._told_silent:
            self._told_silent = True
            world.post(BoardFailed("no answer"))


class Vehicle:
    """Plugs in, speaks over the PEV link as its kind does, asks for power, leaves."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.power_w = 7_200
        self.pev, self.kind, self.visit = VIN, "kind", 0
        self.tickets: dict[str, str] = {}
        self.linked = False
        self.told_kinds: list[str] = []
        self.acks = True

    def plug(self, pev: str = VIN, kind: str = "kind") -> None:
        """kind: identifies itself; early: before the pilot; mute: never; swap: first as itself, then as another."""
        self.pev, self.kind, self.visit = pev, kind, self.visit + 1
        visit, world = self.visit, self._world
        self.told_kinds = []
        if kind == "early":
            self.identify()
            world.at(800, lambda: self._arrive(visit))
        else:
            self._arrive(visit)
            if kind != "mute":
                world.at(world.rng.randint(500, 6_000), lambda: self.identify() if self.visit == visit else None)
        if kind == "swap":
            world.at(90_000, lambda: self.identify(SECOND_VIN) if self.visit == visit else None)
        world.at(world.rng.randint(1_000, 20_000), lambda: self.want(True, visit))

    def leave(self) -> None:
        """Unplug."""
        self.visit += 1
        self._gone()
        self._world.board.set(plugged=False, wants=False)

    def want(self, wants: bool, visit: int | None = None) -> None:
        """Ask for power, or pause."""
        if self._world.board.plugged and (visit is None or visit == self.visit):
            self._world.board.set(wants=wants)

    def power_cycle(self) -> None:
        """The vehicle's link goes and comes back."""
        self._gone()
        visit = self.visit
        self._world.at(3_000, lambda: self.identify() if self.visit == visit and self.kind != "mute" else None)

    def identify(self, pev: str | None = None) -> None:
        """Open the link and prove the PEV I.D."""
        if self._world.station is not None:
            self.linked = True
            name = pev or self.pev
            self._world.post(PevIdentified(name, self.tickets.get(name, ""), resumed=name in self.tickets))

    def told(self, message: pevlink.ToPev) -> None:
        """What the charger says; answered a second later."""
        self.told_kinds.append(message.kind)
        if isinstance(message, pevlink.Confirm) and self.linked:
            self.tickets[self.pev] = message.ticket
            if message.ack and self.acks:
                self._world.later(1_000, lambda: self._acknowledge(message.binding))

    def on_boot(self) -> None:
        """Its link went with the old process; a vehicle with a link tries again."""
        self.linked, visit = False, self.visit
        if self._world.board.plugged and self.kind != "mute":
            self._world.later(self._world.rng.randint(1_000, 8_000),
                              lambda: self.identify() if self.visit == visit else None)

    def _acknowledge(self, binding: str) -> None:
        if self.linked:
            self._world.post(PevAcknowledged(binding))

    def _arrive(self, visit: int) -> None:
        if self.visit == visit:
            self._world.board.set(plugged=True, wants=False)

    def _gone(self) -> None:
        if self.linked:
            self.linked = False
            self._world.post(PevGone())


class Utility:
    """Validates, confirms, sets the measurement device up, and takes each record exactly once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.known = {VIN, SECOND_VIN}
        self.bound: dict[str, str] = {}  # pev -> binding that was acknowledged
        self.made: dict[str, tuple[str, str]] = {}  # pev -> binding, ticket
        self.answers: dict[str, tuple[wire.BindRequest, wire.Down]] = {}
        self.detects: dict[str, wire.EumdDetect] = {}  # unacknowledged, by id
        self.set_up: list[wire.EumdAck] = []
        self.items: dict[int, list[wire.RecordItem]] = {}
        self.digests: dict[int, list[str]] = {}
        self.dumb = False  # hears, takes nothing, answers nothing
        self.interval_s: wire.IntervalS = world.place.interval_s
        self.binding_wait_s, self.consent = world.place.binding_wait_s, world.place.charge_without_binding
        self.version = 1
        self.documents: dict[tuple[str, str], TariffDocument] = {}
        self.file_tariffs()

    def file_tariffs(self) -> None:
        """A version of the default plan and of the program, with prices of its own."""
        zone, name = self._world.place.timezone, f"v{self.version}"
        step = self.version * 10_007
        default = {"a": 240_000 + step, "b": 580_000 + step}, "a" * 16 + "bbbbb" + "aaa"
        program = {"n": 170_000 + step, "d": 330_000 + step}, "nndnnn" + "d" * 14 + "nnnn"
        for code, (prices, hours) in {"DEFAULT": default, "EV": program}.items():
            self.documents[code, name] = tariff(code, name, zone, prices, hours)

    def new_version(self) -> list[wire.Down]:
        """New prices for everybody, sent to the charger at once."""
        self.version += 1
        self.file_tariffs()
        return [*self._tariffs([]), self.params()]

    def handle(self, message: wire.Up) -> list[wire.Down]:
        """The answers."""
        if self.dumb:
            return []
        match message:
            case wire.Hello():
                held = [(ref.code, ref.version) for ref in message.tariffs]
                return [*self._tariffs(held), self.params(), *self.detects.values(), self._ack(message.epoch)]
            case wire.BindRequest():
                return self._on_request(message)
            case wire.BindAck():
                self.bound[message.pev] = message.binding
                return [self._detect(message.binding)]
            case wire.EumdAck():
                self.set_up.append(message)
                self.detects.pop(message.detect, None)
                return []
            case wire.Records():
                return self._on_records(message)

    def params(self) -> wire.Params:
        """The premises' parameters."""
        return wire.Params.model_validate(self._head() | {
            "premises": "home-1", "default_tariff": self.ref("DEFAULT"), "interval_s": self.interval_s,
            "binding_wait_s": self.binding_wait_s, "charge_without_binding": self.consent})

    def ref(self, code: str) -> wire.TariffRef:
        """The version in force."""
        return wire.TariffRef(code=code, version=f"v{self.version}")

    def detect(self, pev: str, interval_s: int) -> wire.EumdDetect:
        """A detection message for a known binding."""
        message = wire.EumdDetect.model_validate(self._head(600) | {
            "binding": self.made[pev][0], "program": "EV", "tariff": self.ref("EV"), "interval_s": interval_s})
        self.detects[message.id] = message
        return message

    def _detect(self, binding: str) -> wire.EumdDetect:
        waiting = [detect for detect in self.detects.values() if detect.binding == binding]
        pev = next(pev for pev, (made, _) in self.made.items() if made == binding)
        return waiting[0] if waiting else self.detect(pev, self.interval_s)

    def _on_request(self, message: wire.BindRequest) -> list[wire.Down]:
        if message.id in self.answers:
            asked, answer = self.answers[message.id]
            assert asked == message, "the same id asks the same thing"
            return [answer]
        if message.pev not in self.known:
            answer = wire.BindReject.model_validate(self._head(600) | {
                "request": message.id, "session": message.session, "reason": Reason.UNKNOWN_PEV})
        else:
            binding, ticket = self.made.setdefault(message.pev, (self._world.new_id(), f"ticket-{message.pev}"))
            again = self.bound.get(message.pev) == binding and message.known_binding == binding
            answer = wire.BindConfirm.model_validate(self._head(600) | {
                "request": message.id, "session": message.session, "binding": binding, "pev": message.pev,
                "premises": message.premises, "program": "EV", "tariff": self.ref("EV"),
                "valid_until": "2030-01-01T00:00:00Z", "interval_s": self.interval_s,
                "scenario": "again" if again else "first", "ticket": ticket})
        self.answers[message.id] = message, answer
        return [answer]

    def _on_records(self, message: wire.Records) -> list[wire.Down]:
        items = self.items.setdefault(message.epoch, [])
        digests = self.digests.setdefault(message.epoch, [ORIGIN])
        if message.first_seq - 1 > len(items):
            return [self._ack(message.epoch)]
        assert message.prev == digests[message.first_seq - 1], "the chain goes on from what was taken"
        prev = message.prev
        for seq, item in enumerate(message.records, message.first_seq):
            prev = digest(prev, message.epoch, seq, item)
            if seq <= len(items):
                assert digests[seq] == prev, "a repeated record is the same record"
            else:
                items.append(item)
                digests.append(prev)
        return [self._ack(message.epoch)]

    def _tariffs(self, held: list[tuple[str, str]]) -> list[wire.Down]:
        wanted = [document for key, document in self.documents.items() if key not in held]
        return [wire.TariffSent.model_validate(self._head() | {"document": document}) for document in wanted]

    def _ack(self, epoch: int) -> wire.Ack:
        return wire.Ack.model_validate(self._head() | {"epoch": epoch, "seq": len(self.items.get(epoch, []))})

    def _head(self, valid_s: int | None = None) -> dict[str, object]:
        true = self._world.place.start + timedelta(milliseconds=self._world.ms)
        head: dict[str, object] = {"device": "evse-1", "id": self._world.new_id(),
                                   "at": format_utc(true.replace(microsecond=0))}
        return head if valid_s is None else head | {"expires_at": format_utc(true + timedelta(seconds=valid_s))}
