"""The only door to pymodbus: register words of one bus, RTU on a serial line or Modbus TCP, or one typed error.

Knows no meter and decodes nothing. A reply that comes late is never taken for the next one: after every failure the
line is listened to until it is quiet, and a TCP connection is dropped. Carries part of P1-B6 (silence is told, nothing
is guessed). pymodbus' own serial client polls the port every four characters while it waits; `_SerialClient` sleeps
until the first byte, then for as long as the rest takes on the wire.
"""

import logging
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pymodbus.client import ModbusSerialClient, ModbusTcpClient
from pymodbus.exceptions import ModbusException

from agent.drivers import serialport

ATTEMPTS: Final = 2  # one retry, then it is the poller's turn to say so
_QUIET_READS: Final = 8  # a line that never falls quiet is left after as many reads
_QUIET_BYTES: Final = 64
_RTU_HEAD_BYTES: Final = 5  # unit, function, byte count or exception code, two more: the shortest whole answer
_EXCEPTIONS = {1: "illegal function", 2: "illegal address", 3: "illegal value", 4: "device failure", 5: "acknowledge",
               6: "busy", 8: "memory parity error", 10: "gateway path unavailable", 11: "gateway target silent"}

# pymodbus logs each lost reply as an error; here a lost reply is a typed error and, once, an event.
logging.getLogger("pymodbus").setLevel(logging.CRITICAL)


class MeterFailedError(Exception):
    """The bus gave no usable words; the text says where, what, and what to check."""


class BlockRefusedError(MeterFailedError):
    """The unit answers but does not serve these registers in one block."""


@dataclass(frozen=True, slots=True)
class Line:
    """How a serial line is set. Modbus TCP needs none of it but the time-out."""

    baud: int
    parity: str = "N"
    stop_bits: int = 1
    timeout_s: float = 0.5  # real time until an answer counts as lost; restarts at the first byte
    min_gap_ms: int = 0  # real silence that the device needs before a request; a TCP gateway keeps its own


class _SerialClient(ModbusSerialClient):
    """pymodbus' RTU client on our port, waiting without polling."""

    def __init__(self, path: str, line: Line, trace: Callable[[bool, bytes], bytes]) -> None:
        super().__init__(path, baudrate=line.baud, parity=line.parity, stopbits=line.stop_bits, timeout=line.timeout_s,
                         retries=0, trace_packet=trace)
        self._line = line
        self._byte_s = (9 + line.stop_bits + (line.parity != "N")) / line.baud
        self._pause = threading.Event()  # never set

    def connect(self) -> bool:
        """Opens the port if it is not open. Raises PortError."""
        if self.socket is None:
            self.socket = serialport.open_line(self.comm_params.host, self._line.baud, self._line.parity,
                                               self._line.stop_bits)
            self.socket.timeout = self._line.timeout_s
        return True

    def recv(self, size: int | None) -> bytes:
        """One whole answer, or what came of it until the time-out."""
        head = self._read(_RTU_HEAD_BYTES)
        if len(head) < _RTU_HEAD_BYTES or head[1] & 0x80:
            return head
        return head + self._read(head[2])

    def close(self) -> None:
        """Gives the port back; a second call does nothing."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def listen_until_quiet(self) -> None:
        """Throws away what still comes, until one time-out has passed in silence."""
        for _ in range(_QUIET_READS):
            if self.socket is None or not self._read(_QUIET_BYTES):
                return

    def _read(self, size: int) -> bytes:
        assert self.socket is not None
        try:
            first = bytes(self.socket.read(1))
            missing = size - 1 - self.socket.in_waiting
            if not first or size == 1:
                return first
            if missing > 0:  # one sleep for the rest, instead of one wake-up for each byte
                self._pause.wait(missing * self._byte_s)
            return first + bytes(self.socket.read(size - 1))
        except OSError as error:
            self.close()
            raise serialport.PortError(self.comm_params.host, serialport.advice(error)) from error


class _TcpClient(ModbusTcpClient):
    """pymodbus' TCP client; it tells answers apart by their transaction number."""

    def close(self) -> None:
        """Drops the connection; a second call does nothing."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class ModbusBus:
    """One bus, used by one thread. Opens itself at the first read and again after a loss."""

    def __init__(self, port: str, line: Line, elapsed_ms: Callable[[], int] = lambda: 0) -> None:
        """`port` is a device, or host:port for TCP. `elapsed_ms` counts real ms, to keep the gap. Raises ValueError."""
        self.port = port
        self._line = line
        self._elapsed_ms = elapsed_ms
        self._heard_bytes = 0
        self._silent_since_ms: int | None = None
        self._stop = threading.Event()
        self._client: _SerialClient | _TcpClient
        if is_tcp(port):
            host, _, number = port.rpartition(":")
            if not host or not (number.isascii() and number.isdigit() and 1 <= int(number) <= 65535):
                raise ValueError(f"{port}: not host:port: write for example 192.168.1.20:502")
            self._client = _TcpClient(host.strip("[]"), port=int(number), timeout=line.timeout_s, retries=0,
                                      trace_packet=self._trace)
        else:
            self._client = _SerialClient(port, line, self._trace)

    def read(self, unit_id: int, function_code: int, address: int, count: int) -> list[int]:
        """`count` register words, 0..65535 each. Raises MeterFailedError, after one retry when an answer was lost."""
        if function_code not in (3, 4):
            raise ValueError(f"function code {function_code} does not read registers")
        ask = (self._client.read_holding_registers if function_code == 3 else self._client.read_input_registers)
        where = f"{self.port} unit {unit_id}"
        for attempt in range(1, ATTEMPTS + 1):
            self._keep_gap()
            self._heard_bytes = 0
            try:
                answer = ask(address, count=count, device_id=unit_id)
            except serialport.PortError as error:
                self.close()
                raise MeterFailedError(str(error)) from error
            except (ModbusException, OSError, struct.error, IndexError, ValueError) as error:
                cause = self._cause(where)
                self._recover()
                if attempt == ATTEMPTS:
                    raise MeterFailedError(cause) from error
                continue
            finally:
                self._silent_since_ms = self._elapsed_ms()
            return self._words(answer, where, function_code, address, count)
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Gives the port back; the next read opens it again."""
        self._client.close()

    def stop(self) -> None:
        """Ends a wait for the gap at once; for good. May be called from any thread."""
        self._stop.set()

    def _words(self, answer: Any, where: str, function_code: int, address: int, count: int) -> list[int]:
        block = f"registers {address:#06x}..{address + count - 1:#06x}"
        if answer.isError():
            code = int(answer.exception_code)
            text = f"{where}: refuses {block}: {_EXCEPTIONS.get(code, 'exception')} ({code}): check the meter's model"
            raise BlockRefusedError(text) if code in (2, 3) else MeterFailedError(text)
        words = answer.registers
        if answer.function_code != function_code or len(words) != count:
            self._recover()
            raise MeterFailedError(f"{where}: answered {len(words)} words of function {answer.function_code} "
                                   f"to {block} of function {function_code}: check for a second master on the bus")
        return [int(word) for word in words]

    def _cause(self, where: str) -> str:
        if self._heard_bytes:
            return f"{where}: answer damaged (checksum or length): check wiring, termination, baud and parity"
        if isinstance(self._client, _TcpClient):
            return f"{where}: no answer: check the address, the network and the unit id"
        return f"{where}: no answer: check the unit id, wiring and baud"

    def _recover(self) -> None:
        """Leaves a bus on which no old answer can arrive any more."""
        if isinstance(self._client, _SerialClient):
            try:
                self._client.listen_until_quiet()
            except serialport.PortError:
                self._client.close()  # the next read opens it and says what is wrong
        else:
            self._client.close()

    def _keep_gap(self) -> None:
        if self._silent_since_ms is None or isinstance(self._client, _TcpClient):
            return
        left_ms = self._line.min_gap_ms - (self._elapsed_ms() - self._silent_since_ms)
        if left_ms > 0:
            self._stop.wait(min(left_ms, self._line.min_gap_ms) / 1000)

    def _trace(self, sending: bool, data: bytes) -> bytes:
        if not sending:
            self._heard_bytes = len(data)
        return data


def is_tcp(port: str) -> bool:
    """Whether a configured port is host:port and not a device."""
    return ":" in port and "/" not in port
