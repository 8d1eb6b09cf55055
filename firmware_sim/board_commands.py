"""What each RAPI command does on the simulated board, and what it answers (facts/openevse-observed.md, 5, 6, 7, 12).

Commands change a BoardState; those that keep the board busy say for how long. No I/O, no clock.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from firmware_sim.board_state import VERSION, BoardState, Pilot, State
from firmware_sim.rapi_wire import number

RAPI_VERSION = b"5.2.1"
LOCK_PULSE_MS = 300
HEARTBEAT_COOKIE = 165
CHIP_ID = bytes((0x55, 0x39, 0x36, 0x31, 0x35, 0xB2)) + b"04190C2F"
CHECKS = {"B": 0x8000, "D": 0x0002, "F": 0x0200, "G": 0x0008, "R": 0x0010, "T": 0x0400, "V": 0x0004}


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply, sent after `busy_ms`; `text_before` is text that is not RAPI. `silent`: no reply at all."""

    accepted: bool
    text: bytes = b""
    busy_ms: int = 0
    text_before: bytes = b""
    silent: bool = False


OK = Answer(True)
REFUSED = Answer(False)
Command = Callable[[BoardState, tuple[str, ...]], Answer]


def execute(board: BoardState, words: tuple[str, ...], utc_s: int) -> Answer:
    """The board's answer to the command; only its first two letters select it. `utc_s`: world seconds since 1970."""
    name = words[0][:2]
    if name in ("GT", "S1"):
        return _clock(board, name, words[1:], utc_s)
    command = _COMMANDS.get(name)
    return command(board, words[1:]) if command else REFUSED


def _said(text: bytes) -> Answer:
    return Answer(True, text)


# queries


def _get_amps(board: BoardState, _: tuple[str, ...]) -> Answer:
    return _said(b"%d %04x" % (board.amps, board.ecf))


def _get_capacity(board: BoardState, _: tuple[str, ...]) -> Answer:
    return _said(b"6 %d %d %d" % (board.hardware_amps, board.amps, board.stored_amps))


def _get_state(board: BoardState, _: tuple[str, ...]) -> Answer:
    return _said(b"%02x %d %02x %04x" % (board.state, board.elapsed_s, board.pilot_state, board.vflags))


def _get_energy(board: BoardState, _: tuple[str, ...]) -> Answer:
    return _said(b"%d %d" % (board.session_ws, board.eeprom.total_wh))


def _get_temperature(board: BoardState, _: tuple[str, ...]) -> Answer:
    if not board.loaded:
        return _said(b"250 -2560 0")
    tenths = board.temperature_tenths()
    return _said(b"%d 0 -2560" % (-2560 if tenths is None else tenths))


def _get_counters(board: BoardState, _: tuple[str, ...]) -> Answer:
    kept = board.eeprom
    return _said(b"%x %x %x" % (kept.ground_faults, kept.no_grounds, kept.stuck_relays))


def _get_connected(board: BoardState, _: tuple[str, ...]) -> Answer:
    if not board.loaded:
        return _said(b"0")
    if board.pilot is Pilot.N12:
        return _said(b"2")
    return _said(b"1" if board.connected else b"0")


def _get_lock(board: BoardState, _: tuple[str, ...]) -> Answer:
    return _said(b"%d %s" % (board.locked, b"M" if board.lock_manual else b"A"))


def _get_timer(board: BoardState, _: tuple[str, ...]) -> Answer:
    return _said(b"%d %d %d %d" % board.eeprom.timer)


def _clock(board: BoardState, name: str, words: tuple[str, ...], utc_s: int) -> Answer:
    if name == "GT":
        if not board.inputs.clock_chip:
            return _said(b"165 165 165 165 165 85")
        shown = datetime.fromtimestamp(utc_s + board.eeprom.clock_offset_s, UTC)
        parts = (shown.year - 2000, shown.month, shown.day, shown.hour, shown.minute, shown.second)
        return _said(b"%d %d %d %d %d %d" % parts)
    if len(words) != 6:
        return REFUSED
    year, month, day, hour, minute, second = (number(word) & 0xFF for word in words)
    try:
        wanted = datetime(2000 + year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return OK  # the firmware does not check; the effect of nonsense is not known, so the clock is left alone
    offset = wanted - datetime.fromtimestamp(utc_s, UTC)
    board.eeprom.clock_offset_s = int(offset / timedelta(seconds=1))
    return OK


# settings


def _set_current(board: BoardState, words: tuple[str, ...]) -> Answer:
    if len(words) not in (1, 2):
        return REFUSED
    amps = number(words[0]) & 0xFF
    if len(words) == 2 and words[1] == "M":
        kept = board.eeprom
        if kept.hardware_burned or not 6 <= amps <= kept.hardware_amps:
            return Answer(False, b"%d" % board.hardware_amps)
        kept.hardware_amps, kept.hardware_burned = amps, True
        kept.amps_l2 = min(kept.amps_l2, amps)
        board.amps = min(board.amps, amps)
        return _said(b"%d" % amps)
    accepted = board.set_amps(amps, volatile=len(words) == 2)
    return Answer(accepted, b"%d" % board.amps)


def _set_voltage(board: BoardState, words: tuple[str, ...]) -> Answer:
    if len(words) != 1:
        return REFUSED
    board.supply_mv = number(words[0])
    return OK


def _set_ammeter(board: BoardState, words: tuple[str, ...]) -> Answer:
    if len(words) != 2:
        return REFUSED
    board.eeprom.scale_ma, board.eeprom.offset_ma = number(words[0]) & 0xFFFF, number(words[1]) & 0xFFFF
    return OK


def _set_total(board: BoardState, words: tuple[str, ...]) -> Answer:
    board.eeprom.total_wh = number(words[0]) if words else 49  # without a value: whatever lay in memory
    return OK


def _set_level(board: BoardState, words: tuple[str, ...]) -> Answer:
    if len(words) != 1 or words[0][:1] not in ("1", "2"):
        return REFUSED
    flag = 1 if words[0].startswith("2") else 0
    board.eeprom.ecf = board.eeprom.ecf & ~1 | flag
    board.load_level()
    return OK


def _set_display(board: BoardState, words: tuple[str, ...]) -> Answer:
    if len(words) != 1:
        return REFUSED
    mono = words[0] == "0"
    board.eeprom.ecf = board.eeprom.ecf | 0x0100 if mono else board.eeprom.ecf & ~0x0100
    return OK


def _set_lock(board: BoardState, words: tuple[str, ...]) -> Answer:
    if len(words) != 1 or words[0][:1] not in ("0", "1", "A", "M"):
        return REFUSED
    letter = words[0][0]
    if letter in "AM":
        board.lock_manual = letter == "M"
        return OK
    board.locked = letter == "1"
    return Answer(True, busy_ms=LOCK_PULSE_MS + 20)


def _set_timer(board: BoardState, words: tuple[str, ...]) -> Answer:
    if len(words) != 4:
        return REFUSED
    start_h, start_m, end_h, end_m = (number(word) & 0xFF for word in words)
    board.eeprom.timer = (start_h, start_m, end_h, end_m)
    board.timer_at_ms = board.now_ms
    return OK


def _heartbeat_text(board: BoardState) -> bytes:
    interval_s = board.eeprom.heartbeat_s
    signed = interval_s - 0x10000 if interval_s >= 0x8000 else interval_s
    return b"%d %d %d" % (signed, board.eeprom.heartbeat_amps, board.heartbeat_trigger)


def _get_heartbeat(board: BoardState, _: tuple[str, ...]) -> Answer:
    return _said(_heartbeat_text(board))


def _heartbeat(board: BoardState, words: tuple[str, ...]) -> Answer:
    accepted = True
    if not words:
        board.heartbeat_at_ms = board.now_ms
        accepted = board.heartbeat_trigger != 2
    elif len(words) == 1:
        accepted = number(words[0]) == HEARTBEAT_COOKIE
        if accepted and board.heartbeat_trigger == 2:
            if board.throttle:
                accepted = False
            else:
                board.heartbeat_trigger = 1
                board.amps = board.stored_amps
    elif len(words) == 2:
        interval_s = number(words[0]) & 0xFFFF
        if interval_s == 0 and board.heartbeat_trigger:
            board.amps = board.stored_amps
        board.eeprom.heartbeat_s, board.eeprom.heartbeat_amps = interval_s, number(words[1]) & 0xFF
        board.heartbeat_trigger = 0
        board.heartbeat_at_ms = board.now_ms
    else:
        accepted = False
    return Answer(accepted, _heartbeat_text(board))


def _relay_parameters(board: BoardState, words: tuple[str, ...]) -> Answer:
    if len(words) != 2:
        return OK
    kept = board.eeprom
    kept.relay_close_ms, kept.relay_hold_pwm = number(words[0]) & 0xFF, number(words[1]) & 0xFF
    return Answer(True, text_before=b"\nZ0 %d %d\r\n" % (kept.relay_close_ms, kept.relay_hold_pwm))


# functions


def _enable(board: BoardState, _: tuple[str, ...]) -> Answer:
    board.enable()
    return OK


def _disable(board: BoardState, _: tuple[str, ...]) -> Answer:
    board.disable()
    if not board.lock_manual:
        board.locked = False
    return Answer(True, busy_ms=LOCK_PULSE_MS + 10)


def _sleep(board: BoardState, _: tuple[str, ...]) -> Answer:
    board.sleep()
    return OK


def _button(board: BoardState, _: tuple[str, ...]) -> Answer:
    if board.state in (State.SLEEPING, State.DISABLED):
        board.enable()
    elif board.state in (State.A, State.B, State.C):
        board.sleep()
    return OK


def _restart(board: BoardState, _: tuple[str, ...]) -> Answer:
    board.restart_asked = True
    return Answer(True, silent=True)


def _feature(board: BoardState, words: tuple[str, ...]) -> Answer:
    if len(words) != 2 or words[1] not in ("0", "1"):
        return REFUSED
    if words[0] == "E":
        board.echo = True
        return OK
    flag = CHECKS.get(words[0])
    if flag is None:
        return REFUSED
    kept = board.eeprom
    kept.ecf = kept.ecf | flag if words[1] == "0" else kept.ecf & ~flag
    return OK


def _one_word(_: BoardState, words: tuple[str, ...]) -> Answer:
    return OK if len(words) == 1 else REFUSED


def _print(board: BoardState, words: tuple[str, ...]) -> Answer:
    return OK if len(words) >= 3 and not board.hard_fault else REFUSED


_COMMANDS: dict[str, Command] = {
    "GV": lambda board, words: _said(VERSION + b" " + RAPI_VERSION),
    "GS": _get_state,
    "GE": _get_amps,
    "GC": _get_capacity,
    "GG": lambda board, words: _said(b"%d %d" % (board.measured_ma, board.supply_mv)),
    "GU": _get_energy,
    "GP": _get_temperature,
    "GF": _get_counters,
    "G0": _get_connected,
    "G5": _get_lock,
    "GA": lambda board, words: _said(b"%d %d" % (board.eeprom.scale_ma, board.eeprom.offset_ma)),
    "GD": _get_timer,
    "GY": _get_heartbeat,
    "GI": lambda board, words: _said(b" " + CHIP_ID),
    "SC": _set_current,
    "SV": _set_voltage,
    "SA": _set_ammeter,
    "SK": _set_total,
    "SL": _set_level,
    "S0": _set_display,
    "S5": _set_lock,
    "ST": _set_timer,
    "SY": _heartbeat,
    "Z0": _relay_parameters,
    "FE": _enable,
    "FD": _disable,
    "FS": _sleep,
    "F1": _button,
    "FR": _restart,
    "FF": _feature,
    "F0": _one_word,
    "FB": _one_word,
    "FP": _print,
}
