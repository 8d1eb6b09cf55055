"""A meter model as data (TOML by path), and the register image that the simulated meter encodes from it.

The agent decodes with the same file; the encoding here is written independently. No I/O but reading the file, no clock.
P1-F20.
"""

import struct
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_FORMATS = {"u16": ">H", "s16": ">h", "u32": ">I", "s32": ">i", "u64": ">Q", "s64": ">q", "f32": ">f", "f64": ">d"}
_PER_BASE = {"Wh": 1.0, "kWh": 0.001, "W": 1.0, "kW": 0.001, "V": 1.0, "A": 1.0, "mA": 1000.0, "Hz": 1.0, "": 1.0}
_PLAIN_REGISTERS = 0x0180  # an Eastron answers 0 between its values and refuses addresses behind them
ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_COUNT = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Point:
    """One value: where it stands and how it is written."""

    name: str
    address: int
    type: str
    unit: str

    @property
    def count(self) -> int:
        """Registers it takes."""
        return struct.calcsize(_FORMATS[self.type]) // 2


@dataclass(frozen=True, slots=True)
class MeterMap:
    """A meter model."""

    model: str
    function_code: int
    big_words: bool
    max_registers: int
    baud: int
    bits_per_byte: int
    unit_id: int
    points: tuple[Point, ...]
    identity: Point | None
    identity_function: int

    @property
    def byte_time_s(self) -> float:
        """Seconds that one byte takes on the wire."""
        return self.bits_per_byte / self.baud


@dataclass(frozen=True, slots=True)
class MeterValues:
    """What the meter shows now, in base units by point name (Wh, W, V, A, Hz); `silent`: it does not answer."""

    by_name: Mapping[str, float]
    serial_number: int
    silent: bool = False
    garbage: bool = False


def read_map(path: Path) -> MeterMap:
    """The map in the file. Raises ValueError with a sentence when it is missing or is not a meter map."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        return _map_from(raw)
    except OSError as error:
        raise ValueError(f"Meter map {path} cannot be read: {error.strerror}.") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"Meter map {path} is not usable: {error}.") from error


def _map_from(raw: dict[str, object]) -> MeterMap:
    serial = _table(raw.get("serial", {}))
    points = tuple(_point(name, _table(entry)) for name, entry in _table(raw["point"]).items())
    identity = _table(raw["identity"]) if "identity" in raw else None
    parity = str(serial.get("parity", "N"))
    return MeterMap(
        model=str(raw["model"]),
        function_code=_whole(raw.get("function_code", 4)),
        big_words=raw.get("word_order", "big") == "big",
        max_registers=_whole(raw.get("max_block_registers", 80)),
        baud=_whole(serial.get("baud", 9600)),
        bits_per_byte=9 + _whole(serial.get("stop_bits", 1)) + (parity != "N"),
        unit_id=_whole(serial.get("unit_id", 1)),
        points=points,
        identity=_point("serial_number", {"unit": "", **identity}) if identity else None,
        identity_function=_whole(identity.get("function_code", 3)) if identity else 3,
    )


def _table(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} should be a table")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} should be a whole number")
    return value


def _point(name: str, entry: dict[str, object]) -> Point:
    point = Point(name, _whole(entry["address"]), str(entry["type"]), str(entry.get("unit", "")))
    if point.type not in _FORMATS or point.unit not in _PER_BASE:
        raise ValueError(f"point {name} has an unknown type or unit")
    return point


def _words(point: Point, value: float, garbage: bool, big_words: bool) -> list[int]:
    """The registers of one value; garbage is NaN, or all ones in an integer."""
    layout = _FORMATS[point.type]
    if garbage:
        data = struct.pack(layout, float("nan")) if point.type[0] == "f" else b"\xff" * struct.calcsize(layout)
    else:
        scaled = value * _PER_BASE[point.unit]
        if point.type[0] == "f":
            data = struct.pack(layout, scaled)
        else:  # an integer register rolls over
            size = struct.calcsize(layout)
            data = (round(scaled) % (1 << 8 * size)).to_bytes(size, "big")
    words = [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]
    return words if big_words else words[::-1]


def respond(meter: MeterMap, values: MeterValues, pdu: bytes) -> bytes:
    """The meter's answer to a request PDU (function code and data), or an exception PDU."""
    function = pdu[0] if pdu else 0
    identity = meter.identity
    known = {meter.function_code} | ({meter.identity_function} if identity else set())
    if function not in known or len(pdu) != 5:
        return bytes((function | 0x80, ILLEGAL_FUNCTION))
    start, count = struct.unpack(">HH", pdu[1:])
    if not 1 <= count <= meter.max_registers:
        return bytes((function | 0x80, ILLEGAL_COUNT))
    image: dict[int, int] = {}
    limit = 0
    if function == meter.function_code:
        for point in meter.points:
            words = _words(point, values.by_name.get(point.name, 0.0), values.garbage, meter.big_words)
            image.update(enumerate(words, point.address))
        limit = max(_PLAIN_REGISTERS, max(image) + 1)
    if identity is not None and function == meter.identity_function:
        words = _words(identity, float(values.serial_number), values.garbage, meter.big_words)
        image.update(enumerate(words, identity.address))
    asked = range(start, start + count)
    legal = asked.stop <= limit or all(address in image for address in asked)
    if start % 2 or count % 2 or not legal:  # an Eastron reads whole values only
        return bytes((function | 0x80, ILLEGAL_ADDRESS))
    data = b"".join(image.get(address, 0).to_bytes(2, "big") for address in asked)
    return bytes((function, len(data))) + data
