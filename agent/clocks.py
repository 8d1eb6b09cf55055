"""The machine's clocks as world time: the one module of the agent that reads them. A composition root's tool."""

import time
from datetime import UTC, datetime
from typing import Final

from agent.core.clock import Now
from esci.timescale import VARIABLE, TimeScale

REAL_PACE: Final = 1.0


class ClockVariableError(Exception):
    """PLUGBIND_CLOCK cannot be read; the text says how it must look."""


class Clocks:
    """World time, read from the machine's clocks; scaled when PLUGBIND_CLOCK says so."""

    def __init__(self, text: str) -> None:
        """`text`: the variable's value, "" for real time. Raises ClockVariableError when it is no scale."""
        try:
            self._scale = TimeScale.parse(text) if text else None
        except ValueError as error:
            raise ClockVariableError(f"{VARIABLE} cannot be used: {error}: unset it on a real charger") from error

    @property
    def pace(self) -> float:
        """Real seconds for each world second."""
        return REAL_PACE if self._scale is None else REAL_PACE / self._scale.scale

    def now(self) -> Now:
        """Both clocks at this moment. Unscaled, the kernel's time is trusted once it lies after the year 2024."""
        mono_s = time.monotonic()
        if self._scale is None:
            return Now(int(mono_s * 1000), datetime.now(UTC).replace(microsecond=0), synced=True)
        return Now(self._scale.mono_ms(mono_s), self._scale.utc(mono_s), synced=True)
