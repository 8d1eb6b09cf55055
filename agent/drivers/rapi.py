"""RAPI 5.2.1, the serial language of OpenEVSE boards: frames to bytes and back, and what the numbers mean.

Pure: no port, clock, thread or log; a decoder never raises, whatever the line carries. Source of every rule:
OpenEVSE firmware 8.2.3 as observed on its serial port, and its protocol text. Carries P1-S1.6 (pilot states).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.core.events import Pilot

MAX_FRAME_CHARS = 31  # "$" up to and excluding CR; the board drops longer lines silently
BUFFER_BYTES = 256  # far above the longest reply; a longer line is noise and is dropped

CONNECTED = 0x0100
CLOSED = 0x0040
HARD_FAULT = 0x0002
STARTING, SLEEPING, DISABLED = 0x00, 0xFE, 0xFF
WELDED = 0x08

_PILOTS = {0x01: Pilot.A, 0x02: Pilot.B, 0x03: Pilot.C, 0x04: Pilot.D}
_FAULTS = {
    0x04: "ventilation asked for, or pilot shorted",
    0x05: "diode missing, or pilot shorted",
    0x06: "ground fault",
    0x07: "no ground, or relay did not close",
    0x08: "stuck relay",
    0x09: "self test failed",
    0x0A: "over-temperature",
    0x0B: "over-current",
    0x0E: "relay did not close",
}
_PROTECTIONS = {  # ECF flag that switches the protection off
    0x0002: "diode",
    0x0004: "ventilation",
    0x0008: "ground",
    0x0010: "stuck-relay",
    0x0200: "ground-fault-self-test",
    0x0400: "temperature",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """`$OK` or `$NK`. `sequence` None: the board could not match it to a command, e.g. after a wrong checksum."""

    ok: bool
    words: tuple[str, ...]
    sequence: int | None


@dataclass(frozen=True, slots=True)
class Changed:
    """`$AT`: the board's state as numbers, sent by the board itself."""

    state: int
    pilot: int
    amps: int
    vflags: int


@dataclass(frozen=True, slots=True)
class Booted:
    """`$AB`: the end of the self test. Postcode 0 is a pass, else the state number of the fault."""

    postcode: int
    firmware: str


@dataclass(frozen=True, slots=True)
class Button:
    """`$AN`: the front button."""

    long: bool


@dataclass(frozen=True, slots=True)
class WifiAsked:
    """`$WF`: someone asks for a Wi-Fi mode at the front button."""

    mode: str


@dataclass(frozen=True, slots=True)
class Status:
    """The reply to `$GS`, as numbers."""

    state: int
    elapsed_s: int
    pilot: int
    vflags: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """The reply to `$GC`, in whole amperes."""

    min_a: int
    hardware_max_a: int
    now_a: int
    stored_max_a: int


Frame = Reply | Changed | Booted | Button | WifiAsked


def checksum(body: bytes) -> int:
    """XOR of all bytes before `^`, `$` included; 0..255."""
    total = 0
    for byte in body:
        total ^= byte
    return total


def encode(command: str, *params: str, sequence: int | None = None) -> bytes:
    """One frame with its checksum and, when given, its sequence id 1..255. Raises ValueError when it cannot be sent."""
    if sequence is not None and not 1 <= sequence <= 0xFF:
        raise ValueError(f"sequence {sequence} is not 1..255")
    words = [command, *params] + ([] if sequence is None else [f":{sequence:02X}"])
    for word in words:
        if not word or not all("!" <= char <= "~" and char not in "$^*" for char in word):
            raise ValueError(f"{word!r} is not a RAPI word")
    body = ("$" + " ".join(words)).encode("ascii")
    frame = body + b"^%02X" % checksum(body)
    if len(frame) > MAX_FRAME_CHARS:
        raise ValueError(f"{frame.decode('ascii')} has {len(frame)} characters, the board takes {MAX_FRAME_CHARS}")
    return frame + b"\r"


@dataclass(slots=True)
class Decoder:
    """Frames out of a byte stream. What is not a frame is skipped; a frame that does not check is counted."""

    bad_frames: int = 0
    _buffer: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete, in order. Keeps at most BUFFER_BYTES of an unfinished line."""
        frames: list[Frame] = []
        *lines, rest = (bytes(self._buffer) + data).split(b"\r")
        for line in lines:
            frame = self._frame(line)
            if frame is not None:
                frames.append(frame)
        rest = rest[max(rest.rfind(b"$"), 0):]
        if len(rest) > BUFFER_BYTES:
            self.bad_frames += rest.startswith(b"$")
            rest = b""
        self._buffer = bytearray(rest)
        return frames

    def _frame(self, line: bytes) -> Frame | None:
        start = line.rfind(b"$")  # "$" always starts a new frame
        if start < 0:
            return None
        body, mark, digits = line[start:].rpartition(b"^")
        if not mark or _hex(digits.decode("latin-1"), 2) != checksum(body):
            self.bad_frames += 1
            return None
        frame = _typed(body.decode("latin-1").split(" "))
        if frame is None:
            self.bad_frames += 1
        return frame


def _typed(words: list[str]) -> Frame | None:
    match words:
        case ["$OK" | "$NK" as verdict, *rest]:
            sequence = None
            if rest and rest[-1].startswith(":") and (sequence := _hex(rest[-1][1:], 2)) is not None:
                rest = rest[:-1]
            return Reply(verdict == "$OK", tuple(rest), sequence)
        case ["$AT", *fields]:
            return _changed(fields)
        case ["$AB", postcode_text, firmware]:
            postcode = _hex(postcode_text, 2)
            return None if postcode is None else Booted(postcode, firmware)
        case ["$AN", "0" | "1" as length]:
            return Button(length == "1")
        case ["$WF", mode]:
            return WifiAsked(mode)
    return None


def _changed(fields: Sequence[str]) -> Changed | None:
    if len(fields) != 4:
        return None
    state, pilot, amps, vflags = _hex(fields[0], 2), _hex(fields[1], 2), _decimal(fields[2]), _hex(fields[3], 4)
    if state is None or pilot is None or amps is None or vflags is None:
        return None
    return Changed(state, pilot, amps, vflags)


def _hex(text: str, digits: int) -> int | None:
    if len(text) != digits or not all(char in "0123456789abcdefABCDEF" for char in text):
        return None
    return int(text, 16)


def _decimal(text: str) -> int | None:
    if not 1 <= len(text) <= 9 or not all(char in "0123456789" for char in text):
        return None
    return int(text)


def status(words: Sequence[str]) -> Status | None:
    """The reply to `$GS`. None: it is not one."""
    if len(words) != 4:
        return None
    state, elapsed_s, pilot, vflags = _hex(words[0], 2), _decimal(words[1]), _hex(words[2], 2), _hex(words[3], 4)
    if state is None or elapsed_s is None or pilot is None or vflags is None:
        return None
    return Status(state, elapsed_s, pilot, vflags)


def capacity(words: Sequence[str]) -> Capacity | None:
    """The reply to `$GC`. None: it is not one."""
    values = [_decimal(word) for word in words]
    match values:
        case [int(low), int(high), int(now), int(stored)]:
            return Capacity(low, high, now, stored)
    return None


def ecf_flags(words: Sequence[str]) -> int | None:
    """The flags of the reply to `$GE`. None: it is not one."""
    return _hex(words[1], 4) if len(words) == 2 and _decimal(words[0]) is not None else None


def protections_off(ecf: int) -> tuple[str, ...]:
    """Names of the safety checks that are switched off in these ECF flags; empty is safe."""
    return tuple(name for flag, name in _PROTECTIONS.items() if ecf & flag)


def is_asleep(state: int) -> bool:
    """True while the board withholds power until it is asked (sleeping or disabled)."""
    return state in (SLEEPING, DISABLED)


def is_plugged(state: int, vflags: int) -> bool | None:
    """Whether a vehicle is connected. None: the board cannot see it (starting, or pilot held at -12 V)."""
    return None if state in (STARTING, DISABLED) else bool(vflags & CONNECTED)


def is_closed(state: int, vflags: int) -> bool | None:
    """Whether the relay is closed. None: self test running, or a relay that sticks although its drive is off."""
    return None if state in (STARTING, WELDED) else bool(vflags & CLOSED)


def pilot(state: int, pilot_state: int, vflags: int) -> Pilot:
    """Pilot state for the station. While asleep the board's pilot field is frozen, so the connected flag decides."""
    if state == DISABLED:
        return Pilot.F  # -12 V
    if state == STARTING:
        return Pilot.UNKNOWN
    plugged = bool(vflags & CONNECTED)
    if state == SLEEPING:
        return Pilot.B if plugged else Pilot.A
    if fault(state) is not None:
        return _PILOTS.get(pilot_state, Pilot.UNKNOWN)
    if not plugged:
        return Pilot.A
    seen = _PILOTS.get(pilot_state, Pilot.B)
    return Pilot.B if seen is Pilot.A else seen  # plug seen, pilot state not settled yet


def fault(state: int) -> str | None:
    """The board's own name of a fault state, e.g. `06 ground fault`. None: this state is not a fault."""
    if state in (STARTING, 0x01, 0x02, 0x03, SLEEPING, DISABLED):
        return None
    return f"{state:02x} {_FAULTS.get(state, 'fault of a kind not known')}"


def is_boot_fault(state: int, vflags: int) -> bool:
    """True for a failed self test at power-up, which only a power cycle ends and which no flag shows."""
    return state in (0x07, 0x08, 0x09) and not vflags & (CONNECTED | HARD_FAULT | 0x0400)
