"""Board and meter drivers against the simulator as its own process, over pseudo-terminals, at 20 times real time."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.core.clock import Now
from agent.core.events import BoardFailed, BoardFound, BoardReported, MeterFailed, MeterRead, Pilot
from agent.drivers.board_openevse import OpenEvseBoard
from agent.drivers.meter import MeterPoller, open_poller
from esci.timescale import VARIABLE, TimeScale
from unit.driver_peers import Heard

SCALE = 20
SIM = Path(sys.executable).with_name("evse-sim")
SCENARIO = """
[meter]
register_start_kwh = 1234.567

[[vehicle]]
name = "leaf"
vin = "1N4AZ0CPXDC400001"
capacity_wh = 40000
soc_percent = 35
phases = 1
max_current_ma = 32000
"""


@dataclass(frozen=True)
class BoardSettings:
    poll_ms: int = 1000
    heartbeat_s: int = 20
    fallback_ma: int = 6_000


@dataclass(frozen=True)
class MeterSettings:
    port: str
    model: str = "eastron_sdm630"
    unit_id: int = 1
    poll_ms: int = 1000
    baud: int | None = None


@dataclass
class Wires:
    """The simulator, and both drivers once they are asked for."""

    process: subprocess.Popen[bytes]
    state_dir: Path
    scale: TimeScale
    heard: Heard = field(default_factory=Heard)
    drivers: list[OpenEvseBoard | MeterPoller] = field(default_factory=list)

    def clock(self) -> Now:
        real_s = time.monotonic()
        return Now(self.scale.mono_ms(real_s), self.scale.utc(real_s), True)

    def do(self, deed: str, **arguments: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": deed, **arguments}).encode() + b"\n")
        self.process.stdin.flush()

    def board(self) -> OpenEvseBoard:
        board = OpenEvseBoard(str(self.state_dir / "board"), self.heard.post, self.clock, 1 / SCALE, BoardSettings())
        self.drivers.append(board)
        board.start()
        return board

    def meter(self) -> None:
        settings = MeterSettings(str(self.state_dir / "meter"))
        poller = open_poller(settings, self.heard.post, self.clock, 1 / SCALE)
        self.drivers.append(poller)
        poller.start()

    def until_board(self, **wanted: object) -> BoardReported:
        """The next report whose status has these values."""
        return self.heard.until(
            BoardReported, lambda event: all(getattr(event.status, name) == value for name, value in wanted.items()))


@pytest.fixture
def wires(tmp_path: Path) -> Iterator[Wires]:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(SCENARIO)
    anchor_s = time.monotonic()
    text = f"{SCALE},{anchor_s},{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    process = subprocess.Popen(
        [SIM, "run", scenario, "--state-dir", tmp_path, "--json", "--stdin"], env={**os.environ, VARIABLE: text},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert b"simulation started" in process.stdout.readline()
    wires = Wires(process, tmp_path, TimeScale.parse(text))
    yield wires
    for driver in wires.drivers:
        driver.stop()
    process.terminate()
    process.communicate(timeout=10)


@pytest.mark.req("P1-S1.6", "P1-S2.1", "P1-F7")
def test_plug_charge_and_unplug_twice(wires: Wires) -> None:
    board = wires.board()
    assert wires.heard.until(BoardFound).identity.firmware == "8.2.3.EU"
    wires.until_board(asleep=True, closed=False)
    wires.meter()
    before = wires.heard.until(MeterRead).reading
    for _ in range(2):
        wires.do("plug", vehicle="leaf")
        assert wires.until_board(plugged=True).status.pilot is Pilot.B
        board.ask_to_close(12_000)
        assert wires.until_board(closed=True).status.pilot is Pilot.C
        charging = wires.heard.until(MeterRead, lambda event: (event.reading.power_w or 0) > 2_000)
        assert charging.reading.power_w is not None
        assert charging.reading.power_w <= 12 * 240
        wires.do("unplug")
        wires.until_board(plugged=False, closed=False)
        board.open_contactor()
        wires.until_board(asleep=True, pilot=Pilot.A)
    after = wires.heard.until(MeterRead, lambda event: event.reading.power_w == 0).reading
    assert after.import_wh >= before.import_wh >= 1_234_567
    assert not [event for event in wires.heard.drained() if isinstance(event, BoardFailed | MeterFailed)]


def test_waiting_vehicle_gets_no_power_unasked(wires: Wires) -> None:
    wires.board()
    wires.until_board(asleep=True)
    wires.do("plug", vehicle="leaf")
    wires.until_board(plugged=True)
    start_ms = wires.clock().mono_ms
    wires.heard.until(BoardReported, lambda _: wires.clock().mono_ms > start_ms + 10_000)
    assert not any(event.status.closed for event in wires.heard.drained() if isinstance(event, BoardReported))


def test_order_to_open_opens_a_board_whose_vehicle_keeps_drawing(wires: Wires) -> None:
    board = wires.board()
    wires.until_board(asleep=True)
    wires.do("plug", vehicle="leaf")
    board.ask_to_close(16_000)
    wires.until_board(closed=True, limit_ma=16_000)
    board.open_contactor()
    wires.until_board(closed=False, asleep=True, plugged=True)


def test_closed_contactor_is_adopted_by_a_driver_that_starts_later(wires: Wires) -> None:
    """The board powers up enabled: the vehicle charges at its stored maximum before the driver is there."""
    wires.do("plug", vehicle="leaf")
    assert wires.process.stdout is not None
    while b'"contactor": "closed"' not in wires.process.stdout.readline():
        continue
    board = wires.board()
    wires.until_board(closed=True, limit_ma=32_000)
    board.ask_to_close(10_000)
    assert wires.until_board(limit_ma=10_000).status.closed is True
    assert not any(event.status.closed is False for event in wires.heard.all if isinstance(event, BoardReported))


def test_restarted_board_gets_the_order_again(wires: Wires) -> None:
    board = wires.board()
    wires.until_board(asleep=True)
    wires.do("plug", vehicle="leaf")
    board.ask_to_close(10_000)
    wires.until_board(closed=True, limit_ma=10_000)
    wires.do("board_power_off")
    wires.do("board_power_on")
    wires.until_board(limit_ma=32_000)
    wires.until_board(closed=True, limit_ma=10_000)


@pytest.mark.req("P1-B6")
def test_meter_pulled_off_the_bus_is_told_and_read_again_when_back(wires: Wires) -> None:
    wires.meter()
    first = wires.heard.until(MeterRead)
    wires.do("meter_unplug")
    assert "unit 1: no answer: check the unit id, wiring and baud" in wires.heard.until(MeterFailed).cause
    wires.do("meter_plug")
    second = wires.heard.until(MeterRead)
    assert second.read_at.mono_ms > first.read_at.mono_ms
    assert second.reading.import_wh >= first.reading.import_wh
