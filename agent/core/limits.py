"""Which current limit rules: the smallest in force, with its source; an expired one falls back to its safe value.

Below 6 A means pause (SAE J1772: a pilot cannot offer less).
"""

from collections.abc import Iterable
from dataclasses import dataclass

LEAST_MA = 6_000


@dataclass(frozen=True, slots=True)
class Limit:
    """At most limit_ma, says source. When until_mono_ms has passed, at most after_ma; None never expires."""

    source: str
    limit_ma: int
    until_mono_ms: int | None = None
    after_ma: int = 0

    def in_force_ma(self, mono_ms: int) -> int:
        """The value at this moment. An expired limit never rises above what it was."""
        if self.until_mono_ms is None or mono_ms < self.until_mono_ms:
            return self.limit_ma
        return min(self.limit_ma, self.after_ma)


@dataclass(frozen=True, slots=True)
class Ruling:
    """The limit that rules. limit_ma 0 is pause."""

    source: str
    limit_ma: int


def ruling(limits: Iterable[Limit], mono_ms: int) -> Ruling:
    """The smallest limit in force; the first named wins a tie. Raises ValueError without any limit."""
    found = min(limits, key=lambda limit: limit.in_force_ma(mono_ms))
    value_ma = found.in_force_ma(mono_ms)
    return Ruling(found.source, value_ma if value_ma >= LEAST_MA else 0)
