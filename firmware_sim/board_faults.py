"""The simulated board's protections: which fault it sees, and for how long (facts/openevse-observed.md, 11 and 13).

Functions over BoardState that decide and set; the waiting between them is in board_openevse.py. No I/O, no clock.
"""

from enum import Enum, auto

from firmware_sim.board_state import AMPS_MIN, COUNTER_STOP, BoardState, Load, Pilot, State

GROUND_CHECK_MS = 1000
WELD_CHECK_MS = 1000
EARLY_FAULT_MS = 2000
RETRY_MS = 300_000
OVERLOAD_MS = 10_000
OVERLOAD_MA = 5000
HALF_MC, QUARTER_MC, PANIC_MC, RESTORE_MC = 65_000, 68_000, 71_000, 62_000
GROUND_OFF, RELAY_OFF, DIODE_OFF, VENTILATION_OFF, TEMPERATURE_OFF = 0x0008, 0x0010, 0x0002, 0x0004, 0x0400


class Verdict(Enum):
    """What the protections say in one loop."""

    FINE = auto()
    SOFT = auto()  # 06 or 07, retried by itself after 300 s
    HARD = auto()
    HARD_UNTIL_RESTART = auto()


def classify(load: Load, diode: bool, pilot: Pilot, diode_check: bool) -> State:
    """The pilot state read off the line. Without PWM a missing diode cannot be seen, and a short looks like 3 V."""
    if load is Load.A:
        return State.A
    pwm = pilot is Pilot.PWM
    if pwm and diode_check and (not diode or load is Load.SHORT):
        return State.DIODE
    if load is Load.SHORT:
        return State.VENTILATION
    return {Load.B: State.B, Load.C: State.C, Load.D: State.VENTILATION}[load]


def count(value: int) -> int:
    """The next value of a fault counter; it stops at fe."""
    return min(value + 1, COUNTER_STOP)


def enter(board: BoardState, state: State) -> None:
    """Opens, puts the pilot at +12 V (a weld leaves it alone) and counts the entry."""
    board.open_relay()
    if board.state != state:
        kept = board.eeprom
        if state is State.GROUND_FAULT:
            kept.ground_faults = count(kept.ground_faults)
        elif state is State.NO_GROUND:
            kept.no_grounds = count(kept.no_grounds)
        elif state is State.WELDED:
            kept.stuck_relays = count(kept.stuck_relays)
    board.state = state
    if state is not State.WELDED:
        board.pilot = Pilot.P12


def _early(board: BoardState, closed_at_ms: int) -> bool:
    return board.now_ms - closed_at_ms <= EARLY_FAULT_MS


def _ground_fault(board: BoardState) -> Verdict:
    """Soft unless it came within 2 s of closing or is still there at the retry."""
    early = board.state == State.C and _early(board, board.closed_at_ms)
    enter(board, State.GROUND_FAULT)
    if early:
        return Verdict.HARD
    if board.fault_since_ms is None:
        board.fault_since_ms = board.now_ms
    elif board.now_ms - board.fault_since_ms >= RETRY_MS:
        board.fault_since_ms = None
        if board.inputs.ground_fault:
            return Verdict.HARD
        board.ground_fault_latched = False
        return Verdict.FINE
    return Verdict.SOFT


def _no_ground(board: BoardState) -> Verdict:
    early = board.relay_closed and _early(board, board.closed_at_ms)
    enter(board, State.NO_GROUND)
    if early:
        return Verdict.HARD
    if board.fault_since_ms is None:
        board.fault_since_ms = board.now_ms
    return Verdict.SOFT if board.now_ms - board.fault_since_ms < RETRY_MS else Verdict.FINE


def _ground_missing(board: BoardState) -> bool:
    closed_long_enough = board.relay_closed and board.now_ms - board.closed_at_ms >= GROUND_CHECK_MS
    return closed_long_enough and not board.ac_sense and not board.off(GROUND_OFF)


def watch(board: BoardState) -> Verdict:
    """Looks at AC sense and ground-fault input; enters and leaves the states 06, 07 and 08."""
    if not board.connected:
        board.fault_since_ms = None
        if not board.inputs.ground_fault:
            board.ground_fault_latched = False
    elif _ground_missing(board) or (board.state == State.NO_GROUND and board.fault_since_ms is not None):
        verdict = _no_ground(board)
        if verdict is Verdict.FINE:
            board.fault_since_ms = None
        else:
            return verdict
    open_long_enough = not board.relay_closed and board.now_ms - board.opened_at_ms >= WELD_CHECK_MS
    if open_long_enough and board.ac_sense and not board.off(RELAY_OFF):
        enter(board, State.WELDED)
        return Verdict.HARD_UNTIL_RESTART
    if board.ground_fault_latched:
        return _ground_fault(board)
    return Verdict.FINE


def overloaded(board: BoardState) -> bool:
    """True once the measured current has been 5 A over the pilot for 10 s."""
    if not board.relay_closed or board.measured_ma < board.amps * 1000 + OVERLOAD_MA:
        board.overload_since_ms = None
        return False
    if board.overload_since_ms is None:
        board.overload_since_ms = board.now_ms
    return board.now_ms - board.overload_since_ms >= OVERLOAD_MS


def too_hot(board: BoardState) -> bool:
    """Once per second: throttles in state 03, restores when cool; True asks for the panic of 71 °C."""
    if board.now_ms < board.temperature_at_ms:
        return False
    board.temperature_at_ms = board.now_ms + 1000
    inputs = board.inputs
    if board.off(TEMPERATURE_OFF) or not inputs.clock_chip:
        return False
    if inputs.temperature_mc >= PANIC_MC:
        return True
    if board.state == State.C:
        _throttle(board, inputs.temperature_mc)
    return False


def _throttle(board: BoardState, temperature_mc: int) -> None:
    """Amounts are parts of the stored maximum, whatever is set now (hazard 6)."""
    before = board.throttle
    if temperature_mc >= QUARTER_MC:
        board.throttle = 2
    elif temperature_mc <= RESTORE_MC:
        board.throttle = 0
    elif (temperature_mc <= HALF_MC and before == 2) or (temperature_mc >= HALF_MC and before == 0):
        board.throttle = 1
    if board.throttle != before:
        divisor = {0: 1, 1: 2, 2: 4}[board.throttle]
        board.amps = max(AMPS_MIN, board.stored_amps // divisor)


def heartbeat_missed(board: BoardState) -> bool:
    """Lowers the current when the host was silent for an interval, which wraps in 16 bits of milliseconds."""
    kept = board.eeprom
    if not kept.heartbeat_s or board.hard_fault or board.state in (State.SLEEPING, State.DISABLED):
        return False
    if board.now_ms - board.heartbeat_at_ms < kept.heartbeat_s * 1000 & 0xFFFF:
        return False
    board.heartbeat_at_ms = board.now_ms
    board.heartbeat_trigger = 2
    if kept.heartbeat_amps < board.amps:
        board.amps = max(AMPS_MIN, kept.heartbeat_amps)
    return True
