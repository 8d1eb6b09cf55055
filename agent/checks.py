"""One look at everything a charger needs, for `evse-agent check`: each finding says what, where and what to do next."""

import queue
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.adapters.keys import KeyFileError, KeyFolder, load_public, load_signer
from agent.clocks import Clocks
from agent.config import AgentConfig
from agent.core.clock import EARLIEST, Now
from agent.core.events import BoardFailed, BoardFound, BoardReported, Event
from agent.drivers.board_openevse import OpenEvseBoard
from agent.drivers.meter import UnknownModelError, load_map, open_bus, read_meter
from agent.drivers.modbus import MeterFailedError
from esci.units import kwh

BOARD_WAIT_MS = 15_000


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, and what was seen."""

    subject: str
    ok: bool
    text: str


def check_all(config: AgentConfig, probe: bool) -> list[Finding]:
    """The findings, in the order in which a technician would mend them."""
    clocks = Clocks("")
    findings = [_clock(clocks.now()), _keys(config)]
    if probe:
        findings += [_meter(config, clocks.now), _board(config, clocks.now)]
    return findings


def _clock(now: Now) -> Finding:
    if now.utc < EARLIEST:
        return Finding("clock", False, f"it is {now.utc:%Y-%m-%d} here: connect a time server, or records are marked"
                                       " unsynced and wait for a person before they are billed")
    return Finding("clock", True, f"{now.utc:%Y-%m-%d %H:%M} UTC")


def _keys(config: AgentConfig) -> Finding:
    folder = KeyFolder.of(config.state_dir)
    try:
        kid = load_signer(folder.tls.key).kid
        load_public(folder.utility_seal)
    except KeyFileError as error:
        return Finding("keys", False, str(error))
    missing = [path for path in (folder.tls.cert, folder.tls.ca, folder.pev_ca) if not Path(path).exists()]
    if missing:
        return Finding("keys", False, f"{missing[0]} is missing: run `evse-agent commission`")
    return Finding("keys", True, f"device key {kid[:8]}")


def _meter(config: AgentConfig, now: Callable[[], Now]) -> Finding:
    try:
        meter_map = load_map(config.meter.model)
        bus = open_bus(config.meter, meter_map, now, 1.0)
    except (UnknownModelError, ValueError) as error:
        return Finding("meter", False, str(error))
    try:
        reading, _ = read_meter(bus, meter_map, config.meter.unit_id, now)
    except MeterFailedError as error:
        return Finding("meter", False, str(error))
    finally:
        bus.close()
    return Finding("meter", True, f"{meter_map.model} at {config.meter.port}: register {kwh(reading.import_wh)} kWh")


def _board(config: AgentConfig, now: Callable[[], Now]) -> Finding:
    """The board's answer, found by the driver itself; it is told nothing but to stay open."""
    heard: queue.Queue[Event] = queue.Queue()
    board = OpenEvseBoard(config.board.port, heard.put_nowait, now, 1.0, config.board)
    board.start()
    firmware = ""
    end_ms = now().mono_ms + BOARD_WAIT_MS
    try:
        while True:
            event = heard.get(timeout=max(0.01, (end_ms - now().mono_ms) / 1000))
            match event:
                case BoardFailed(cause=cause):
                    return Finding("board", False, cause)
                case BoardFound(identity=identity) if identity.protections_off:
                    off = ", ".join(identity.protections_off)
                    return Finding("board", False, f"protections are off: {off}: switch them on before charging")
                case BoardFound(identity=identity):
                    firmware = identity.firmware
                case BoardReported(status=status):
                    return Finding("board", status.fault is None,
                                   f"{firmware} at {config.board.port}: pilot {status.pilot.value}, "
                                   f"{status.fault or 'no fault'}")
                case _:
                    continue
    except queue.Empty:
        return Finding("board", False, f"{config.board.port}: no answer in {BOARD_WAIT_MS // 1000} s: check its wiring")
    finally:
        board.stop()
