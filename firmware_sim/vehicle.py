"""A vehicle as the plug sees it: its load on the pilot line, the current it draws, and its battery.

Pure, on world milliseconds. It attempts nothing on the PEV link (pevlink.py does) and knows nothing of the board but
the pilot's duty and whether voltage is there. Sources: facts/hardware.md 2.1 to 2.3; P1-S1.6, P1-S2.1, P1-F7, P1-N2.
"""

from dataclasses import dataclass

from firmware_sim.board_state import Load

MJ_PER_WH = 3_600_000
TAPER_FROM_PERMILLE = 800
TAPER_END_PERCENT = 15
REACTION_MS = 700
RAMP_MA_PER_S = 8000
MIN_DUTY_PPM, MAX_DUTY_PPM = 80_000, 970_000


def duty_to_ma(duty_ppm: int) -> int:
    """Current that the pilot's duty allows, in mA; 0 outside 8 to 97 % (facts/hardware.md 2.2)."""
    if not MIN_DUTY_PPM <= duty_ppm < MAX_DUTY_PPM:
        return 0
    if duty_ppm < 100_000:
        return 6000 if duty_ppm > 99_000 else duty_ppm * 6 // 100
    if duty_ppm <= 850_000:
        return duty_ppm * 6 // 100
    return min(80_000, (duty_ppm - 640_000) * 25 // 100)


@dataclass(frozen=True, slots=True)
class VehicleModel:
    """What a vehicle is, from the scenario."""

    name: str
    vin: str
    capacity_wh: int
    phases: int  # 1 or 3
    max_current_ma: int


@dataclass(slots=True)
class Vehicle:
    """One vehicle's present. `stored_mj` is its battery's content."""

    model: VehicleModel
    stored_mj: int
    plugged: bool = False
    wants_charge: bool = True
    fault_load: Load | None = None  # forces this load while plugged (ventilation, short)
    follows_pilot: bool = True  # False: draws its maximum whatever the pilot says (over-current)
    current_ma: int = 0  # per phase in use
    _asking: bool = False
    _changes_at_ms: int | None = None

    @property
    def soc_percent(self) -> int:
        """State of charge, 0..100, cut."""
        return min(100, self.stored_mj * 100 // (self.model.capacity_wh * MJ_PER_WH))

    @property
    def full(self) -> bool:
        """True when the battery takes no more."""
        return self.stored_mj >= self.model.capacity_wh * MJ_PER_WH

    @property
    def load(self) -> Load:
        """What it hangs on the pilot line."""
        if not self.plugged:
            return Load.A
        if self.fault_load is not None:
            return self.fault_load
        return Load.C if self._asking else Load.B

    def plug(self) -> None:
        """Into the socket; it asks for nothing yet."""
        self.plugged = True
        self._asking = False
        self._changes_at_ms = None

    def unplug(self) -> None:
        """Out of the socket: no load, no current."""
        self.plugged = self._asking = False
        self.current_ma = 0
        self._changes_at_ms = None

    def set_soc(self, percent: int) -> None:
        """Sets the battery's content (it was driven)."""
        self.stored_mj = self.model.capacity_wh * MJ_PER_WH * percent // 100

    def advance(self, now_ms: int, passed_ms: int, duty_ppm: int, powered: bool) -> None:
        """Reacts to pilot and voltage as they are now; `passed_ms` since the last call bounds the current's ramp."""
        if not self.plugged:
            return
        allowed_ma = duty_to_ma(duty_ppm)
        self._decide(now_ms, allowed_ma > 0 and self.wants_charge and not self.full)
        if not powered or self.full or not self._asking:
            self.current_ma = 0
            return
        target_ma = self._wanted_ma() if not self.follows_pilot else min(self._wanted_ma(), allowed_ma)
        step_ma = RAMP_MA_PER_S * passed_ms // 1000
        low, high = self.current_ma - 2 * step_ma, self.current_ma + step_ma
        self.current_ma = max(0, min(max(target_ma, low), high))

    def _decide(self, now_ms: int, wanted: bool) -> None:
        """Closes or opens S2, some time after the reason for it."""
        if wanted == self._asking:
            self._changes_at_ms = None
        elif self._changes_at_ms is None:
            self._changes_at_ms = now_ms + REACTION_MS
        elif now_ms >= self._changes_at_ms:
            self._asking = wanted
            self._changes_at_ms = None

    def _wanted_ma(self) -> int:
        """Constant current, then a straight taper over the last fifth of the battery."""
        capacity_mj = self.model.capacity_wh * MJ_PER_WH
        permille = self.stored_mj * 1000 // capacity_mj
        maximum = self.model.max_current_ma
        if permille <= TAPER_FROM_PERMILLE:
            return maximum
        left = max(0, 1000 - permille)
        percent = TAPER_END_PERCENT + (100 - TAPER_END_PERCENT) * left // (1000 - TAPER_FROM_PERMILLE)
        return maximum * percent // 100

    def take(self, energy_mj: int) -> None:
        """Puts delivered energy into the battery."""
        self.stored_mj += energy_mj
