"""The simulated meter's two wires: Modbus RTU on a pseudo-terminal, and Modbus TCP.

RTU keeps real time as a real line does: a frame ends with 3.5 characters of silence, the reply comes after the
request's own time on the wire and a turn-round, one byte at a time. Bad CRC and foreign unit ids are met with silence.
What the registers say is in meter_map.py. Wire time is never scaled. P1-F20.
"""

import os
import select
import socket
import socketserver
import struct
import threading
from collections.abc import Callable

from firmware_sim.meter_map import MeterMap, MeterValues, respond

TURN_ROUND_S = 0.010
FRAME_LIMIT = 256
MBAP_LENGTH = 7
IDLE_S = 0.2
TCP_IDLE_S = 60.0

ReadValues = Callable[[], MeterValues]
Clock = Callable[[], float]


def crc16(data: bytes) -> bytes:
    """Modbus CRC of `data`, low byte first."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return crc.to_bytes(2, "little")


def answer_rtu(meter: MeterMap, values: MeterValues, frame: bytes) -> bytes | None:
    """The reply frame, or None where a meter keeps silent."""
    if len(frame) < 4 or crc16(frame[:-2]) != frame[-2:] or frame[0] != meter.unit_id or values.silent:
        return None
    body = frame[:1] + respond(meter, values, frame[1:-2])
    return body + crc16(body)


class RtuMeter:
    """Serves one pseudo-terminal from its own thread until `stop`."""

    def __init__(self, meter: MeterMap, read_values: ReadValues, fd: int, clock: Clock) -> None:
        self._meter = meter
        self._read_values = read_values
        self._fd = fd
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="meter-rtu", daemon=True)

    def start(self) -> None:
        """Starts answering."""
        self._thread.start()

    def stop(self) -> None:
        """Stops answering; the file descriptor stays the caller's."""
        self._stop.set()
        self._thread.join(timeout=2)

    def _serve(self) -> None:
        while not self._stop.is_set():
            frame = self._read_frame()
            if not frame:
                continue
            reply = answer_rtu(self._meter, self._read_values(), frame)
            self._stop.wait(len(frame) * self._meter.byte_time_s + TURN_ROUND_S)
            if reply is not None:
                self._send(reply)

    def _read_frame(self) -> bytes:
        """Bytes up to 3.5 characters of silence; empty when none came or too many."""
        frame = bytearray()
        wait_s = IDLE_S
        while not self._stop.is_set() and select.select([self._fd], [], [], wait_s)[0]:
            try:
                frame += os.read(self._fd, FRAME_LIMIT)
            except OSError:  # the other end was closed
                self._stop.wait(IDLE_S)
                return b""
            wait_s = 3.5 * self._meter.byte_time_s
            if len(frame) > FRAME_LIMIT:
                frame.clear()
        return bytes(frame)

    def _send(self, reply: bytes) -> None:
        """Each byte when its time has come."""
        begin_s = self._clock()
        sent = 0
        while sent < len(reply) and not self._stop.is_set():
            due = min(len(reply), int((self._clock() - begin_s) / self._meter.byte_time_s))
            if due > sent:
                try:
                    sent += os.write(self._fd, reply[sent:due])
                except BlockingIOError:  # nobody reads: the bytes are lost, as on a wire
                    return
            self._stop.wait(self._meter.byte_time_s)


class _TcpHandler(socketserver.BaseRequestHandler):
    """One Modbus TCP connection."""

    server: "TcpMeter"
    request: socket.socket

    def handle(self) -> None:
        """Answers requests until the client goes, stays silent for a minute, or sends what is not Modbus."""
        self.request.settimeout(TCP_IDLE_S)
        try:
            while (header := self._exactly(MBAP_LENGTH)) is not None:
                transaction, protocol, length, unit = struct.unpack(">HHHB", header)
                if protocol != 0 or not 2 <= length <= FRAME_LIMIT - 2:
                    return
                pdu = self._exactly(length - 1)
                if pdu is None:
                    return
                values = self.server.read_values()
                if values.silent or unit != self.server.meter.unit_id:
                    continue
                reply = respond(self.server.meter, values, pdu)
                self.request.sendall(struct.pack(">HHHB", transaction, 0, len(reply) + 1, unit) + reply)
        except OSError:
            return

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            part = self.request.recv(count - len(data))
            if not part:
                return None
            data += part
        return data


class TcpMeter(socketserver.ThreadingTCPServer):
    """Modbus TCP on 127.0.0.1; port 0 lets the system choose."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, meter: MeterMap, read_values: ReadValues, port: int) -> None:
        super().__init__(("127.0.0.1", port), _TcpHandler)
        self.meter = meter
        self.read_values = read_values
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="meter-tcp", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self.server_address[1])

    def start(self) -> None:
        """Starts answering."""
        self._thread.start()

    def stop(self) -> None:
        """Stops answering and closes the port."""
        self.shutdown()
        self.server_close()
        self._thread.join(timeout=2)
