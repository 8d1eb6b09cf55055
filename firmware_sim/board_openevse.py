"""An OpenEVSE board (firmware 8.2.3, EU build) as its serial port and its pilot line show it.

The firmware's main loop runs as a generator on world time: each `yield` is a time in which the board does nothing else,
so dead times, late replies and the order of messages come out as on the real board. Golden reference:
facts/openevse-observed.md; section numbers in comments are its. Not modelled: US, T2 and CGMI builds, the front button.
This is the other end of the agent's wire and shares no code with it. No I/O, no clock, no thread.
"""

from collections.abc import Generator

from firmware_sim import board_commands, board_faults, rapi_wire
from firmware_sim.board_faults import Verdict
from firmware_sim.board_state import CHECKS_OFF, VERSION, BoardState, Eeprom, Inputs, Load, Pilot, State

BOOT_MS = 2240
SELF_TEST_MS = 1050
DISPLAY_MS = 28
LOOP_REST_MS = 8
CHARGING_REST_MS = 14
FAST_LOOP_MS = 16
LOCK_PULSE_MS = 300
DEBOUNCE_MS = 250
DEBOUNCE_A_MS = 25
CLOSING_TEST_MS = 1066
CLOSING_TEST_FAILED_MS = 2000
SLEEP_OPEN_MS = 3000
SLEEP_OPEN_MA = 1000
PANIC_MS = 5000
WATCHDOG_MS = 1050
SELF_TEST_OFF = 0x0200

Steps = Generator[int, None, None]


class Board:
    """The board with its EEPROM. `start_utc_s`: world seconds since 1970 at world millisecond 0."""

    def __init__(self, eeprom: Eeprom | None = None, start_utc_s: int = 1_800_000_000) -> None:
        self.eeprom = eeprom or Eeprom()
        self.inputs = Inputs()
        self.now_ms = 0
        self._start_utc_s = start_utc_s
        self._wake_ms = 0
        self._life: Steps | None = None
        self._receiver = rapi_wire.Receiver()
        self.state = self._new_life()
        self.state.pilot = Pilot.OFF

    def _new_life(self) -> BoardState:
        return BoardState(self.eeprom, self.inputs, self.now_ms, opened_at_ms=self.now_ms)

    # the outside

    @property
    def powered(self) -> bool:
        """True between power_on and power_off."""
        return self._life is not None

    def power_on(self) -> None:
        """Starts the board; section 4 follows."""
        self._receiver = rapi_wire.Receiver()
        self._start()

    def _start(self) -> None:
        self.state = self._new_life()
        self._life = self._run(self.state)
        self._wake_ms = self.now_ms

    def power_off(self) -> None:
        """Stops the board: relay open, pilot line dead, everything but the EEPROM forgotten."""
        self.state = self._new_life()
        self.state.pilot = Pilot.OFF
        self._life = None

    def receive(self, data: bytes) -> None:
        """Bytes arriving on the board's RX line."""
        if self._life is not None:
            self._receiver.push(data)

    def take_output(self) -> bytes:
        """Bytes sent since the last call."""
        data = bytes(self.state.output)
        self.state.output.clear()
        return data

    def set_ground_fault(self, present: bool) -> None:
        """Sets the ground-fault input; its rising edge is an interrupt that opens at once (section 11)."""
        board = self.state
        rising = present and not self.inputs.ground_fault
        self.inputs.ground_fault = present
        if rising and self._life is not None and board.loaded:
            board.open_relay()
            board.ground_fault_latched = board.ground_fault_tripped = True
            board.pilot = Pilot.P12

    def advance(self, to_ms: int) -> int:
        """Runs until `to_ms` or until relay or pilot changed. The world millisecond that was reached."""
        while self._life is not None and self._wake_ms <= to_ms:
            before = (self.state.relay_closed, self.state.pilot, self.state.amps)
            self.now_ms = self.state.now_ms = max(self.now_ms, self._wake_ms)
            self._wake_ms = self.now_ms + next(self._life)
            if before != (self.state.relay_closed, self.state.pilot, self.state.amps):
                return self.now_ms
        self.now_ms = self.state.now_ms = max(self.now_ms, to_ms)
        return self.now_ms

    # the firmware

    def _run(self, board: BoardState) -> Steps:
        while True:
            passed = yield from self._power_up(board)
            while not board.restart_asked:
                if passed:
                    yield from self._loop(board)
                else:
                    yield from self._serve(board)
                    yield FAST_LOOP_MS // 4
            board.pilot = Pilot.P12
            if board.relay_closed:
                yield 3000
                board.open_relay()
            yield WATCHDOG_MS
            waiting = bytes(board.output)
            board = self.state = self._new_life()
            board.output += waiting

    def _power_up(self, board: BoardState) -> Generator[int, None, bool]:
        """Section 4. True when the self test passed and the settings are loaded."""
        yield BOOT_MS
        kept = self.eeprom
        board.output += b"\nrelayCloseMs: %d\r\nrelayHoldPwm: %d\r\n" % (kept.relay_close_ms, kept.relay_hold_pwm)
        board.report(force=True)
        yield 1500 * (kept.ecf & CHECKS_OFF).bit_count()
        failure = State.STARTING
        if board.ac_sense:
            yield 20
            failure = State.WELDED
        elif not kept.ecf & SELF_TEST_OFF:
            yield SELF_TEST_MS
            if self.inputs.ground_fault:
                failure = State.SELF_TEST_FAILED
            elif self.inputs.self_test_fails:
                yield 1000
                failure = State.SELF_TEST_FAILED
        else:
            yield SELF_TEST_MS
        board.send(b"$AB %02x %s" % (failure, VERSION))
        if failure is not State.STARTING:
            board.state = failure
            board.report()
            return False
        board.loaded = True
        board.load_level()
        board.heartbeat_at_ms = board.now_ms
        return True

    def _loop(self, board: BoardState) -> Steps:
        """One turn of the main loop: pilot and protections, display, serial line."""
        was_closed = board.relay_closed
        if board.state != State.DISABLED:
            yield from self._update(board)
        board.measure()
        self._check_timer(board)
        board_faults.heartbeat_missed(board)
        if board.state == State.DISABLED:
            yield 2
        else:
            yield 2 if was_closed and not board.relay_closed else DISPLAY_MS
        board.report()
        yield from self._serve(board)
        yield CHARGING_REST_MS if board.state == State.C else LOOP_REST_MS

    def _serve(self, board: BoardState) -> Steps:
        """Answers what is waiting, in order; each reply is followed by the change it caused (section 8, rule 3)."""
        while not board.restart_asked:
            byte = self._receiver.take()
            if byte is None:
                return
            if board.echo:
                board.output.append(byte)
            line = self._receiver.collect(byte)
            if line is None:
                continue
            request = rapi_wire.parse(line)
            answer = board_commands.REFUSED
            if request.words is not None:
                utc_s = self._start_utc_s + board.now_ms // 1000
                answer = board_commands.execute(board, request.words, utc_s)
            if answer.silent:
                continue
            board.output += answer.text_before
            if answer.busy_ms:
                yield answer.busy_ms
            board.output += rapi_wire.reply(answer.accepted, answer.text, request.sequence_id, board.echo)
            board.report()

    def _check_timer(self, board: BoardState) -> None:
        """Once per second: asleep outside the delay timer's window, awake when it begins."""
        if not board.timer_on or board.now_ms < board.timer_at_ms or board.hard_fault:
            return
        board.timer_at_ms = board.now_ms + 1000
        start_h, start_m, end_h, end_m = self.eeprom.timer
        start, end = start_h * 60 + start_m, end_h * 60 + end_m
        utc_s = self._start_utc_s + board.now_ms // 1000 + self.eeprom.clock_offset_s
        minute = utc_s // 60 % 1440
        inside = start <= minute < end if start < end else minute >= start or minute < end
        if not inside and board.state in (State.STARTING, State.A, State.B, State.C):
            board.sleep()
        elif inside and board.state == State.SLEEPING and start == minute:
            board.enable()

    def _track_vehicle(self, board: BoardState) -> Steps:
        """Presence of the vehicle, start and end of the session, and the lock's pulse of 0.3 s (section 9)."""
        board.was_connected = board.connected
        if board.pilot is not Pilot.N12:
            board.connected = self.inputs.load is not Load.A
        if board.connected and not board.was_connected:
            board.closed_before_ms = 0
            board.session_ws = 0
            board.session_stored = True
        elif board.was_connected and not board.connected:
            board.session_ended = True
        if not board.lock_manual and board.locked != board.connected:
            yield LOCK_PULSE_MS
            board.locked = board.connected

    def _end_session(self, board: BoardState) -> None:
        """At unplug the session's whole watt-hours join the total (section 3)."""
        if not board.connected and not board.relay_closed and not board.session_stored:
            board.session_stored = True
            self.eeprom.total_wh += board.session_ws // 3600

    def _update(self, board: BoardState) -> Steps:
        started_ms = board.now_ms
        yield from self._track_vehicle(board)
        if board.state == State.SLEEPING:
            self._open_asleep(board)
            self._end_session(board)
            if board_faults.too_hot(board):
                yield from self._panic(board)
            return
        before = board.state
        verdict = board_faults.watch(board)
        if verdict in (Verdict.HARD, Verdict.HARD_UNTIL_RESTART):
            yield from self._hard_fault(board, verdict is Verdict.HARD)
            return
        if board_faults.too_hot(board):
            yield from self._panic(board)
            return
        if verdict is Verdict.SOFT:
            self._settle_pilot(board, State.STARTING, started_ms)
            board.seen_state = board.state
            return
        if before in (State.GROUND_FAULT, State.NO_GROUND):
            board.state = before = State.STARTING
        if board_faults.overloaded(board):
            yield from self._over_current(board)
            return
        self._settle(board, started_ms)
        if board.state != before:
            yield from self._enter(board)
        self._end_session(board)

    def _settle(self, board: BoardState, at_ms: int) -> None:
        """Debounces the pilot line into pilot state and EVSE state."""
        inputs = self.inputs
        diode_check = not board.off(board_faults.DIODE_OFF)
        seen = board_faults.classify(inputs.load, inputs.diode, board.pilot, diode_check)
        self._settle_pilot(board, seen, at_ms)
        if seen is State.VENTILATION and board.off(board_faults.VENTILATION_OFF):
            seen = State.C
        if seen is State.C and board.pilot is not Pilot.PWM:
            seen = State.B  # the diode is checked with PWM first
        if seen != board.seen_state:
            board.seen_state, board.seen_since_ms = seen, at_ms
        elif board.now_ms - board.seen_since_ms >= (DEBOUNCE_A_MS if seen is State.A else DEBOUNCE_MS):
            board.state = seen

    def _settle_pilot(self, board: BoardState, seen: State, at_ms: int) -> None:
        if seen != board.seen_pilot:
            board.seen_pilot, board.seen_pilot_since_ms = seen, at_ms
        elif board.now_ms - board.seen_pilot_since_ms >= (DEBOUNCE_A_MS if seen is State.A else DEBOUNCE_MS):
            board.pilot_state = seen

    def _enter(self, board: BoardState) -> Steps:
        """What the board does on the way into a settled state."""
        if board.state in (State.A, State.B):
            board.open_relay()
            board.pilot = Pilot.P12 if board.state == State.A else Pilot.PWM
        elif board.state == State.C:
            yield from self._close(board)
        else:
            board_faults.enter(board, State(board.state))
            yield from self._hard_fault(board, True)

    def _close(self, board: BoardState) -> Steps:
        """Ground-fault self test, then the relay (sections 9 and 11)."""
        board.pilot = Pilot.PWM
        if not board.off(SELF_TEST_OFF):
            if self.inputs.self_test_fails:
                yield CLOSING_TEST_FAILED_MS
                board_faults.enter(board, State.SELF_TEST_FAILED)
                yield from self._hard_fault(board, True)
                return
            yield CLOSING_TEST_MS
            board.ground_fault_latched = self.inputs.ground_fault
        if not board.ground_fault_latched:
            board.close_relay()

    def _open_asleep(self, board: BoardState) -> None:
        """Asleep the relay opens when the vehicle lets go, draws 1 A or less, or after 3 s (section 10)."""
        if not board.relay_closed:
            return
        let_go = self.inputs.load in (Load.A, Load.B)
        if let_go or board.measured_ma <= SLEEP_OPEN_MA or board.now_ms - board.sleep_since_ms >= SLEEP_OPEN_MS:
            board.open_relay()

    def _over_current(self, board: BoardState) -> Steps:
        board.pilot = Pilot.P12
        yield 1000
        board_faults.enter(board, State.OVER_CURRENT)
        yield from self._hard_fault(board, True)

    def _panic(self, board: BoardState) -> Steps:
        board.pilot = Pilot.P12
        yield PANIC_MS
        board_faults.enter(board, State.OVER_TEMPERATURE)
        board.temperature_at_ms = 0
        yield from self._hard_fault(board, True)

    def _hard_fault(self, board: BoardState, recoverable: bool) -> Steps:
        """Spins with the serial line served until an unplug at +12 V clears it; a weld never clears (section 11)."""
        cause = board.state
        board.hard_fault = True
        board.open_relay()
        board.report()
        while not board.restart_asked:
            yield from self._serve(board)
            yield FAST_LOOP_MS
            if board.state != State.DISABLED:
                yield from self._track_vehicle(board)
                self._end_session(board)
            if recoverable and board.pilot is Pilot.P12 and not board.connected and not board.was_connected:
                break
        board.hard_fault = False
        board.pilot_state = board.seen_pilot = board.seen_state = 0
        board.fault_since_ms = None
        board.ground_fault_latched = False
        if board.state in (State.SLEEPING, State.DISABLED):
            return
        if cause == State.GROUND_FAULT:  # seen on the board: one more short entry on the way out
            self.eeprom.ground_faults = board_faults.count(self.eeprom.ground_faults)
            board.state = State.GROUND_FAULT
            board.report()
        board.state = State.STARTING
