"""The one true world of a simulation: pilot line, contactor, vehicles, mains, meter, and the single count of energy.

Every watt is added to exactly one of two integer millijoule counts: `energy_mj` (through the meter) or `unmetered_mj`
(while the meter was cut off). Registers, bills and laws are checked against these. Pure: advanced in world
milliseconds; one seed repeats everything. P1-F20, P1-S3.1.
"""

from dataclasses import dataclass, field
from random import Random

from firmware_sim.board_openevse import Board
from firmware_sim.board_state import Eeprom, Load
from firmware_sim.vehicle import MJ_PER_WH, Vehicle

STEP_MS = 100
MAINS_MV = 230_000
WOBBLE_MV = 1500
WOBBLE_EVERY_MS = 10_000
SAG_MV_PER_A = 60
FREQUENCY_MHZ = 50_000


@dataclass(slots=True)
class MeterFaults:
    """What is wrong with the meter now."""

    unplugged: bool = False  # neither answers nor counts
    frozen_mj: int | None = None  # answers with this old register
    garbage: bool = False  # NaN in every register
    offset_mj: int = 0  # reset and jump: added to the register that is shown


@dataclass(slots=True)
class World:
    """Everything physical. `start_utc_s`: seconds since 1970 at world millisecond 0."""

    seed: int
    start_utc_s: int
    register_start_wh: int = 0
    vehicles: dict[str, Vehicle] = field(default_factory=dict)
    eeprom: Eeprom = field(default_factory=Eeprom)
    now_ms: int = 0
    energy_mj: int = 0
    unmetered_mj: int = 0
    base_load_w: int = 0  # a constant load behind the meter, for a meter served alone
    meter: MeterFaults = field(default_factory=MeterFaults)
    line_short: bool = False
    mains_mv: tuple[int, int, int] = (MAINS_MV, MAINS_MV, MAINS_MV)
    board: Board = field(init=False)
    _random: Random = field(init=False)
    _wobble_at_ms: int = 0

    def __post_init__(self) -> None:
        self.board = Board(self.eeprom, self.start_utc_s)
        self._random = Random(self.seed)

    # what is true

    @property
    def plugged(self) -> Vehicle | None:
        """The vehicle in the socket, or None."""
        return next((vehicle for vehicle in self.vehicles.values() if vehicle.plugged), None)

    @property
    def powered(self) -> bool:
        """True while mains reaches the socket: relay closed and alive, or welded."""
        inputs = self.board.inputs
        return inputs.welded or (self.board.state.relay_closed and not inputs.relay_dead)

    @property
    def currents_ma(self) -> tuple[int, int, int]:
        """Current of L1, L2, L3."""
        vehicle = self.plugged
        if vehicle is None:
            return (0, 0, 0)
        current = vehicle.current_ma
        return (current, current, current) if vehicle.model.phases == 3 else (current, 0, 0)

    @property
    def voltages_mv(self) -> tuple[int, int, int]:
        """Voltage of L1, L2, L3 at the meter, sagging a little with the current."""
        first, second, third = self.currents_ma
        mains = self.mains_mv
        return (
            mains[0] - first * SAG_MV_PER_A // 1000,
            mains[1] - second * SAG_MV_PER_A // 1000,
            mains[2] - third * SAG_MV_PER_A // 1000,
        )

    @property
    def powers_w(self) -> tuple[int, int, int]:
        """Power of L1, L2, L3 in whole watts: what the count of energy is made of."""
        volts, amps = self.voltages_mv, self.currents_ma
        first, second, third = (mv * ma // 1_000_000 for mv, ma in zip(volts, amps, strict=True))
        return (first + self.base_load_w, second, third)

    @property
    def register_mj(self) -> int:
        """The meter's true register: its start plus what flowed through it."""
        return self.register_start_wh * MJ_PER_WH + self.energy_mj

    @property
    def shown_register_mj(self) -> int:
        """The register as the meter shows it, with its faults."""
        if self.meter.frozen_mj is not None:
            return self.meter.frozen_mj
        return max(0, self.register_mj + self.meter.offset_mj)

    @property
    def register_wh(self) -> int:
        """The true register, rounded to watt-hours."""
        return (self.register_mj + MJ_PER_WH // 2) // MJ_PER_WH

    # the passing of time

    def advance(self, to_ms: int) -> None:
        """Lets the world run to `to_ms`."""
        while self.now_ms < to_ms:
            limit_ms = min(to_ms, self.now_ms - self.now_ms % STEP_MS + STEP_MS)
            self._set_inputs()
            reached_ms = self.board.advance(limit_ms)
            self._flow(reached_ms)
        self.board.advance(self.now_ms)  # what fell due at this very millisecond

    def _flow(self, reached_ms: int) -> None:
        """Energy of the time since the last step, then the vehicle's reaction."""
        passed_ms = reached_ms - self.now_ms
        if passed_ms > 0:
            vehicle_mj = (sum(self.powers_w) - self.base_load_w) * passed_ms
            if self.meter.unplugged:
                self.unmetered_mj += vehicle_mj + self.base_load_w * passed_ms
            else:
                self.energy_mj += vehicle_mj + self.base_load_w * passed_ms
            vehicle = self.plugged
            if vehicle is not None:
                vehicle.take(vehicle_mj)
        self.now_ms = reached_ms
        vehicle = self.plugged
        if vehicle is not None:
            vehicle.advance(reached_ms, passed_ms, self.board.state.duty_ppm, self.powered)
        if reached_ms >= self._wobble_at_ms:
            self._wobble_at_ms = reached_ms + WOBBLE_EVERY_MS
            first, second, third = (MAINS_MV + self._random.randint(-WOBBLE_MV, WOBBLE_MV) for _ in range(3))
            self.mains_mv = (first, second, third)

    def _set_inputs(self) -> None:
        vehicle = self.plugged
        inputs = self.board.inputs
        if self.line_short:
            inputs.load = Load.SHORT
        else:
            inputs.load = vehicle.load if vehicle is not None else Load.A
        inputs.current_ma = vehicle.current_ma if vehicle is not None else 0
