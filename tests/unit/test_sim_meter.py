"""The simulated meter on its two wires: real frames on a real pseudo-terminal and a real socket."""

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_sim.devices import Terminal
from firmware_sim.meter import RtuMeter, TcpMeter, answer_rtu, crc16
from firmware_sim.meter_map import MeterMap, MeterValues, read_map, respond

pytestmark = pytest.mark.req("P1-F20")

MAP_TEXT = """
model = "Eastron SDM630 v2"
function_code = 4
[identity]
function_code = 3
address = 0xFC00
type = "u32"
[point.energy_import]
address = 0x0048
type = "f32"
unit = "kWh"
[point.power]
address = 0x0034
type = "f32"
unit = "W"
[point.frequency]
address = 0x0046
type = "f32"
unit = "Hz"
"""
VALUES = MeterValues({"energy_import": 1_234_567.0, "power": 3680.0, "frequency": 50.0}, serial_number=19_630_001)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MeterMap:
    path = tmp_path_factory.mktemp("map") / "meter.toml"
    path.write_text(MAP_TEXT)
    return read_map(path)


def request(start: int, count: int, function: int = 4, unit: int = 1) -> bytes:
    body = struct.pack(">BBHH", unit, function, start, count)
    return body + crc16(body)


def test_crc_of_a_known_frame() -> None:
    # Printed in the Modbus over serial line specification and in every data sheet's example: 01 04 00 00 00 02 71 CB
    assert crc16(bytes.fromhex("010400000002")) == bytes.fromhex("71CB")


def test_registers_are_floats_with_the_high_word_first(model: MeterMap) -> None:
    pdu = respond(model, VALUES, bytes.fromhex("0400480002"))
    assert pdu == bytes((4, 4)) + struct.pack(">f", 1234.567)
    pdu = respond(model, VALUES, bytes.fromhex("0400340014"))
    assert len(pdu) == 2 + 40
    assert pdu[2:6] == struct.pack(">f", 3680.0)
    assert pdu[6:10] == bytes(4)
    assert pdu[38:42] == struct.pack(">f", 50.0)


def test_serial_number_is_a_holding_register(model: MeterMap) -> None:
    assert respond(model, VALUES, bytes.fromhex("03FC000002")) == bytes((3, 4)) + struct.pack(">I", 19_630_001)


@pytest.mark.parametrize(
    ("pdu", "exception"),
    [
        ("0400480052", "8403"),
        ("0400480000", "8403"),
        ("0490000002", "8402"),
        ("0400490002", "8402"),
        ("0400480001", "8402"),
        ("0300000002", "8302"),
        ("0600000001", "8601"),
        ("04", "8401"),
    ],
)
def test_exceptions(model: MeterMap, pdu: str, exception: str) -> None:
    assert respond(model, VALUES, bytes.fromhex(pdu)).hex().upper() == exception


def test_garbage_is_not_a_number(model: MeterMap) -> None:
    pdu = respond(model, replace(VALUES, garbage=True), bytes.fromhex("0400480002"))
    (value,) = struct.unpack(">f", pdu[2:])
    assert value != value


@given(st.binary(max_size=300))
def test_any_bytes_are_met_with_a_frame_or_silence(data: bytes) -> None:
    model = MeterMap("x", 4, True, 80, 9600, 10, 1, (), None, 3)
    reply = answer_rtu(model, VALUES, data + crc16(data)) if data[1:2] != b"\x04" else None
    assert reply is None or crc16(reply[:-2]) == reply[-2:]


class Wire:
    """A master on the meter's pseudo-terminal."""

    def __init__(self, model: MeterMap, directory: Path) -> None:
        self.values = VALUES
        self.terminal = Terminal(directory / "meter")
        self.meter = RtuMeter(model, lambda: self.values, self.terminal.fd, time.monotonic)
        self.meter.start()
        self.fd = os.open(directory / "meter", os.O_RDWR | os.O_NOCTTY)

    def exchange(self, frame: bytes, expected: int, wait_s: float = 2.0) -> bytes:
        os.write(self.fd, frame)
        reply = b""
        while len(reply) < expected and select.select([self.fd], [], [], wait_s)[0]:
            reply += os.read(self.fd, 256)
        return reply

    def close(self) -> None:
        self.meter.stop()
        os.close(self.fd)
        self.terminal.close()


@pytest.fixture
def line(model: MeterMap, tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(model, tmp_path)
    yield wire
    wire.close()
    assert list(tmp_path.iterdir()) == []


def test_a_reading_over_the_wire(line: Wire) -> None:
    begin = time.monotonic()
    reply = line.exchange(request(0x48, 2), 9)
    assert reply[:3] == bytes((1, 4, 4))
    assert reply[3:7] == struct.pack(">f", 1234.567)
    assert crc16(reply[:-2]) == reply[-2:]
    assert time.monotonic() - begin >= 17 * 10 / 9600  # the bytes' own time, both ways


def test_silence_for_others_and_for_broken_frames(line: Wire) -> None:
    broken = request(0x48, 2)[:-1] + b"\x00"
    for frame in (request(0x48, 2, unit=2), broken, b"\x01\x04"):
        assert line.exchange(frame, 1, wait_s=0.12) == b""
    line.values = replace(VALUES, silent=True)
    assert line.exchange(request(0x48, 2), 1, wait_s=0.12) == b""
    line.values = VALUES
    assert line.exchange(request(0x9000, 2), 5)[:3] == bytes((1, 0x84, 2))


def test_modbus_tcp(model: MeterMap) -> None:
    server = TcpMeter(model, lambda: VALUES, 0)
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=2) as client:
            client.sendall(bytes.fromhex("00070000000601 0400480002"))
            reply = client.recv(256)
            assert reply == bytes.fromhex("000700000007010404") + struct.pack(">f", 1234.567)
            client.sendall(bytes.fromhex("000800000006 01 0490000002"))
            assert client.recv(256) == bytes.fromhex("000800000003018402")
        with socket.create_connection(("127.0.0.1", server.port), timeout=2) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert _closed(client)
    finally:
        server.stop()
    assert not any(thread.name == "meter-tcp" for thread in threading.enumerate())


def _closed(client: socket.socket) -> bool:
    try:
        return client.recv(16) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("text", ["model = 1", "point = 3\nmodel = 'x'", "[point.a]\naddress = 'x'\n", "not toml ["])
def test_a_bad_map_is_refused_with_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"Meter map .* is not usable"):
        read_map(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_map(tmp_path / "missing.toml")
