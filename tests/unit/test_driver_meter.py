"""Meter maps, decoding, block planning and the poller's promises."""

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.events import Event, MeterFailed, MeterRead, MeterReading
from agent.drivers import meter
from agent.drivers.meter import Block, MeterPoller, Point
from agent.drivers.modbus import Line, MeterFailedError, ModbusBus
from unit.driver_peers import Heard, Registers, TcpPeer, clock_at, float_words

MODEL = "eastron_sdm630"
PACE = 0.02


@dataclass(frozen=True)
class Settings:
    port: str
    model: str = MODEL
    unit_id: int = 1
    poll_ms: int = 1000
    baud: int | None = None


@pytest.fixture
def peer() -> Iterator[TcpPeer]:
    registers = Registers()
    registers.put(0x48, 1234.5)
    registers.put(0x34, 7000.4)
    for phase in range(3):
        registers.put(phase * 2, 230.0 + phase)
        registers.put(6 + phase * 2, 10.0 + phase)
    peer = TcpPeer(registers)
    peer.start()
    yield peer
    peer.close()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def poller(peer: TcpPeer, heard: Heard) -> Iterator[MeterPoller]:
    poller = make(peer, heard.post)
    yield poller
    poller.stop()


def make(peer: TcpPeer, post: Callable[[Event], None], pace: float = PACE, unit_id: int = 1) -> MeterPoller:
    settings = Settings(peer.port, unit_id=unit_id)
    bus = ModbusBus(peer.port, Line(9600, timeout_s=0.05))
    return MeterPoller(bus, meter.load_map(MODEL), settings, post, clock_at(pace), pace)


def test_full_reading_is_one_request(peer: TcpPeer) -> None:
    bus = ModbusBus(peer.port, Line(9600, timeout_s=0.5))
    clock = clock_at(1.0)
    before = clock().mono_ms
    reading, read_at = meter.read_meter(bus, meter.load_map(MODEL), 1, clock)
    bus.close()
    assert reading == MeterReading(1_234_500, 7000, (10_000, 11_000, 12_000), (230_000, 231_000, 232_000))
    assert before <= read_at.mono_ms <= clock().mono_ms
    assert peer.registers.asked == [(4, 0, 74)]


class TickingRegisters(Registers):
    """A register that counts 1 Wh for each millisecond since it was made, as a meter under load does."""

    def __init__(self, elapsed_ms: Callable[[], int]) -> None:
        super().__init__()
        self._elapsed_ms = elapsed_ms

    def answer(self, pdu: bytes) -> tuple[str, bytes]:
        """As the others; the value is that of the moment of the request."""
        self.put(0x48, self._elapsed_ms() / 1000)
        return super().answer(pdu)


@pytest.mark.req("P1-S3.1")
def test_a_value_is_never_older_than_the_time_it_is_given() -> None:
    """Else the last energy of a session would be read too early and charged to nobody's session."""
    clock = clock_at(1.0)
    begun_ms = clock().mono_ms
    peer = TcpPeer(TickingRegisters(lambda: clock().mono_ms - begun_ms))
    peer.start()
    bus = ModbusBus(peer.port, Line(9600, timeout_s=0.5))
    readings = [meter.read_meter(bus, meter.load_map(MODEL), 1, clock) for _ in range(5)]
    bus.close()
    peer.close()
    assert all(reading.import_wh >= read_at.mono_ms - begun_ms for reading, read_at in readings)


def test_unit_that_refuses_long_blocks_is_read_in_short_ones_from_then_on(peer: TcpPeer) -> None:
    peer.registers.always = "refuse-long"
    bus = ModbusBus(peer.port, Line(9600, timeout_s=0.5))
    reader = meter.MeterReader(bus, meter.load_map(MODEL), 1)
    first, _ = reader.read(clock_at(1.0))
    second, _ = reader.read(clock_at(1.0))
    bus.close()
    assert first == second == MeterReading(1_234_500, 7000, (10_000, 11_000, 12_000), (230_000, 231_000, 232_000))
    assert peer.registers.asked[0] == (4, 0, 74)
    assert all(count <= 10 for _, _, count in peer.registers.asked[1:])
    assert len(peer.registers.asked) == 9


@pytest.mark.req("P1-B6")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e30])
def test_register_that_holds_no_energy_is_a_failure_not_zero(peer: TcpPeer, value: float) -> None:
    peer.registers.put(0x48, value)
    bus = ModbusBus(peer.port, Line(9600, timeout_s=0.5))
    with pytest.raises(MeterFailedError, match="its energy register holds no energy: check that it is a Eastron"):
        meter.read_meter(bus, meter.load_map(MODEL), 1, clock_at(1.0))
    bus.close()


def test_value_the_meter_does_not_have_is_none(peer: TcpPeer) -> None:
    peer.registers.put(0x34, float("nan"))
    peer.registers.put(0x08, float("nan"))
    bus = ModbusBus(peer.port, Line(9600, timeout_s=0.5))
    reading, _ = meter.read_meter(bus, meter.load_map(MODEL), 1, clock_at(1.0))
    bus.close()
    assert reading.power_w is None
    assert reading.current_ma is None
    assert reading.voltage_mv == (230_000, 231_000, 232_000)


def test_serial_number_is_read(peer: TcpPeer) -> None:
    peer.registers.words.update({0xFC00: 0x0123, 0xFC01: 0x4567})
    bus = ModbusBus(peer.port, Line(9600, timeout_s=0.5))
    assert meter.MeterReader(bus, meter.load_map(MODEL), 1).serial_number() == 0x01234567
    bus.close()
    assert peer.registers.asked == [(3, 0xFC00, 2)]


def test_unknown_model_names_those_that_exist() -> None:
    with pytest.raises(meter.UnknownModelError, match="'sdm999' is unknown: choose one of .*eastron_sdm630"):
        meter.load_map("sdm999")


@pytest.mark.parametrize("model", meter.known_models())
def test_every_map_is_whole(model: str) -> None:
    meter_map = meter.load_map(model)
    assert meter_map.function_code in (3, 4)
    assert meter_map.word_order in ("big", "little")
    assert meter_map.points["energy_import"].unit in ("Wh", "kWh")
    for point in meter_map.points.values():
        assert 0 <= point.address <= 0xFFFF
        assert point.registers <= meter_map.max_block_registers
        meter.decode(point, [0] * point.registers, meter_map.word_order)


@given(st.floats(0, 99_999, width=32))
def test_energy_is_the_nearest_watt_hour(kwh: float) -> None:
    decoded = meter.decode(Point(0x48, "f32", "kWh"), float_words(kwh))
    assert decoded is not None
    assert abs(decoded - kwh * 1000) <= 0.5


@given(st.lists(st.integers(0, 0xFFFF), min_size=2, max_size=2), st.sampled_from(["f32", "u32", "s32"]),
       st.sampled_from(["big", "little"]))
def test_every_word_pair_decodes_to_an_integer_or_none(words: list[int], kind: str, order: str) -> None:
    value = meter.decode(Point(0, kind, "W"), words, order)
    assert value is None or isinstance(value, int)
    assert value == meter.decode(Point(0, kind, "W"), words[::-1], "little" if order == "big" else "big")


@given(st.dictionaries(st.integers(0, 300).map(lambda half: half * 2), st.just("f32"), min_size=1, max_size=20),
       st.integers(2, 80), st.booleans())
def test_blocks_cover_every_point_within_the_limit(places: dict[int, str], limit: int, across_gaps: bool) -> None:
    points = {f"p{address}": Point(address, kind) for address, kind in places.items()}
    blocks = meter.plan_blocks(points, list(points), limit, across_gaps=across_gaps)
    assert sorted(name for block in blocks for name in block.names) == sorted(points)
    for block in blocks:
        assert block.count <= limit
        assert block.address % 2 == block.count % 2 == 0
        for name in block.names:
            assert block.address <= points[name].address
            assert points[name].address + 2 <= block.address + block.count
        if not across_gaps:
            assert block.count == 2 * len(block.names)


def test_energy_and_power_of_an_sdm630_are_one_short_block() -> None:
    points = meter.load_map(MODEL).points
    assert meter.plan_blocks(points, ["energy_import", "power"], 80, across_gaps=True) == [
        Block(0x34, 22, ("power", "energy_import"))]


def test_fast_polls_leave_unknown_what_they_did_not_read(poller: MeterPoller, peer: TcpPeer, heard: Heard) -> None:
    poller.start()
    first = heard.until(MeterRead)
    second = heard.until(MeterRead)
    heard.until(MeterRead, lambda event: event.reading.voltage_mv is not None)
    assert first.reading.voltage_mv is not None
    assert second.reading == MeterReading(1_234_500, 7000, None, None)
    assert second.read_at.mono_ms > first.read_at.mono_ms
    assert [count for _, _, count in peer.registers.asked[:11]] == [74, *[22] * 9, 74]


@pytest.mark.req("P1-B6")
def test_silent_meter_is_told_once_and_no_reading_is_made_up(
        poller: MeterPoller, peer: TcpPeer, heard: Heard) -> None:
    poller.start()
    heard.until(MeterRead)
    peer.registers.always = "silent"
    failed = heard.until(MeterFailed)
    asked = len(peer.registers.asked)
    readings = [event for event in heard.all if isinstance(event, MeterRead)]
    peer.registers.put(0x48, 1300.0)
    while len(peer.registers.asked) < asked + 6:
        heard.drained()
    assert [event for event in heard.drained() if isinstance(event, MeterRead)] == readings
    peer.registers.always = ""
    assert heard.until(MeterRead).reading.import_wh == 1_300_000
    assert sum(isinstance(event, MeterFailed) for event in heard.all) == 1
    assert failed.cause == f"{peer.port} unit 1: no answer: check the address, the network and the unit id"


def test_one_lost_poll_is_not_an_outage(poller: MeterPoller, peer: TcpPeer, heard: Heard) -> None:
    poller.start()
    heard.until(MeterRead)
    peer.registers.plan = ["silent", "silent"]  # a request and its retry
    for _ in range(3):
        heard.until(MeterRead)
    assert not [event for event in heard.all if isinstance(event, MeterFailed)]


@pytest.mark.req("P1-B6")
def test_meter_that_never_answered_is_told_after_the_first_poll(peer: TcpPeer, heard: Heard) -> None:
    poller = make(peer, heard.post, unit_id=9)
    poller.start()
    assert "unit 9: no answer" in heard.until(MeterFailed).cause
    poller.stop()


def test_outage_that_the_inbox_refused_is_told_at_the_next_poll(peer: TcpPeer, heard: Heard) -> None:
    refused: list[Event] = []

    def post(event: Event) -> None:
        if len(refused) < 2:
            refused.append(event)
            raise queue.Full
        heard.post(event)

    poller = make(peer, post, unit_id=9)
    poller.start()
    heard.until(MeterFailed)
    poller.stop()
    assert poller.dropped == 2


def test_poller_from_a_configuration_uses_the_models_line(heard: Heard) -> None:
    poller = meter.open_poller(Settings("/dev/ttyNOTHERE"), heard.post, clock_at(1.0), 1.0)
    poller.start()
    assert heard.until(MeterFailed).cause == "/dev/ttyNOTHERE: no such device: plug the adapter in or name another port"
    poller.stop()
