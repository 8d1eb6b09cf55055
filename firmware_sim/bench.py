"""The running simulation: world, board line, meter line, vehicles' links, timed events and commands, in one loop.

One thread advances the world; the meter's threads read it under the lock, the links' threads never touch it. World time
follows the scaled clock, wires keep real time. Clocks are handed in by cli.py. P1-S1.6, P1-F20.
"""

import json
import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from esci.timescale import TimeScale
from esci.units import format_utc
from firmware_sim import faults
from firmware_sim.board_state import Eeprom, Pilot
from firmware_sim.devices import Terminal, write_json
from firmware_sim.meter import RtuMeter, TcpMeter
from firmware_sim.meter_map import MeterMap, MeterValues
from firmware_sim.pevlink import LinkPlan, PevLink
from firmware_sim.scenario import EventPart, Scenario, VehiclePart
from firmware_sim.vehicle import MJ_PER_WH, Vehicle, VehicleModel
from firmware_sim.world import FREQUENCY_MHZ, World

TICK_S = 0.005
STATE_EVERY_S = 1.0
CATCH_UP_MS = 2000
COMMAND_LIMIT = 4096

Clock = Callable[[], float]
Log = Callable[[str, dict[str, object]], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how fast a scenario runs."""

    state_dir: Path
    meter_map: MeterMap
    time_scale: TimeScale
    clock: Clock  # real monotonic seconds
    log: Log


def meter_values(world: World, serial_number: int) -> MeterValues:
    """What the meter's registers say of the world."""
    volts, amps, watts = world.voltages_mv, world.currents_ma, world.powers_w
    values = {
        "energy_import": world.shown_register_mj / MJ_PER_WH,
        "energy_total": world.shown_register_mj / MJ_PER_WH,
        "power": float(sum(watts)),
        "frequency": FREQUENCY_MHZ / 1000,
    }
    for index, phase in enumerate(("l1", "l2", "l3")):
        values[f"voltage_{phase}"] = volts[index] / 1000
        values[f"current_{phase}"] = amps[index] / 1000
        values[f"power_{phase}"] = float(watts[index])
    return MeterValues(values, serial_number, world.meter.unplugged, world.meter.garbage)


class Bench:
    """One scenario, running. `start`, then `run` until the stop event, then `close`."""

    def __init__(self, scenario: Scenario, seed: int, setting: Setting) -> None:
        self._scenario = scenario
        self._setting = setting
        self._lock = threading.Lock()
        begin_ms = setting.time_scale.mono_ms(setting.clock())
        self._base_ms = begin_ms - begin_ms % 1000
        start_utc = setting.time_scale.anchor_utc + timedelta(milliseconds=self._base_ms)
        self.world = World(
            seed,
            int(start_utc.timestamp()),
            register_start_wh=round(scenario.meter.register_start_kwh * 1000),
            vehicles={part.name: _vehicle(part) for part in scenario.vehicle},
            eeprom=Eeprom(amps_l2=scenario.board.stored_max_a),
        )
        self._links = {
            part.name: PevLink(_plan(part, setting.state_dir), self._log) for part in scenario.vehicle if part.pevlink
        }
        self._events = sorted(scenario.event, key=lambda part: part.at_s)
        self._board_line: Terminal | None = None
        self._meter_line: Terminal | None = None
        self._meter: RtuMeter | TcpMeter | None = None
        self._written: tuple[object, ...] = ()
        self._written_at_s = 0.0
        self._last_plugged = next(iter(self.world.vehicles), None)
        self._commands = b""

    def _log(self, event: str, fields: dict[str, object]) -> None:
        self._setting.log(event, {"utc": self._utc(), **fields})

    def _utc(self) -> str:
        return format_utc(self._setting.time_scale.utc(self._setting.clock()))

    # life

    def start(self) -> None:
        """Opens the lines and switches the board on. Raises OSError when a port or name cannot be had."""
        state_dir, part = self._setting.state_dir, self._scenario.meter
        self._board_line = Terminal(state_dir / "board")
        if part.link == "tcp":
            tcp = TcpMeter(self._setting.meter_map, self._read_values, part.port)
            tcp.start()
            self._meter = tcp
        else:
            self._meter_line = Terminal(state_dir / "meter")
            rtu = RtuMeter(self._setting.meter_map, self._read_values, self._meter_line.fd, self._setting.clock)
            rtu.start()
            self._meter = rtu
        if self._scenario.board.powered:
            self.world.board.power_on()
        self._save()
        self._log("simulation started", {"seed": self.world.seed, **self.addresses()})

    def addresses(self) -> dict[str, object]:
        """Where board and meter are reached."""
        found: dict[str, object] = {}
        if self._board_line is not None:
            found["board"] = str(self._setting.state_dir / "board")
        if isinstance(self._meter, TcpMeter):
            found["meter_port"] = self._meter.port
        elif self._meter_line is not None:
            found["meter"] = str(self._setting.state_dir / "meter")
        return found

    def close(self) -> None:
        """Stops every thread, closes the lines and removes their names."""
        for link in self._links.values():
            link.close()
        if self._meter is not None:
            self._meter.stop()
        for line in (self._board_line, self._meter_line):
            if line is not None:
                line.close()
        self._save()
        self._log("simulation stopped", {"register_wh": self.world.register_wh})

    def run(self, stop: threading.Event, commands_fd: int | None, end_after_s: int | None = None) -> None:
        """The loop. The end of `commands_fd` is no reason to stop; `end_after_s` (world seconds, None: never) is."""
        assert self._board_line is not None
        watched = [self._board_line.fd] + ([commands_fd] if commands_fd is not None else [])
        while not stop.is_set():
            ready = select.select(watched, [], [], TICK_S)[0]
            if self._board_line.fd in ready:
                self.world.board.receive(self._board_line.read())
            if commands_fd is not None and commands_fd in ready and not self._read_commands(commands_fd):
                watched.remove(commands_fd)
            self._catch_up()
            self._save_if_due()
            if end_after_s is not None and self.world.now_ms >= end_after_s * 1000:
                return

    def _catch_up(self) -> None:
        """Advances the world to the scaled clock, at most CATCH_UP_MS a turn, with the events due on the way."""
        target_ms = self._setting.time_scale.mono_ms(self._setting.clock()) - self._base_ms
        target_ms = min(target_ms, self.world.now_ms + CATCH_UP_MS)
        while self._events and self._events[0].at_s * 1000 <= target_ms:
            event = self._events.pop(0)
            self._advance(event.at_s * 1000)
            self._timed(event)
        self._advance(target_ms)

    def _advance(self, to_ms: int) -> None:
        with self._lock:
            self.world.advance(to_ms)
            output = self.world.board.take_output()
        if output and self._board_line is not None:
            self._board_line.write(output)

    def _read_values(self) -> MeterValues:
        with self._lock:
            return meter_values(self.world, self._scenario.meter.serial_number)

    # deeds

    def _timed(self, event: EventPart) -> None:
        self.do(event.do, event.arguments)

    def do(self, name: str, arguments: dict[str, object]) -> faults.Outcome:
        """Does one deed now, and logs it."""
        before = self.world.plugged
        with self._lock:
            outcome = faults.do(self.world, name, arguments)
        if isinstance(outcome, faults.Refused):
            self._log("deed refused", {"do": name, "error": outcome.sentence})
            return outcome
        self._log("deed done", {"do": name, "arguments": arguments})
        after = self.world.plugged
        if before is not after:
            if before is not None and before.model.name in self._links:
                self._links[before.model.name].unplug()
            if after is not None:
                self._last_plugged = after.model.name
                if after.model.name in self._links:
                    self._links[after.model.name].plug()
        return outcome

    def _read_commands(self, fd: int) -> bool:
        """Does the commands that have arrived. False at the end of input."""
        part = _read(fd)
        if not part:
            return False
        self._commands += part
        while b"\n" in self._commands:
            line, self._commands = self._commands.split(b"\n", 1)
            self._command(line)
        if len(self._commands) > COMMAND_LIMIT:
            self._commands = b""
            self._log("command refused", {"error": f"a command line has at most {COMMAND_LIMIT} bytes"})
        return True

    def _command(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            command = json.loads(line)
        except (ValueError, RecursionError):
            command = None
        if not isinstance(command, dict) or not isinstance(command.get("do"), str):
            self._log("command refused", {"error": 'a command is one line such as {"do":"plug","vehicle":"leaf"}'})
            return
        name = command.pop("do")
        if name == "power_cycle_vehicle":
            link = self._links.get(str(command.get("vehicle")))
            if link is None:
                self._log("deed refused", {"do": name, "error": "no vehicle of that name has a PEV link"})
            else:
                link.power_cycle()
                self._log("deed done", {"do": name, "arguments": command})
            return
        self.do(name, command)

    # what others see

    def _save_if_due(self) -> None:
        world = self.world
        key = (
            world.board.state.relay_closed,
            world.board.state.state,
            world.board.state.pilot,
            world.plugged.model.name if world.plugged else None,
            world.meter.unplugged,
            tuple((name, link.snapshot) for name, link in self._links.items()),
        )
        if key != self._written or self._setting.clock() - self._written_at_s >= STATE_EVERY_S:
            if key[:2] != self._written[:2]:
                self._log("board state", {"state": f"{world.board.state.state:02x}", "contactor": _contactor(world)})
            self._written = key
            self._save()

    def _save(self) -> None:
        self._written_at_s = self._setting.clock()
        write_json(self._setting.state_dir / "sim.json", self._content())

    def _content(self) -> dict[str, object]:
        world, board = self.world, self.world.board.state
        vehicles = [self._vehicle_content(vehicle) for vehicle in world.vehicles.values()]
        return {
            "utc": self._utc(),
            "world_s": world.now_ms // 1000,
            "register_wh": world.register_wh,
            "register_start_wh": world.register_start_wh,
            "power_w": sum(world.powers_w),
            "contactor": _contactor(world),
            "board_state": f"{board.state:02x}",
            "board_amps": board.amps,
            "pilot": {
                "drive": board.pilot.value,
                "duty_permille": board.duty_ppm // 1000 if board.pilot is Pilot.PWM else None,
                "load": world.board.inputs.load.value,
            },
            "meter": {"unplugged": world.meter.unplugged, **_meter_port(self._meter)},
            "vehicle": next((one for one in vehicles if one["name"] == self._last_plugged), None),
            "vehicles": vehicles,
            "delivered_mwh": (world.energy_mj + world.unmetered_mj) // 3600,
            "unmetered_wh": (world.unmetered_mj + MJ_PER_WH // 2) // MJ_PER_WH,
        }

    def _vehicle_content(self, vehicle: Vehicle) -> dict[str, object]:
        link = self._links.get(vehicle.model.name)
        shown = link.snapshot if link is not None else None
        return {
            "name": vehicle.model.name,
            "plugged": vehicle.plugged,
            "soc": vehicle.soc_percent,
            "current_ma": vehicle.current_ma,
            "link_state": shown.state if shown else None,
            "bound": shown.bound if shown else False,
            "program": shown.program if shown else None,
            "last_reason": shown.last_reason if shown else None,
            "tls_resumed": shown.tls_resumed if shown else None,
            "messages_sent": shown.messages_sent if shown else 0,
            "messages_received": shown.messages_received if shown else 0,
        }


def _contactor(world: World) -> str:
    return "closed" if world.powered else "open"


def _meter_port(meter: RtuMeter | TcpMeter | None) -> dict[str, object]:
    return {"port": meter.port} if isinstance(meter, TcpMeter) else {}


def _read(fd: int) -> bytes:
    """What a command source has; empty at its end."""
    try:
        return os.read(fd, COMMAND_LIMIT)
    except OSError:
        return b""


def _vehicle(part: VehiclePart) -> Vehicle:
    model = VehicleModel(part.name, part.vin, part.capacity_wh, part.phases, part.max_current_ma)
    vehicle = Vehicle(model, 0)
    vehicle.set_soc(part.soc_percent)
    return vehicle


def _plan(part: VehiclePart, state_dir: Path) -> LinkPlan:
    """Who the vehicle calls. The scenario has checked that the parts are there."""
    assert part.pevlink is not None and part.cert is not None and part.key is not None and part.ca is not None
    host, port = part.pevlink.rsplit(":", 1)
    params_file = part.params_file or f"pev-{part.name}.json"
    return LinkPlan(
        vehicle=part.name,
        vin=part.vin,
        host=host,
        port=int(port),
        cert=state_dir / part.cert,
        key=state_dir / part.key,
        ca=state_dir / part.ca,
        params_file=state_dir / params_file,
    )
