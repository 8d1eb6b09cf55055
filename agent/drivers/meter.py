"""The meter: a model is a TOML file, decoding is written once, a thread polls and posts what it read.

Never invents a value: NaN and infinity are None, a register without energy is a failure, and `read_at` is when the
words were asked for. Decides nothing about sessions. Carries P1-B6 (a lost meter is told, never zero), P1-F20.

Blocks: all points of an SDM630 lie in 0x0000..0x0049, one request of 74 registers, 170 ms of wire at 9600 baud. When
polls come faster than FAST_POLL_MS of real time, only energy and power are asked for (22 registers, 60 ms), and
everything each FULL_EVERY-th time: in between voltage and current are unknown, not repeated.
"""

import math
import queue
import struct
import threading
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final, Protocol

from agent.core.clock import Now
from agent.core.events import MeterFailed, MeterRead, MeterReading
from agent.drivers.modbus import BlockRefusedError, Line, MeterFailedError, ModbusBus
from agent.ports import Clock, Post

FAST_POLL_MS: Final = 500
FULL_EVERY: Final = 10
SHORT_BLOCK_REGISTERS: Final = 10  # what the most limited Eastron units serve
MAX_IMPORT_WH: Final = 100_000_000_000  # 100 GWh; above it the register is nonsense
STOP_S: Final = 5.0

_FORMATS = {"u16": ">H", "s16": ">h", "u32": ">I", "s32": ">i", "u64": ">Q", "f32": ">f"}
_REGISTERS = {"u16": 1, "s16": 1, "u32": 2, "s32": 2, "u64": 4, "f32": 2}
_BASE_UNITS = {"Wh": 1, "kWh": 1000, "W": 1, "kW": 1000, "V": 1000, "A": 1000, "Hz": 1000, "": 1}


class UnknownModelError(Exception):
    """No file for this meter model; the text names those that exist."""


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a meter, as its data sheet gives it. Units are names, never bare factors."""

    address: int
    type: str
    unit: str = ""

    @property
    def registers(self) -> int:
        """How many register words it takes."""
        return _REGISTERS[self.type]


@dataclass(frozen=True, slots=True)
class SerialDefaults:
    """How the model leaves its factory."""

    baud: int
    parity: str
    stop_bits: int
    unit_id: int


@dataclass(frozen=True, slots=True)
class MeterMap:
    """One meter model."""

    model: str
    function_code: int
    word_order: str
    max_block_registers: int
    min_gap_ms: int
    serial: SerialDefaults
    identity: Point | None
    identity_function_code: int
    points: Mapping[str, Point]


@dataclass(frozen=True, slots=True)
class Block:
    """Registers that are read in one request, and so at one moment."""

    address: int
    count: int
    names: tuple[str, ...]


class MeterSettings(Protocol):
    """What the poller needs of `[meter]`."""

    @property
    def model(self) -> str: ...
    @property
    def port(self) -> str: ...
    @property
    def unit_id(self) -> int: ...
    @property
    def poll_ms(self) -> int: ...
    @property
    def baud(self) -> int | None: ...


def known_models() -> tuple[str, ...]:
    """Names for `[meter] model`, sorted."""
    files = resources.files("agent.meters").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_map(model: str) -> MeterMap:
    """The register map of a model in agent/meters. Raises UnknownModelError."""
    if model not in known_models():
        raise UnknownModelError(f"meter model {model!r} is unknown: choose one of {', '.join(known_models())}")
    raw = tomllib.loads((resources.files("agent.meters") / f"{model}.toml").read_text(encoding="utf-8"))
    identity = raw.pop("identity", None)
    identity_function_code = raw["function_code"] if identity is None else identity.pop("function_code")
    return MeterMap(
        serial=SerialDefaults(**raw.pop("serial")), identity=None if identity is None else Point(**identity),
        identity_function_code=identity_function_code,
        points={name: Point(**table) for name, table in raw.pop("point").items()}, **raw)


def decode(point: Point, words: Sequence[int], word_order: str = "big") -> int | None:
    """Value in base units: Wh, W, mV, mA, mHz. None: the meter says that it has no value."""
    ordered = words if word_order == "big" else words[::-1]
    raw: float = struct.unpack(_FORMATS[point.type], struct.pack(f">{len(ordered)}H", *ordered))[0]
    if not math.isfinite(raw):
        return None
    return round(raw * _BASE_UNITS[point.unit])


def plan_blocks(points: Mapping[str, Point], names: Sequence[str], limit: int, *, across_gaps: bool) -> list[Block]:
    """The fewest requests of at most `limit` registers. `across_gaps` False: only registers that the map names."""
    blocks: list[Block] = []
    for name in sorted(names, key=lambda name: points[name].address):
        point = points[name]
        end = point.address + point.registers
        last = blocks[-1] if blocks else None
        if last and end - last.address <= limit and (across_gaps or point.address == last.address + last.count):
            blocks[-1] = Block(last.address, max(end - last.address, last.count), (*last.names, name))
        else:
            blocks.append(Block(point.address, point.registers, (name,)))
    return blocks


class MeterReader:
    """Reads one unit; remembers when it serves short blocks only."""

    def __init__(self, bus: ModbusBus, meter_map: MeterMap, unit_id: int) -> None:
        self._bus = bus
        self._map = meter_map
        self._unit_id = unit_id
        self._limit = meter_map.max_block_registers
        self._across_gaps = True

    def read(self, clock: Callable[[], Now], *, full: bool = True) -> tuple[MeterReading, Now]:
        """One reading and when its energy was asked for: the register held it then or a moment later, never before.

        Not full: energy and power only. Raises MeterFailedError.
        """
        try:
            return self._read(clock, full)
        except BlockRefusedError:
            if not self._across_gaps:
                raise
            self._limit, self._across_gaps = SHORT_BLOCK_REGISTERS, False
            return self._read(clock, full)

    def serial_number(self) -> int | None:
        """The number on the meter's plate. None: this model does not tell. Raises MeterFailedError."""
        point = self._map.identity
        if point is None:
            return None
        words = self._bus.read(self._unit_id, self._map.identity_function_code, point.address, point.registers)
        return decode(point, words, self._map.word_order)

    def _read(self, clock: Callable[[], Now], full: bool) -> tuple[MeterReading, Now]:
        points = self._map.points
        wanted = [name for name in points if name in ("energy_import", "power")
                  or (full and name.startswith(("voltage_", "current_")))]
        values: dict[str, int | None] = {}
        read_at: Now | None = None
        for block in plan_blocks(points, wanted, self._limit, across_gaps=self._across_gaps):
            asked_at = clock()  # before, not after: on a slow line the answer is older than its arrival
            words = self._bus.read(self._unit_id, self._map.function_code, block.address, block.count)
            if "energy_import" in block.names:
                read_at = asked_at
            for name in block.names:
                start = points[name].address - block.address
                values[name] = decode(points[name], words[start:start + points[name].registers], self._map.word_order)
        assert read_at is not None, "every map has energy_import"
        import_wh = values["energy_import"]
        if import_wh is None or not 0 <= import_wh < MAX_IMPORT_WH:
            raise MeterFailedError(f"{self._bus.port} unit {self._unit_id}: its energy register holds no energy: "
                                   f"check that it is a {self._map.model}")
        return MeterReading(import_wh, values.get("power"), _phases(values, "current_"), _phases(values, "voltage_")), \
            read_at


def read_meter(bus: ModbusBus, meter_map: MeterMap, unit_id: int, clock: Clock) -> tuple[MeterReading, Now]:
    """One full reading and when it was asked for. Raises MeterFailedError."""
    return MeterReader(bus, meter_map, unit_id).read(clock)


def _phases(values: Mapping[str, int | None], prefix: str) -> tuple[int, ...] | None:
    known = [value for name, value in sorted(values.items()) if name.startswith(prefix)]
    phases = tuple(value for value in known if value is not None)
    return phases if phases and len(phases) == len(known) else None


class MeterPoller:
    """MeterDriver: polls in its own thread. A full inbox drops that poll; the register is cumulative."""

    def __init__(self, bus: ModbusBus, meter_map: MeterMap, config: MeterSettings, post: Post, clock: Clock,
                 pace: float) -> None:
        """`pace` is real seconds for each world second."""
        self._bus = bus
        self._reader = MeterReader(bus, meter_map, config.unit_id)
        self._poll_ms = config.poll_ms
        self._post = post
        self._clock = clock
        self._pace = pace
        self._full_every = FULL_EVERY if config.poll_ms * pace < FAST_POLL_MS else 1
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)
        self._failures = 0
        self._is_told = False  # the outage
        self._has_answered = False
        self.dropped = 0  # readings that the inbox did not take

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread within one request; the port is free afterwards."""
        self._stopping.set()
        self._bus.stop()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        polls = 0
        due_ms = self._clock().mono_ms
        try:
            while not self._stopping.is_set():
                self._poll(full=polls % self._full_every == 0)
                polls += 1
                now_ms = self._clock().mono_ms
                due_ms = max(due_ms + self._poll_ms, now_ms)
                self._stopping.wait(min(due_ms - now_ms, self._poll_ms) / 1000 * self._pace)
        finally:
            self._bus.close()

    def _poll(self, *, full: bool) -> None:
        try:
            reading, read_at = self._reader.read(self._clock, full=full)
        except MeterFailedError as error:
            self._failures += 1
            if not self._is_told and (self._failures >= 2 or not self._has_answered):
                self._is_told = self._posted(MeterFailed(str(error)))
            return
        self._failures = 0
        self._has_answered = True
        self._is_told = False
        self._posted(MeterRead(reading, read_at))

    def _posted(self, event: MeterRead | MeterFailed) -> bool:
        try:
            self._post(event)
        except queue.Full:
            self.dropped += 1
            return False
        return True


def open_poller(config: MeterSettings, post: Post, clock: Clock, pace: float) -> MeterPoller:
    """The poller that a configuration asks for; its thread opens the port. Raises UnknownModelError, ValueError."""
    meter_map = load_map(config.model)
    return MeterPoller(open_bus(config, meter_map, clock, pace), meter_map, config, post, clock, pace)


def open_bus(config: MeterSettings, meter_map: MeterMap, clock: Clock, pace: float) -> ModbusBus:
    """The bus of a configuration: the model's own serial settings but for the baud rate. Raises ValueError."""
    line = Line(config.baud or meter_map.serial.baud, meter_map.serial.parity, meter_map.serial.stop_bits,
                min_gap_ms=meter_map.min_gap_ms)
    return ModbusBus(config.port, line, lambda: int(clock().mono_ms * pace))
