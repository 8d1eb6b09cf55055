"""Units and their only conversions. Energy, current, time and money are integers; floats end here (P1-N1)."""

import re
from datetime import UTC, datetime
from typing import NewType

EnergyWh = NewType("EnergyWh", int)

NANO_USD_PER_CENT = 10_000_000
REGISTER_LIMIT_WH = 100_000_000_000
_UTC = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z")


def energy_wh(kwh: float) -> EnergyWh:
    """Nearest watt-hour: the only place where a meter's float kWh becomes ours. Raises ValueError outside 0..10^8."""
    if not 0 <= kwh < REGISTER_LIMIT_WH / 1000:  # also refuses NaN
        raise ValueError(f"{kwh} kWh is not a register value")
    return EnergyWh(round(kwh * 1000))


def format_utc(moment: datetime) -> str:
    """`2025-07-16T03:20:00Z`: how every time stands on the wire and in the journal. Whole seconds only."""
    if moment.utcoffset() is None:
        raise ValueError(f"{moment!r} has no time zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_utc(text: str) -> datetime:
    """The moment that `format_utc` wrote. Raises ValueError for any other form."""
    found = _UTC.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a UTC time such as 2025-07-16T03:20:00Z")
    year, month, day, hour, minute, second = map(int, found.groups())
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


def dollars(cents: int) -> str:
    """`12.34` or `-0.05`: cents as people read them."""
    sign = "-" if cents < 0 else ""
    return f"{sign}{abs(cents) // 100}.{abs(cents) % 100:02d}"


def kwh(energy: int) -> str:
    """`12.345`: watt-hours as people read them."""
    return f"{energy // 1000}.{energy % 1000:03d}"
