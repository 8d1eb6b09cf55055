"""One device of the bench alone: a meter with a constant load, or a board with nothing in its socket.

For trying a driver by hand and for tests of one wire. Same world, same wires as a whole scenario. Clocks are handed in.
"""

import select
import threading
from collections.abc import Callable
from pathlib import Path

from firmware_sim.bench import TICK_S, meter_values
from firmware_sim.devices import Terminal
from firmware_sim.meter import RtuMeter, TcpMeter
from firmware_sim.meter_map import MeterMap, MeterValues
from firmware_sim.world import World

Clock = Callable[[], float]


class SoloMeter:
    """A meter whose register grows with a constant load. `world_ms`: milliseconds of world time since the start."""

    def __init__(self, model: MeterMap, world: World, serial_number: int, world_ms: Callable[[], int]) -> None:
        self._model = model
        self._world = world
        self._serial_number = serial_number
        self._world_ms = world_ms
        self._lock = threading.Lock()
        self._terminal: Terminal | None = None
        self._server: RtuMeter | TcpMeter | None = None

    def read_values(self) -> MeterValues:
        """The registers' values now."""
        with self._lock:
            self._world.advance(self._world_ms())
            return meter_values(self._world, self._serial_number)

    def serve_tcp(self, port: int) -> str:
        """Starts Modbus TCP; its port as text. Raises OSError when the port is taken."""
        server = TcpMeter(self._model, self.read_values, port)
        server.start()
        self._server = server
        return str(server.port)

    def serve_pty(self, link: Path | None, clock: Clock) -> str:
        """Starts Modbus RTU on a pseudo-terminal; its name."""
        self._terminal = Terminal(link)
        self._server = RtuMeter(self._model, self.read_values, self._terminal.fd, clock)
        self._server.start()
        return self._terminal.name

    def close(self) -> None:
        """Stops and leaves nothing behind."""
        if self._server is not None:
            self._server.stop()
        if self._terminal is not None:
            self._terminal.close()


def run_board(terminal: Terminal, world: World, world_ms: Callable[[], int], stop: threading.Event) -> None:
    """Serves the board of `world` on the terminal until `stop`."""
    world.board.power_on()
    while not stop.is_set():
        if select.select([terminal.fd], [], [], TICK_S)[0]:
            world.board.receive(terminal.read())
        world.advance(world_ms())
        terminal.write(world.board.take_output())
