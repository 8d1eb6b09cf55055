"""The charger's own receipt, by the same arithmetic as the utility's bill (P1-B4; DESIGN section 2, Offline)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from esci.messages import TariffRef
from esci.records import Interval, doubt
from esci.tariff import Line, Tariff, Unrateable, Usage, cents, rate
from esci.units import parse_utc

Tariffs = Callable[[TariffRef], Tariff | None]


@dataclass(slots=True)
class Receipt:
    """One session's account. Energy that a person must decide about is pending: neither billed nor dropped."""

    running_nano_usd: int = 0
    energy_wh: int = 0
    pending_wh: int = 0

    @property
    def total_cents(self) -> int:
        """What the session costs so far, without the pending energy."""
        return cents(self.running_nano_usd)

    def add(self, interval: Interval, tariffs: Tariffs) -> Line | None:
        """The line of an interval, or None when its energy is pending."""
        self.energy_wh += interval.energy_wh
        tariff = None if interval.tariff is None else tariffs(interval.tariff)
        if doubt(interval) is None and tariff is not None:
            usage = Usage(parse_utc(interval.start), parse_utc(interval.end), interval.energy_wh)
            (line,), running = rate(tariff, [usage], self.running_nano_usd)
            if not isinstance(line, Unrateable):
                self.running_nano_usd = running
                return line
        self.pending_wh += interval.energy_wh
        return None


@dataclass(frozen=True, slots=True)
class Statement:
    """A receipt with its lines, for showing."""

    lines: tuple[tuple[Interval, Line | None], ...]
    total: Receipt = field(compare=False)


def statement(intervals: Iterable[Interval], tariffs: Tariffs) -> Statement:
    """The whole receipt of one session's intervals, in their order."""
    total = Receipt()
    return Statement(tuple((interval, total.add(interval, tariffs)) for interval in intervals), total)
