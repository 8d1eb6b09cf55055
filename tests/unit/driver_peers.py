"""The other ends for driver tests: a scripted pilot board and a raw Modbus responder, on pseudo-terminals and TCP.

Independent of the agent's codecs on purpose: own checksums, own framing.
"""

import os
import queue
import re
import select
import socket
import struct
import threading
import time
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from agent.core.clock import Now
from agent.core.events import Event

ALLOWED = re.compile(r"\$(GV|GE|GC|GS|GY|SY( 165| \d+ \d+)?|SC \d+ V|FE|FS|FD) :[0-9A-F]{2}")
WAIT_S = 8.0
T = TypeVar("T")


def clock_at(pace: float) -> Callable[[], Now]:
    """The world's clock when one world second takes `pace` real seconds."""
    return lambda: Now(int(time.monotonic() * 1000 / pace), datetime.now(UTC).replace(microsecond=0), True)


class Heard:
    """Events in the order in which the driver posted them."""

    def __init__(self) -> None:
        self._inbox: queue.Queue[Event] = queue.Queue(10_000)
        self.all: list[Event] = []

    def post(self, event: Event) -> None:
        self._inbox.put_nowait(event)

    def until(self, kind: type[T], holds: Callable[[T], bool] = lambda _: True) -> T:
        """The next event of a kind for which it holds; fails the test when it does not come."""
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                event = self._inbox.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                raise AssertionError(f"no such {kind.__name__}; heard {self.all[-5:]}") from None
            self.all.append(event)
            if isinstance(event, kind) and holds(event):
                return event

    def drained(self) -> list[Event]:
        """All events so far."""
        while not self._inbox.empty():
            self.all.append(self._inbox.get_nowait())
        return self.all


class Pty:
    """A pseudo-terminal with a thread that hands on what the driver writes."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        self.path = os.ttyname(self.slave)
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        os.write(self._stop_write, b"x")
        self._thread.join(5)
        for descriptor in (self.master, self.slave, self._stop_read, self._stop_write):
            os.close(descriptor)

    def send(self, data: bytes) -> None:
        os.write(self.master, data)

    def on_data(self, data: bytes) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self.master, self._stop_read], [], [])
            if self._stop_read in ready:
                return
            self.on_data(os.read(self.master, 4096))


def board_frame(text: str) -> bytes:
    """A frame as the board sends it."""
    total = 0
    for char in text:
        total ^= ord(char)
    return f"{text}^{total:02X}\r".encode()


class BoardPeer(Pty):
    """Enough of an OpenEVSE board to lead the driver through its paths; faults are switched on by attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.pilot, self.vflags = 0x01, 0x01, 0x0200
        self.amps, self.stored_a, self.grants_a = 32, 32, 80
        self.heartbeat = ["0", "0"]
        self.trigger = 0
        self.ecf = 0x0021
        self.silent = False
        self.lose: set[str] = set()  # commands whose next frame goes unanswered
        self.damage: set[str] = set()  # commands whose next frame arrives damaged
        self.before_reply = b""
        self.after_status: tuple[int, int, int] | None = None  # becomes this right behind the next reply to $GS
        self.wants_power = False
        self.opens_when_asleep = True
        self.sent_by_driver = bytearray()
        self.commands: list[str] = []
        self._seen = threading.Condition()
        self._lock = threading.RLock()
        self._pending = b""

    def on_data(self, data: bytes) -> None:
        self.sent_by_driver += data
        *lines, self._pending = (self._pending + data).split(b"\r")
        for line in lines:
            self._on_frame(line.decode())

    def until(self, command: str, times: int = 1) -> None:
        """Waits until the driver has sent this command so often."""
        with self._seen:
            assert self._seen.wait_for(lambda: self.commands.count(command) >= times, WAIT_S), self.commands

    def announce(self) -> None:
        self.send(board_frame(f"$AT {self.state:02x} {self.pilot:02x} {self.amps} {self.vflags:04x}"))

    def become(self, state: int, pilot: int, vflags: int, amps: int | None = None) -> None:
        """Changes as a whole, and says so."""
        with self._lock:
            self.state, self.pilot, self.vflags = state, pilot, vflags
            self.amps = self.amps if amps is None else amps
            self.announce()

    def plug(self) -> None:
        with self._lock:
            at = 0x02 if self.state == 0x01 else self.state
            self.become(at, 0x02 if at == 0x02 else self.pilot, self.vflags & ~0x0200 | 0x0700)

    def reboot(self) -> None:
        with self._lock:
            self._reboot()

    def _reboot(self) -> None:
        self.state, self.pilot, self.vflags, self.amps, self.trigger = 0x01, 0x01, 0x0200, self.stored_a, 0
        self.send(b"\nrelayCloseMs: 100\r\nrelayHoldPwm: 255\r\n" + board_frame("$AT 00 00 0 0200")
                  + board_frame("$AB 00 8.2.3.EU"))
        self.announce()

    def _on_frame(self, line: str) -> None:
        body = line.partition("^")[0]
        assert board_frame(body) == line.encode() + b"\r", line
        command = body[1:].rpartition(" :")[0]
        with self._seen:
            self.commands.append(command)
            self._seen.notify_all()
        if self.silent:
            return
        if command in self.lose:
            self.lose.discard(command)
            return
        if command in self.damage:
            self.damage.discard(command)
            self.send(board_frame("$NK"))
            return
        with self._lock:
            text = self._answer(command.split(" "))
            answer = self.before_reply + board_frame(f"{text} {body[-3:]}")
            if command == "GS" and self.after_status is not None:
                (self.state, self.pilot, self.vflags), self.after_status = self.after_status, None
                answer += board_frame(f"$AT {self.state:02x} {self.pilot:02x} {self.amps} {self.vflags:04x}")
            self.send(answer)
            if command[:2] in ("SC", "FS", "FE", "FD") or command == "SY 165":
                self.announce()

    def _answer(self, words: list[str]) -> str:
        match words:
            case ["GV"]:
                return "$OK 8.2.3.EU 5.2.1"
            case ["GE"]:
                return f"$OK {self.amps} {self.ecf:04x}"
            case ["GC"]:
                return f"$OK 6 32 {self.amps} {self.stored_a}"
            case ["GS"]:
                return f"$OK {self.state:02x} 0 {self.pilot:02x} {self.vflags:04x}"
            case ["GY"]:
                return f"$OK {' '.join(self.heartbeat)} {self.trigger}"
            case ["SY"]:
                return f"{'$NK' if self.trigger == 2 else '$OK'} {' '.join(self.heartbeat)} {self.trigger}"
            case ["SY", "165"]:
                self.trigger, self.amps = 1 if self.trigger else 0, self.stored_a
                return f"$OK {' '.join(self.heartbeat)} {self.trigger}"
            case ["SY", *heartbeat]:
                self.heartbeat, self.trigger = heartbeat, 0
                return f"$OK {' '.join(heartbeat)} 0"
            case ["SC", amps, "V"]:
                self.amps = min(int(amps), self.stored_a, self.grants_a)
                return f"{'$OK' if self.amps == int(amps) else '$NK'} {self.amps}"
            case ["FS" | "FD" | "FE" as function]:
                self._function(function)
                return "$OK"
        raise AssertionError(words)

    def _function(self, function: str) -> None:
        plugged = bool(self.vflags & 0x0100)
        if function == "FE":
            if self.state in (0xFE, 0xFF):
                self.state = self.pilot = 0x02 if plugged else 0x01
                if plugged and self.wants_power:
                    self.state, self.pilot, self.vflags = 0x03, 0x03, 0x0540
            return
        self.state = 0xFE if function == "FS" else 0xFF
        if function == "FD" or self.opens_when_asleep:
            self.vflags &= ~0x0040


def modbus_crc(data: bytes) -> bytes:
    """CRC-16/MODBUS, low byte first, bit by bit from its definition."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc.to_bytes(2, "little")


def float_words(value: float) -> list[int]:
    """IEEE 754 single precision, high word first."""
    return list(struct.unpack(">2H", struct.pack(">f", value)))


@dataclass
class Registers:
    """What the responder knows, and how it misbehaves. `plan` names what to do with each coming request."""

    unit_id: int = 1
    words: dict[int, int] = field(default_factory=dict)
    plan: list[str] = field(default_factory=list)  # "", silent, crc, exception, short, late, function, refuse-long
    always: str = ""
    asked: list[tuple[int, int, int]] = field(default_factory=list)  # function, address, count

    def put(self, address: int, value: float) -> None:
        self.words.update(zip(range(address, address + 2), float_words(value), strict=True))

    def answer(self, pdu: bytes) -> tuple[str, bytes]:
        function, address, count = struct.unpack(">BHH", pdu)
        self.asked.append((function, address, count))
        how = self.plan.pop(0) if self.plan else self.always
        if how == "refuse-long" and count > 10:
            return how, bytes([function | 0x80, 2])
        if how == "exception":
            return how, bytes([function | 0x80, 4])
        count -= how == "short"
        function += how == "function"
        words = [self.words.get(address + index, 0) for index in range(count)]
        return how, struct.pack(f">BB{count}H", function, count * 2, *words)


class RtuPeer(Pty):
    """Modbus RTU responder on a pseudo-terminal; a `late` answer leaves 150 ms after its request."""

    def __init__(self, registers: Registers) -> None:
        super().__init__()
        self.registers = registers

    def on_data(self, data: bytes) -> None:
        for start in range(0, len(data) - 7, 8):
            frame = data[start:start + 8]
            assert modbus_crc(frame[:-2]) == frame[-2:], frame.hex()
            if frame[0] != self.registers.unit_id:
                continue
            how, pdu = self.registers.answer(frame[1:-2])
            answer = frame[:1] + pdu
            answer += modbus_crc(answer) if how != "crc" else b"\x00\x00"
            if how == "late":
                threading.Timer(0.15, self.send, [answer]).start()
            elif how != "silent":
                self.send(answer)


class TcpPeer:
    """Modbus TCP responder on the loopback."""

    def __init__(self, registers: Registers) -> None:
        self.registers = registers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        self._thread.join(5)

    def drop(self) -> None:
        """Closes the connections, as a restarted gateway does."""
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the driver closed it first

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            with connection:
                for request in _requests(connection):
                    tid, unit = request[:2], request[6:7]
                    how, pdu = self.registers.answer(request[7:])
                    if how == "late":
                        tid = bytes([tid[0] ^ 0x40, tid[1]])
                    if how != "silent" and unit[0] == self.registers.unit_id:
                        connection.sendall(tid + b"\0\0" + struct.pack(">H", len(pdu) + 1) + unit + pdu)
            self._connections.remove(connection)


def _requests(connection: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            data = connection.recv(12, socket.MSG_WAITALL)
        except OSError:
            return
        if len(data) < 12:
            return
        yield data
