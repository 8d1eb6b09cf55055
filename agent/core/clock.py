"""Both clocks as one value, and the watch that notices when they part (P1-N1).

The runtime reads the clocks once for each event; nothing in a core reads one.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

STEP_S = 3
EARLIEST = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Now:
    """Both clocks at one moment."""

    mono_ms: int  # never jumps: every duration is a difference of two of these
    utc: datetime  # whole seconds, may jump: only written into records
    synced: bool  # False is written into the record too

    @property
    def quality(self) -> str:
        """`synced` or `unsynced`, as records tell it. A date before the software was made is never trusted."""
        return "synced" if self.synced and self.utc >= EARLIEST else "unsynced"


@dataclass(slots=True)
class ClockWatch:
    """Notices when utc was set: it then moved otherwise than mono_ms did."""

    last: Now | None = None

    def step_s(self, now: Now) -> int:
        """Seconds by which utc was set since the last call, negative when it was set back; 0 within STEP_S."""
        last, self.last = self.last, now
        if last is None:
            return 0
        expected = last.utc + timedelta(milliseconds=now.mono_ms - last.mono_ms)
        step_s = round((now.utc - expected).total_seconds())
        if abs(step_s) <= STEP_S:
            return 0
        return step_s
