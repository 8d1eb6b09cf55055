"""The tariff arithmetic that charger and utility share, so that receipt and bill agree to the cent (P1-S3.3, P1-S1.3).

It prices a moment, finds the next price change and rates usage. Hours are local wall-clock hours: 23 h and 25 h days
come out right. It must not read a clock or a file of ours (zoneinfo reads the zone's rules), and must not use floats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field

from esci.ids import Name
from esci.reasons import Reason
from esci.units import NANO_USD_PER_CENT, REGISTER_LIMIT_WH

SEARCH_LIMIT = timedelta(days=400)
DAY_TYPES = ("weekday", "weekend")  # "weekend" is Saturday, Sunday and the listed holidays
_ZERO = timedelta(0)
_SECOND = timedelta(seconds=1)
_YEARS = range(1970, 9001)  # far from the ends of datetime: no shift into a zone can overflow

DateText = Annotated[str, Field(pattern=r"^2[01][0-9]{2}-[01][0-9]-[0-3][0-9]$")]
MicroUsdPerKwh = Annotated[int, Field(ge=0, le=10_000_000)]
MicroUsdPerDay = Annotated[int, Field(ge=-1_000_000_000, le=1_000_000_000)]


class _Wire(BaseModel):
    """What every part of the document shares: strict, frozen, no unknown members."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class PeriodDocument(_Wire):
    """One price and its name. The price is all-in: every part that is charged by the kWh."""

    name: Name
    micro_usd_per_kwh: MicroUsdPerKwh


class HoursDocument(_Wire):
    """Local hours [from_hour, to_hour) of some day types, and their period. Nothing wraps over midnight."""

    day_types: Annotated[list[Literal["weekday", "weekend"]], Field(min_length=1, max_length=2)]
    from_hour: Annotated[int, Field(ge=0, le=23)]
    to_hour: Annotated[int, Field(ge=1, le=24)]
    period: Name


class SeasonDocument(_Wire):
    """Whole months of the local calendar and their hours."""

    name: Name
    months: Annotated[list[Annotated[int, Field(ge=1, le=12)]], Field(min_length=1, max_length=12)]
    hours: Annotated[list[HoursDocument], Field(min_length=1, max_length=48)]


class DailyDocument(_Wire):
    """A fixed charge (or, below zero, a credit) for each meter and day."""

    name: Name
    micro_usd_per_day: MicroUsdPerDay


class TariffDocument(_Wire):
    """One tariff version as it travels (JSON) and lies on disk (TOML): integers and text only.

    In force from `effective_from` up to, not including, `effective_to` (local dates; None: no end is known).
    `holidays` are the days as recognised, that is, after any move from Sunday to Monday.
    """

    code: Name
    version: Name
    title: Annotated[str, Field(min_length=1, max_length=120)]
    currency: Literal["USD"]
    timezone: Annotated[str, Field(pattern=r"^[A-Za-z0-9_+/-]{1,64}$")]
    effective_from: DateText
    effective_to: DateText | None = None
    holidays: Annotated[list[DateText], Field(max_length=400)] = []
    periods: Annotated[list[PeriodDocument], Field(min_length=1, max_length=48)]
    seasons: Annotated[list[SeasonDocument], Field(min_length=1, max_length=12)]
    daily_fixed: Annotated[list[DailyDocument], Field(max_length=16)] = []


@dataclass(frozen=True, slots=True)
class Price:
    """A period's name and its all-in price."""

    period: str
    micro_usd_per_kwh: int


@dataclass(frozen=True, slots=True)
class DailyComponent:
    """A named part of the bill for each meter and day; a credit is below zero."""

    name: str
    micro_usd_per_day: int


@dataclass(frozen=True, slots=True)
class Tariff:
    """A checked tariff version; made by `parse` only. `days` holds 24 prices for each month and day type."""

    code: str
    version: str
    title: str
    currency: Literal["USD"]
    timezone: str
    effective_from: date
    effective_to: date | None  # first local date no longer in force; None: no end is known
    holidays: frozenset[date]
    periods: tuple[Price, ...]
    daily_fixed: tuple[DailyComponent, ...]
    days: tuple[tuple[Price, ...], ...]  # index: 2 * (month - 1) + (1 on weekends and holidays)


@dataclass(frozen=True, slots=True)
class Usage:
    """Energy of one interval [start, end), UTC, whole seconds. Raises ValueError, also for an empty one with energy."""

    start: datetime
    end: datetime
    energy_wh: int

    def __post_init__(self) -> None:
        start, end = _checked(self.start), _checked(self.end)
        if start.microsecond or end.microsecond:
            raise ValueError(f"interval {start} to {end}: times must be whole seconds")
        if end < start:
            raise ValueError(f"interval {start} to {end} ends before it starts")
        if not 0 <= self.energy_wh <= REGISTER_LIMIT_WH:
            raise ValueError(f"interval {start} to {end}: {self.energy_wh} Wh is not between 0 and {REGISTER_LIMIT_WH}")
        if start == end and self.energy_wh:
            raise ValueError(f"interval at {start} is empty but carries {self.energy_wh} Wh")


@dataclass(frozen=True, slots=True)
class Line:
    """One rated interval. `amount_nano_usd` is exact; the `amount_cents` of all lines add up to the rounded total."""

    usage: Usage
    period: str
    micro_usd_per_kwh: int
    amount_nano_usd: int
    amount_cents: int


@dataclass(frozen=True, slots=True)
class Unrateable:
    """An interval for the exception queue, and why: PRICE_CHANGE_INSIDE or OUTSIDE_VALIDITY."""

    reason: Reason
    usage: Usage


def price_at(tariff: Tariff, utc: datetime) -> Price:
    """The price by the tariff's local clock. Says nothing about validity: ask `in_force`. ValueError if not UTC."""
    local = _checked(utc).astimezone(_zone(tariff.timezone))
    return _prices_of_day(tariff, local)[local.hour]


def next_change(tariff: Tariff, utc: datetime) -> datetime:
    """First UTC instant strictly after `utc` at which the period changes; `utc` + 400 days when none comes before that.

    A change of the period's name counts even at the same price, as bills are listed by period. Validity plays no part.
    """
    limit = _checked(utc) + SEARCH_LIMIT
    if len(tariff.periods) == 1:
        return limit
    price = price_at(tariff, utc)
    moment = _checked(utc).replace(microsecond=0)
    while moment < limit:
        moment = _next_edge(tariff, moment)
        if price_at(tariff, moment) != price:
            return min(moment, limit)
    return limit


def local_date(tariff: Tariff, utc: datetime) -> date:
    """The calendar day at the tariff's place: for fixed daily amounts and for choosing a version."""
    return _checked(utc).astimezone(_zone(tariff.timezone)).date()


def in_force(tariff: Tariff, utc: datetime) -> bool:
    """True while this version is the one that the utility filed for this moment."""
    day = local_date(tariff, utc)
    return tariff.effective_from <= day and (tariff.effective_to is None or day < tariff.effective_to)


def rate_one(tariff: Tariff, usage: Usage) -> Price | Unrateable:
    """The one price of the whole interval, or why there is none."""
    last = max(usage.start, usage.end - _SECOND)
    if not (in_force(tariff, usage.start) and in_force(tariff, last)):
        return Unrateable(Reason.OUTSIDE_VALIDITY, usage)
    if len(tariff.periods) > 1 and next_change(tariff, usage.start) < usage.end:
        return Unrateable(Reason.PRICE_CHANGE_INSIDE, usage)
    return price_at(tariff, usage.start)


def rate(
    tariff: Tariff, usages: Sequence[Usage], running_nano_usd: int = 0
) -> tuple[tuple[Line | Unrateable, ...], int]:
    """One line for each usage, in order, and the running total after them; an unrateable one adds nothing to it.

    Rounding happens once, on the running total: give the total so far as `running_nano_usd` to go on with a bill.
    """
    lines: list[Line | Unrateable] = []
    total_nano_usd = running_nano_usd
    for usage in usages:
        price = rate_one(tariff, usage)
        if isinstance(price, Unrateable):
            lines.append(price)
            continue
        amount_nano_usd = usage.energy_wh * price.micro_usd_per_kwh  # Wh x micro-USD/kWh = nano-USD, exactly
        amount_cents = cents(total_nano_usd + amount_nano_usd) - cents(total_nano_usd)
        total_nano_usd += amount_nano_usd
        lines.append(Line(usage, price.period, price.micro_usd_per_kwh, amount_nano_usd, amount_cents))
    return tuple(lines), total_nano_usd


def cents(nano_usd: int) -> int:
    """The nearest cent; half a cent goes away from zero, so cents(-x) == -cents(x). Only ever round a running total."""
    magnitude = (abs(nano_usd) + NANO_USD_PER_CENT // 2) // NANO_USD_PER_CENT
    return -magnitude if nano_usd < 0 else magnitude


def daily_fixed_micro_usd(tariff: Tariff) -> tuple[DailyComponent, ...]:
    """The named amounts for each meter and local day, in micro-USD; empty when the tariff has none."""
    return tariff.daily_fixed


def parse(document: TariffDocument) -> Tariff:
    """The checked tariff. Raises ValueError with a sentence that names the tariff and what to correct."""
    try:
        _known_zone(document.timezone)
        effective_from = _date(document.effective_from)
        effective_to = None if document.effective_to is None else _date(document.effective_to)
        if effective_to is not None and effective_to <= effective_from:
            raise ValueError(f"effective_to {effective_to} must be after effective_from {effective_from}")
        _once("holiday", document.holidays)
        _once("daily_fixed", [component.name for component in document.daily_fixed])
        return Tariff(
            code=document.code,
            version=document.version,
            title=document.title,
            currency=document.currency,
            timezone=document.timezone,
            effective_from=effective_from,
            effective_to=effective_to,
            holidays=frozenset(_date(text) for text in document.holidays),
            periods=tuple(Price(period.name, period.micro_usd_per_kwh) for period in document.periods),
            daily_fixed=tuple(DailyComponent(part.name, part.micro_usd_per_day) for part in document.daily_fixed),
            days=_days(document),
        )
    except ValueError as error:
        raise ValueError(f"tariff {document.code} {document.version}: {error}") from error


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _known_zone(name: str) -> None:
    """Raises ValueError for what is not a time zone; a folder of zones gives an OSError inside zoneinfo."""
    try:
        _zone(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is not a known time zone; write one such as America/Los_Angeles") from error


def _checked(moment: datetime) -> datetime:
    """The moment on `datetime.UTC`. A naive time would be read as the machine's own zone, so it is refused."""
    if moment.utcoffset() != _ZERO:
        raise ValueError(f"{moment!r} is not a UTC time")
    if moment.year not in _YEARS:
        raise ValueError(f"{moment!r} is not between the years {_YEARS.start} and {_YEARS.stop - 1}")
    return moment if moment.tzinfo is UTC else moment.astimezone(UTC)


def _prices_of_day(tariff: Tariff, local: datetime) -> tuple[Price, ...]:
    weekend = local.weekday() >= 5 or local.date() in tariff.holidays
    return tariff.days[2 * (local.month - 1) + weekend]


def _next_edge(tariff: Tariff, moment: datetime) -> datetime:
    """The next instant after `moment` (whole seconds) that can change the price; between them nothing can.

    It is the end of the period in today's hours, midnight, or the shift of the local clock, whichever is first.
    It relies on no zone shifting twice within a day and coming back.
    """
    zone = _zone(tariff.timezone)
    local = moment.astimezone(zone)
    prices = _prices_of_day(tariff, local)
    until_hour = next((hour for hour in range(local.hour + 1, 24) if prices[hour] != prices[local.hour]), 24)
    edge = moment + timedelta(hours=until_hour - local.hour, minutes=-local.minute, seconds=-local.second)
    offset = local.utcoffset()
    if edge.astimezone(zone).utcoffset() == offset:
        return edge
    before, after = moment, edge
    while after - before > _SECOND:
        middle = (before + (after - before) / 2).replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text} is not a date of the calendar") from error


def _once(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{what} {name} is listed twice; list it once")


def _days(document: TariffDocument) -> tuple[tuple[Price, ...], ...]:
    """24 prices for each month and day type. Raises ValueError unless each hour is covered exactly once."""
    _once("period", [period.name for period in document.periods])
    _once("season", [season.name for season in document.seasons])
    prices = {period.name: Price(period.name, period.micro_usd_per_kwh) for period in document.periods}
    days: dict[tuple[int, str], tuple[Price, ...]] = {}
    for season in document.seasons:
        for month in season.months:
            if (month, DAY_TYPES[0]) in days:
                raise ValueError(f"month {month} is listed twice; it must belong to exactly one season")
            for day_type in DAY_TYPES:
                days[month, day_type] = _hours_of(season, day_type, prices)
    missing = [str(month) for month in range(1, 13) if (month, DAY_TYPES[0]) not in days]
    if missing:
        raise ValueError(f"no season covers month {', '.join(missing)}")
    used = {price.period for day in days.values() for price in day}
    unused = [name for name in prices if name not in used]
    if unused:
        raise ValueError(f"period {', '.join(unused)} is never used; give it hours or remove it")
    return tuple(days[month, day_type] for month in range(1, 13) for day_type in DAY_TYPES)


def _hours_of(season: SeasonDocument, day_type: str, prices: dict[str, Price]) -> tuple[Price, ...]:
    found: dict[int, Price] = {}
    where = f"season {season.name}, {day_type}"
    for entry in season.hours:
        if entry.from_hour >= entry.to_hour:
            raise ValueError(f"{where}: hours {entry.from_hour} to {entry.to_hour} must rise; split them at midnight")
        if entry.period not in prices:
            raise ValueError(f"{where}: period {entry.period} is not among the periods")
        if day_type not in entry.day_types:
            continue
        for hour in range(entry.from_hour, entry.to_hour):
            if hour in found:
                raise ValueError(f"{where}: hour {hour} is covered twice; each hour belongs to one period")
            found[hour] = prices[entry.period]
    for hour in range(24):
        if hour not in found:
            raise ValueError(f"{where}: hour {hour} is not covered; give it a period")
    return tuple(found[hour] for hour in range(24))
