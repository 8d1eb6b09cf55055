"""World time against machine time, for demonstrations and tests.

One environment variable, `PLUGBIND_CLOCK`, is read by the composition roots of agent, cloud and simulator.
Its text is `SCALE,ANCHOR_MONO_S,ANCHOR_UTC`, e.g. `60,10234.5,2025-07-16T03:20:00Z`: world time ran at ANCHOR_UTC when
the machine's monotonic clock showed ANCHOR_MONO_S, and runs SCALE times as fast. Unset means real time.
This module only calculates; it never reads a clock.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from esci.units import parse_utc

VARIABLE = "PLUGBIND_CLOCK"


@dataclass(frozen=True, slots=True)
class TimeScale:
    """How world time follows the machine's monotonic clock."""

    scale: int
    anchor_mono_s: float
    anchor_utc: datetime

    @classmethod
    def parse(cls, text: str) -> "TimeScale":
        """The scale that the text describes. Raises ValueError with a sentence when it is not one."""
        parts = text.split(",")
        if len(parts) != 3:
            raise ValueError(f"{VARIABLE} must read SCALE,ANCHOR_MONO_S,ANCHOR_UTC, not {text!r}")
        scale, anchor = int(parts[0]), float(parts[1])
        if not 1 <= scale <= 100_000:
            raise ValueError(f"{VARIABLE}: the scale must be 1 to 100000, not {scale}")
        return cls(scale, anchor, parse_utc(parts[2]))

    def mono_ms(self, real_mono_s: float) -> int:
        """World milliseconds since the anchor."""
        return int((real_mono_s - self.anchor_mono_s) * self.scale * 1000)

    def utc(self, real_mono_s: float) -> datetime:
        """World UTC, cut to whole seconds (P1-N1)."""
        return self.anchor_utc + timedelta(seconds=self.mono_ms(real_mono_s) // 1000)
