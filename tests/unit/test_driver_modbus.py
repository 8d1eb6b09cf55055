"""Modbus bus against raw responders: words or one clear error, and never an old answer for a new request."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.drivers.modbus import BlockRefusedError, Line, MeterFailedError, ModbusBus, is_tcp
from unit.driver_peers import Registers, RtuPeer, TcpPeer, float_words

LINE = Line(9600, timeout_s=0.1)


@pytest.fixture
def registers() -> Registers:
    registers = Registers()
    registers.put(0x48, 1234.5)
    registers.put(0x34, 7000.0)
    return registers


@pytest.fixture
def rtu(registers: Registers) -> Iterator[RtuPeer]:
    peer = RtuPeer(registers)
    peer.start()
    yield peer
    peer.close()


@pytest.fixture
def tcp(registers: Registers) -> Iterator[TcpPeer]:
    peer = TcpPeer(registers)
    peer.start()
    yield peer
    peer.close()


@pytest.fixture(params=["rtu", "tcp"])
def bus(request: pytest.FixtureRequest) -> Iterator[ModbusBus]:
    peer: RtuPeer | TcpPeer = request.getfixturevalue(request.param)
    bus = ModbusBus(peer.port if isinstance(peer, TcpPeer) else peer.path, LINE)
    yield bus
    bus.close()


@pytest.mark.parametrize("function_code", [3, 4])
def test_words_are_read(bus: ModbusBus, registers: Registers, function_code: int) -> None:
    assert bus.read(1, function_code, 0x48, 2) == float_words(1234.5)
    assert bus.read(1, function_code, 0, 74)[0x34:0x36] == float_words(7000.0)
    assert registers.asked == [(function_code, 0x48, 2), (function_code, 0, 74)]


@pytest.mark.parametrize("how", ["silent", "short", "function"])
def test_answer_that_fails_once_costs_a_retry_or_an_error_and_the_next_is_right(
        bus: ModbusBus, registers: Registers, how: str) -> None:
    registers.plan = [how]
    try:
        words = bus.read(1, 4, 0x48, 2)
    except MeterFailedError:
        words = bus.read(1, 4, 0x48, 2)
    assert words == float_words(1234.5)


@pytest.mark.parametrize(("how", "sentence"), [
    ("silent", "no answer: check the"),
    ("short", "answered 1 words of function 4 to registers 0x0048..0x0049 of function 4"),
    ("function", "answered 2 words of function 5"),
    ("exception", "refuses registers 0x0048..0x0049: device failure (4): check the meter's model")])
def test_answer_that_fails_always_is_one_clear_error(
        bus: ModbusBus, registers: Registers, how: str, sentence: str) -> None:
    registers.always = how
    with pytest.raises(MeterFailedError) as error:
        bus.read(1, 4, 0x48, 2)
    if how == "function":  # coils: read as another kind of answer, or as no whole one
        assert "unit 1: answer" in str(error.value)
    else:
        assert f"{bus.port} unit 1: {sentence}" in str(error.value)


def test_refused_block_is_told_from_other_refusals(bus: ModbusBus, registers: Registers) -> None:
    registers.always = "refuse-long"
    with pytest.raises(BlockRefusedError, match=r"illegal address \(2\)"):
        bus.read(1, 4, 0, 74)


@pytest.mark.req("P1-B6")
def test_wrong_unit_id_is_one_clear_sentence(bus: ModbusBus) -> None:
    with pytest.raises(MeterFailedError, match=r"unit 7: no answer: check the .*unit id"):
        bus.read(7, 4, 0x48, 2)


def test_damaged_answer_is_said_to_be_damaged(rtu: RtuPeer, registers: Registers) -> None:
    registers.always = "crc"
    bus = ModbusBus(rtu.path, LINE)
    with pytest.raises(MeterFailedError, match=r"answer damaged \(checksum or length\): check wiring"):
        bus.read(1, 4, 0x48, 2)
    registers.always = ""
    assert bus.read(1, 4, 0x48, 2) == float_words(1234.5)
    bus.close()


def test_late_answer_is_not_taken_for_the_next(bus: ModbusBus, registers: Registers) -> None:
    """On RTU the first answer leaves after the time-out; on TCP it comes with another transaction's number."""
    registers.plan = ["late"]
    registers.put(0x10, 1.0)
    assert bus.read(1, 4, 0x10, 2) == float_words(1.0)
    registers.plan = ["late", "silent"]
    with pytest.raises(MeterFailedError):
        bus.read(1, 4, 0x10, 2)
    assert bus.read(1, 4, 0x48, 2) == float_words(1234.5)


@pytest.mark.parametrize("garbage", [b"\x00", b"\x01\x84", b"\x01\x04\x04\x00", b"\xff" * 40,
                                     b"\x01\x2b\x0e" + b"\x00" * 9, b"\x01\x08\x00\x00\x00\x00\x00",
                                     b"\x01\x18" + b"\xff" * 30])
def test_garbage_raises_only_the_buses_own_error(rtu: RtuPeer, registers: Registers, garbage: bytes) -> None:
    registers.always = "silent"
    bus = ModbusBus(rtu.path, Line(9600, timeout_s=0.05))
    answer = registers.answer

    def noisy(pdu: bytes) -> tuple[str, bytes]:
        rtu.send(garbage)
        return answer(pdu)

    registers.answer = noisy  # type: ignore[method-assign]  # the responder is the test's own
    with pytest.raises(MeterFailedError):
        bus.read(1, 4, 0x48, 2)
    bus.close()


def test_lost_connection_is_opened_again(tcp: TcpPeer) -> None:
    bus = ModbusBus(tcp.port, LINE)
    assert bus.read(1, 4, 0x48, 2) == float_words(1234.5)
    tcp.drop()
    assert bus.read(1, 4, 0x48, 2) == float_words(1234.5)
    bus.close()


def test_missing_port_is_one_clear_sentence() -> None:
    with pytest.raises(MeterFailedError) as error:
        ModbusBus("/dev/ttyNOTHERE", LINE).read(1, 4, 0x48, 2)
    assert str(error.value) == "/dev/ttyNOTHERE: no such device: plug the adapter in or name another port"


def test_port_that_appears_later_is_used(rtu: RtuPeer, tmp_path: Path) -> None:
    link = tmp_path / "adapter"
    bus = ModbusBus(str(link), LINE)
    with pytest.raises(MeterFailedError, match="no such device"):
        bus.read(1, 4, 0x48, 2)
    link.symlink_to(rtu.path)
    assert bus.read(1, 4, 0x48, 2) == float_words(1234.5)
    bus.close()


@pytest.mark.parametrize("port", ["host:", ":502", "host:0", "host:65536", "host:x", "host:5²"])
def test_port_that_is_no_host_and_port_is_refused(port: str) -> None:
    with pytest.raises(ValueError, match="write for example"):
        ModbusBus(port, LINE)


def test_devices_are_not_taken_for_hosts() -> None:
    assert is_tcp("192.168.1.20:502")
    assert is_tcp("[::1]:502")
    assert not is_tcp("/dev/ttyUSB0")
    assert not is_tcp("/dev/serial/by-path/pci-0000:00:14.0")


def test_gap_is_kept_between_an_answer_and_the_next_request(rtu: RtuPeer) -> None:
    waits: list[float] = []
    elapsed = iter([0, 30, 30, 200, 200])  # after the answer, before the request, ...
    bus = ModbusBus(rtu.path, Line(9600, timeout_s=0.1, min_gap_ms=100), lambda: next(elapsed))
    bus._stop.wait = waits.append  # type: ignore[assignment, method-assign]  # the wait is what is looked at
    for _ in range(3):
        bus.read(1, 4, 0x48, 2)
    bus.close()
    assert waits == [0.07]
