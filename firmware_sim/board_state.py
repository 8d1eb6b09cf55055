"""Everything the simulated OpenEVSE 8.2.3 EU board knows: EEPROM, inputs, outputs, flags, and what it reports of them.

Holds values and their arithmetic only; the order of events is in board_openevse.py, the commands in board_commands.py.
Source: facts/openevse-observed.md, sections 3, 6, 8, 13, 15. No I/O, no clock.
"""

from dataclasses import dataclass, field
from enum import Enum, IntEnum

from firmware_sim import rapi_wire

VERSION = b"8.2.3.EU"
AMPS_MIN = 6
UNSEEN = -1  # no state: what is seen next is debounced from the start
L1_AMPS_MAX = 24
L1_AMPS_DEFAULT = 12
COUNTER_STOP = 0xFE
REPORTED_FLAGS = 0x211A
CHECKS_OFF = 0x061E
SUPPLY_MV = 230_000
L1_SUPPLY_MV = 120_000


class State(IntEnum):
    """EVSE state byte of `$GS` and `$AT`."""

    STARTING = 0x00
    A = 0x01
    B = 0x02
    C = 0x03
    VENTILATION = 0x04
    DIODE = 0x05
    GROUND_FAULT = 0x06
    NO_GROUND = 0x07
    WELDED = 0x08
    SELF_TEST_FAILED = 0x09
    OVER_TEMPERATURE = 0x0A
    OVER_CURRENT = 0x0B
    SLEEPING = 0xFE
    DISABLED = 0xFF


class Pilot(Enum):
    """What the board puts on the pilot line."""

    OFF = "off"  # board without power: 0 V
    P12 = "+12V"
    PWM = "pwm"
    N12 = "-12V"


class Load(Enum):
    """What hangs on the pilot line: the vehicle's resistor, or a short to PE."""

    A = "A"
    B = "B"
    C = "C"
    D = "D"
    SHORT = "short"


@dataclass(slots=True)
class Inputs:
    """The copper around the board, set by the world. Each can be changed at any moment between two advances."""

    load: Load = Load.A
    diode: bool = True
    current_ma: int = 0  # through the ammeter: L1 only
    ground: bool = True
    welded: bool = False
    relay_dead: bool = False
    self_test_fails: bool = False
    ground_fault: bool = False  # set through Board.set_ground_fault: it is an interrupt
    temperature_mc: int = 25_000  # thousandths of a degree Celsius
    clock_chip: bool = True  # the DS3231, which also measures the temperature


@dataclass(slots=True)
class Eeprom:
    """What survives a power cycle (section 15)."""

    ecf: int = 0x0021
    hardware_amps: int = 32
    hardware_burned: bool = False
    amps_l2: int = 32
    amps_l1: int = L1_AMPS_DEFAULT
    scale_ma: int = 220
    offset_ma: int = 0
    total_wh: int = 0
    heartbeat_s: int = 0
    heartbeat_amps: int = 0
    timer: tuple[int, int, int, int] = (0, 0, 0, 0)
    ground_faults: int = 0
    no_grounds: int = 0
    stuck_relays: int = 0
    relay_close_ms: int = 100
    relay_hold_pwm: int = 255
    clock_offset_s: int = 0  # not EEPROM but the battery-backed clock: $S1 against world time


@dataclass(slots=True)
class BoardState:
    """One life of the board between power-on and power-off."""

    eeprom: Eeprom
    inputs: Inputs
    now_ms: int = 0
    output: bytearray = field(default_factory=bytearray)
    echo: bool = False
    loaded: bool = False  # settings come from EEPROM only after the self test
    state: int = State.STARTING
    pilot_state: int = 0
    seen_state: int = 0  # not yet debounced
    seen_since_ms: int = 0
    seen_pilot: int = 0
    seen_pilot_since_ms: int = 0
    pilot: Pilot = Pilot.P12
    amps: int = 0
    supply_mv: int = 0
    throttle: int = 0  # 0 none, 1 half, 2 quarter
    hard_fault: bool = False
    connected: bool = False
    was_connected: bool = False
    session_ended: bool = True
    ground_fault_tripped: bool = False
    ground_fault_latched: bool = False
    fault_since_ms: int | None = None  # of a soft 06 or 07
    lock_manual: bool = False
    locked: bool = False
    relay_closed: bool = False
    closed_at_ms: int = 0
    opened_at_ms: int = 0
    closed_before_ms: int = 0
    sleep_since_ms: int = 0
    restart_asked: bool = False
    measured_ma: int = 0
    samples: list[int] = field(default_factory=list)
    samples_since_ms: int = 0
    overload_since_ms: int | None = None
    session_ws: int = 0
    session_stored: bool = True
    energy_at_ms: int = 0
    heartbeat_trigger: int = 0
    heartbeat_at_ms: int = 0
    temperature_at_ms: int = 0
    timer_at_ms: int = 0
    reported: tuple[int, int, int, int] | None = None

    # settings in force

    @property
    def ecf(self) -> int:
        """The settings word of `$GE`."""
        return self.eeprom.ecf if self.loaded else 0x0020

    def off(self, flag: int) -> bool:
        """True while the safety check with this ECF flag is switched off."""
        return bool(self.ecf & flag)

    @property
    def level_2(self) -> bool:
        """True at service level 2."""
        return bool(self.ecf & 0x0001)

    @property
    def hardware_amps(self) -> int:
        """Second field of `$GC`."""
        return self.eeprom.hardware_amps if self.level_2 else L1_AMPS_MAX

    @property
    def stored_amps(self) -> int:
        """Fourth field of `$GC`."""
        return self.eeprom.amps_l2 if self.level_2 else self.eeprom.amps_l1

    def store_amps(self, amps: int) -> None:
        """Writes the stored maximum of the present level."""
        if self.level_2:
            self.eeprom.amps_l2 = amps
        else:
            self.eeprom.amps_l1 = amps

    def set_amps(self, amps: int, volatile: bool) -> bool:
        """`$SC`: clamps, sets and (unless volatile) stores. True when nothing had to be clamped."""
        ceiling = self.stored_amps if volatile else self.hardware_amps
        throttled = self.throttle > 0 and amps > self.amps
        if throttled:
            ceiling = min(ceiling, self.amps)
        self.amps = min(max(amps, AMPS_MIN), ceiling)
        if not volatile and not throttled:
            self.store_amps(self.amps)
        return self.amps == amps

    def load_level(self) -> None:
        """Takes current and voltage of the present level, as at power-up and after `$SL`."""
        self.amps = self.stored_amps
        self.supply_mv = SUPPLY_MV if self.level_2 else L1_SUPPLY_MV

    @property
    def timer_on(self) -> bool:
        """True with a delay timer set."""
        return self.loaded and any(self.eeprom.timer)

    # outputs

    @property
    def duty_ppm(self) -> int:
        """Part of a period at +12 V, in millionths (section 3)."""
        if self.pilot is Pilot.PWM:
            return self.amps * 16_625 if self.amps <= 51 else (self.amps * 32 + 5120) * 125
        return 1_000_000 if self.pilot is Pilot.P12 else 0

    def close_relay(self) -> None:
        """Closes, starts the ammeter, and begins the charging part of the session."""
        if not self.relay_closed:
            self.relay_closed = True
            self.session_ended = False
            self.closed_at_ms = self.energy_at_ms = self.samples_since_ms = self.now_ms
            self.samples.clear()
            self.overload_since_ms = None

    def open_relay(self) -> None:
        """Opens; the measured current is 0 from this moment."""
        if self.relay_closed:
            self.relay_closed = False
            self.opened_at_ms = self.now_ms
            self.closed_before_ms += self.now_ms - self.closed_at_ms
        self.measured_ma = 0

    @property
    def ac_sense(self) -> bool:
        """True while the AC sense input sees mains behind the relay."""
        inputs = self.inputs
        return inputs.welded or (self.relay_closed and inputs.ground and not inputs.relay_dead)

    @property
    def elapsed_s(self) -> int:
        """Whole seconds with the relay closed in this session."""
        running = self.now_ms - self.closed_at_ms if self.relay_closed else 0
        return (self.closed_before_ms + running) // 1000

    # reports

    @property
    def vflags(self) -> int:
        """The flags word of `$GS` and `$AT`."""
        pairs = (
            (0x0002, self.hard_fault),
            (0x0040, self.relay_closed),
            (0x0080, self.ground_fault_tripped),
            (0x0100, self.connected),
            (0x0200, self.session_ended),
            (0x0400, self.was_connected),
            (0x1000, self.timer_on),
            (0x8000, self.lock_manual),
        )
        return sum(flag for flag, on in pairs if on)

    def send(self, body: bytes) -> None:
        """Puts one frame on the line."""
        self.output += rapi_wire.frame(body)

    def report(self, *, force: bool = False) -> None:
        """Sends `$AT` when something reportable changed (section 8, rules 1 and 2)."""
        flags = self.vflags
        key = (self.state, self.pilot_state, self.amps, flags & REPORTED_FLAGS)
        if not force:
            unsettled = (
                self.state == State.STARTING
                or (self.state == State.A and self.connected)
                or (self.state in (State.B, State.C) and not self.connected)
            )
            if key == self.reported or unsettled:
                return
        self.reported = key
        self.send(b"$AT %02x %02x %d %04x" % (self.state, self.pilot_state, self.amps, flags))

    # states asked for by commands, timer and button

    def sleep(self) -> None:
        """State fe: pilot +12 V; an engaged relay opens later."""
        if self.state != State.SLEEPING:
            self.state = State.SLEEPING
            self.sleep_since_ms = self.now_ms
            self.pilot = Pilot.P12

    def disable(self) -> None:
        """State ff: relay open, pilot -12 V at once."""
        self.open_relay()
        self.pilot = Pilot.N12
        self.state = State.DISABLED

    def enable(self) -> None:
        """Leaves fe and ff; no effect in any other state."""
        if self.state == State.DISABLED:
            self.seen_state = self.seen_pilot = UNSEEN
        if self.state in (State.SLEEPING, State.DISABLED):
            self.state = State.STARTING
            self.pilot = Pilot.P12
            self.timer_at_ms = self.now_ms + 1000

    # measuring

    def measure(self) -> None:
        """Takes one ammeter sample in state 03, and a new mean about every 1.3 s; adds up energy (section 3)."""
        if not self.relay_closed:
            return
        if self.state == State.C:
            self.samples.append(self.inputs.current_ma)
            if self.now_ms - self.samples_since_ms >= 1300:
                counts = sum(self.samples) // len(self.samples) * 999 // 1000 // 220
                self.measured_ma = max(0, counts * self.eeprom.scale_ma - self.eeprom.offset_ma)
                self.samples.clear()
                self.samples_since_ms = self.now_ms
        passed_ms = self.now_ms - self.energy_at_ms
        if passed_ms > 250:
            power_w = (self.supply_mv // 16) * (self.measured_ma // 4) // 15_625
            self.session_ws += power_w * passed_ms // 1000
            self.energy_at_ms = self.now_ms
            self.session_stored = False

    def temperature_tenths(self) -> int | None:
        """The DS3231's value in steps of 0.25 °C, printed in tenths, cut towards zero. None: no chip."""
        if not self.inputs.clock_chip:
            return None
        quarters = self.inputs.temperature_mc // 250
        tenths = abs(quarters) * 25 // 10
        return tenths if quarters >= 0 else -tenths
