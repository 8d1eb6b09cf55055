"""Laws of the tariff arithmetic: every split adds up, and the next price change is exact in every zone."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from esci.reasons import Reason
from esci.tariff import (
    SEARCH_LIMIT,
    Line,
    Tariff,
    TariffDocument,
    Unrateable,
    Usage,
    cents,
    in_force,
    next_change,
    parse,
    price_at,
    rate,
    rate_one,
)

SECOND, MINUTE, QUARTER = timedelta(seconds=1), timedelta(minutes=1), timedelta(minutes=15)
ZONES = ["America/Los_Angeles", "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe"]
# Around every shift of those clocks in 2025, and around the end of that year.
EVENTFUL = [
    datetime(2025, 3, 9, 10, tzinfo=UTC),
    datetime(2025, 11, 2, 9, tzinfo=UTC),
    datetime(2025, 3, 30, 1, tzinfo=UTC),
    datetime(2025, 10, 26, 1, tzinfo=UTC),
    datetime(2025, 4, 5, 15, tzinfo=UTC),
    datetime(2025, 10, 4, 15, 30, tzinfo=UTC),
    datetime(2026, 1, 1, 0, tzinfo=UTC),
]


def flat(micro_usd_per_kwh: int = 170_000) -> Tariff:
    whole_day = {"day_types": ["weekday", "weekend"], "from_hour": 0, "to_hour": 24, "period": "flat"}
    return parse(
        TariffDocument.model_validate(
            {
                "code": "FLAT-TEST",
                "version": "2025-01-01",
                "title": "One price",
                "currency": "USD",
                "timezone": "UTC",
                "effective_from": "2025-01-01",
                "periods": [{"name": "flat", "micro_usd_per_kwh": micro_usd_per_kwh}],
                "seasons": [{"name": "year", "months": list(range(1, 13)), "hours": [whole_day]}],
            }
        )
    )


@st.composite
def hours(draw: st.DrawFn, day_type: str, names: list[str]) -> list[dict[str, object]]:
    cuts = sorted({0, 24, *draw(st.lists(st.integers(1, 23), max_size=5))})
    return [
        {"day_types": [day_type], "from_hour": first, "to_hour": last, "period": draw(st.sampled_from(names))}
        for first, last in pairwise(cuts)
    ]


@st.composite
def documents(draw: st.DrawFn) -> TariffDocument:
    """Any tariff: up to four periods, two seasons, holidays, one of the four zones (one shifts by half an hour)."""
    names = [f"p{index}" for index in range(draw(st.integers(1, 4)))]
    months = draw(st.permutations(list(range(1, 13))))
    cut = draw(st.integers(1, 12))
    seasons = []
    used: set[object] = set()
    for index, part in enumerate((months[:cut], months[cut:])):
        entries = draw(hours("weekday", names)) + draw(hours("weekend", names))
        if part:
            seasons.append({"name": f"s{index}", "months": part, "hours": entries})
            used |= {entry["period"] for entry in entries}
    days = st.dates(date(2025, 1, 1), date(2026, 12, 31))
    return TariffDocument.model_validate(
        {
            "code": "ANY-TEST",
            "version": "2025-01-01",
            "title": "Any",
            "currency": "USD",
            "timezone": draw(st.sampled_from(ZONES)),
            "effective_from": "2024-01-01",
            "holidays": sorted({day.isoformat() for day in draw(st.lists(days, max_size=5))}),
            "periods": [
                {"name": name, "micro_usd_per_kwh": draw(st.integers(0, 900_000))} for name in names if name in used
            ],
            "seasons": seasons,
        }
    )


def slow_price(document: TariffDocument, utc: datetime) -> tuple[str, int]:
    """What a person reads off the document, by search; shares nothing with the module's table."""
    local = utc.astimezone(ZoneInfo(document.timezone))
    rest = local.strftime("%a") in ("Sat", "Sun") or local.strftime("%Y-%m-%d") in document.holidays
    season = next(season for season in document.seasons if local.month in season.months)
    name = next(
        entry.period
        for entry in season.hours
        if ("weekend" if rest else "weekday") in entry.day_types and entry.from_hour <= local.hour < entry.to_hour
    )
    return name, next(period.micro_usd_per_kwh for period in document.periods if period.name == name)


moments = st.one_of(
    st.integers(0, 2 * 365 * 86_400).map(lambda after_s: datetime(2025, 1, 1, tzinfo=UTC) + after_s * SECOND),
    st.builds(
        lambda event, after_s: event + after_s * SECOND, st.sampled_from(EVENTFUL), st.integers(-30 * 3600, 30 * 3600)
    ),
)
energies = st.lists(st.integers(0, 30_000), max_size=60)
STARTS = [datetime(2025, 7, 1, tzinfo=UTC) + index * QUARTER for index in range(500)]


def usages(energies_wh: list[int]) -> list[Usage]:
    return [Usage(start, start + QUARTER, wh) for start, wh in zip(STARTS, energies_wh, strict=False)]


def billed_cents(lines: tuple[Line | Unrateable, ...]) -> int:
    return sum(line.amount_cents for line in lines if isinstance(line, Line))


# ---- prices and their changes ----


@pytest.mark.req("P1-S3.3")
@given(documents(), moments)
def test_the_price_is_the_one_a_person_reads_off_the_document(document: TariffDocument, utc: datetime) -> None:
    price = price_at(parse(document), utc)
    assert (price.period, price.micro_usd_per_kwh) == slow_price(document, utc)


@pytest.mark.req("P1-S3.3")
@given(documents(), moments)
def test_next_change_is_exact(document: TariffDocument, utc: datetime) -> None:
    """Constant before it (looked at every minute of the nearest three days), another price at it."""
    tariff = parse(document)
    change = next_change(tariff, utc)
    price = slow_price(document, utc)
    assert utc < change <= utc + SEARCH_LIMIT
    assert slow_price(document, change - SECOND) == price
    if change < utc + SEARCH_LIMIT:
        assert slow_price(document, change) != price
    near = [utc + index * MINUTE for index in range(3 * 24 * 60)]
    far = [utc + index * 7 * QUARTER for index in range(400 * 24 * 60 // 105)] if change - utc > timedelta(3) else []
    assert all(slow_price(document, moment) == price for moment in near + far if moment < change)


@pytest.mark.req("P1-S3.3")
@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("hours_of_day", ["abac" + "d" * 20, "aaab" + "c" * 20, "aaabbbb" + "a" * 17, "ab" + "c" * 22])
def test_walking_the_changes_of_a_year_meets_each_change_once(zone: str, hours_of_day: str) -> None:
    """Plans that change in the small hours, where the clocks shift: at the shift, beside it, and with it inside."""
    document = by_the_hour(zone, hours_of_day)
    place = ZoneInfo(zone)
    start, end = datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    expected = []
    last = hours_of_day[start.astimezone(place).hour]
    for index in range(1, (end - start) // QUARTER):  # these zones shift on quarter hours
        moment = start + index * QUARTER
        name = hours_of_day[moment.astimezone(place).hour]
        if name != last:
            expected.append(moment)
        last = name
    tariff = parse(document)
    walked = []
    moment = next_change(tariff, start)
    while moment < end:
        walked.append(moment)
        moment = next_change(tariff, moment)
    assert walked == expected


def by_the_hour(zone: str, hours_of_day: str) -> TariffDocument:
    """Each hour of every day has the period of its letter."""
    entries = [
        {"day_types": ["weekday", "weekend"], "from_hour": hour, "to_hour": hour + 1, "period": name}
        for hour, name in enumerate(hours_of_day)
    ]
    return TariffDocument.model_validate(
        {
            "code": "HOURS-TEST",
            "version": "1",
            "title": "By the hour",
            "currency": "USD",
            "timezone": zone,
            "effective_from": "2024-01-01",
            "periods": [{"name": name, "micro_usd_per_kwh": ord(name)} for name in sorted(set(hours_of_day))],
            "seasons": [{"name": "year", "months": list(range(1, 13)), "hours": entries}],
        }
    )


@pytest.mark.req("P1-S3.3")
@given(documents(), moments, st.integers(1, 40 * 3600))
def test_an_interval_is_rated_exactly_when_its_price_is_one(document: TariffDocument, utc: datetime, long: int) -> None:
    usage = Usage(utc, utc + long * SECOND, 1000)
    verdict = rate_one(parse(document), usage)
    edges = [utc + index * MINUTE for index in range(long // 60 + 1)] + [usage.end - SECOND]
    seen = {slow_price(document, moment) for moment in edges if moment < usage.end}
    if isinstance(verdict, Unrateable):
        assert verdict == Unrateable(Reason.PRICE_CHANGE_INSIDE, usage)
        changes = next_change(parse(document), utc)
        assert utc < changes < usage.end
        assert slow_price(document, changes) != slow_price(document, utc)
    else:
        assert seen == {(verdict.period, verdict.micro_usd_per_kwh)}


# ---- days of 23 and 25 hours ----


@pytest.mark.req("P1-S3.3")
@pytest.mark.parametrize(
    ("zone", "day", "length"),
    [
        ("America/Los_Angeles", date(2025, 3, 9), timedelta(hours=23)),
        ("America/Los_Angeles", date(2025, 11, 2), timedelta(hours=25)),
        ("Europe/Berlin", date(2025, 3, 30), timedelta(hours=23)),
        ("Europe/Berlin", date(2025, 10, 26), timedelta(hours=25)),
        ("Australia/Lord_Howe", date(2025, 4, 6), timedelta(hours=24, minutes=30)),
        ("Australia/Lord_Howe", date(2025, 10, 5), timedelta(hours=23, minutes=30)),
        ("Asia/Kolkata", date(2025, 3, 9), timedelta(hours=24)),
    ],
)
@given(data=st.data())
def test_every_quarter_hour_of_a_day_that_is_short_or_long_is_billed(
    zone: str, day: date, length: timedelta, data: st.DataObject
) -> None:
    document = data.draw(documents()).model_copy(update={"timezone": zone})
    tariff = parse(document)
    place = ZoneInfo(zone)
    start = datetime(day.year, day.month, day.day, tzinfo=place).astimezone(UTC)
    after = day + timedelta(days=1)
    end = datetime(after.year, after.month, after.day, tzinfo=place).astimezone(UTC)
    assert end - start == length
    count = length // QUARTER
    energies_wh = data.draw(st.lists(st.integers(0, 3000), min_size=count, max_size=count))
    day_usages = [Usage(start + i * QUARTER, start + (i + 1) * QUARTER, wh) for i, wh in enumerate(energies_wh)]
    lines, total = rate(tariff, day_usages)
    assert [line.usage for line in lines if isinstance(line, Line)] == day_usages
    assert total == sum(wh * slow_price(document, u.start)[1] for wh, u in zip(energies_wh, day_usages, strict=True))
    assert billed_cents(lines) == cents(total)


# ---- rounding ----


@pytest.mark.req("P1-S3.3")
@given(energies, st.integers(0, 900_000), st.integers(-(10**12), 10**12))
@example([20] * 60, 170_000, 0)
def test_the_lines_add_up_to_the_rounded_total(energies_wh: list[int], price: int, before: int) -> None:
    lines, after = rate(flat(price), usages(energies_wh), before)
    assert after - before == sum(energies_wh) * price
    assert billed_cents(lines) == cents(after) - cents(before)
    assert [line.amount_nano_usd for line in lines if isinstance(line, Line)] == [wh * price for wh in energies_wh]


@pytest.mark.req("P1-S3.3")
@given(energies, st.integers(0, 900_000), st.data())
def test_neither_order_nor_split_nor_batches_change_the_total(
    energies_wh: list[int], price: int, data: st.DataObject
) -> None:
    tariff = flat(price)
    lines, total = rate(tariff, usages(energies_wh))
    shuffled, same = rate(tariff, data.draw(st.permutations(usages(energies_wh))))
    assert (same, billed_cents(shuffled)) == (total, billed_cents(lines))
    parts = [part for wh in energies_wh for part in _split(data, wh)]
    split, same = rate(tariff, usages(parts))
    assert (same, billed_cents(split)) == (total, billed_cents(lines))
    cut = data.draw(st.integers(0, len(energies_wh)))
    first, running = rate(tariff, usages(energies_wh)[:cut])
    second, same = rate(tariff, usages(energies_wh)[cut:], running)
    assert (first + second, same) == (lines, total)


def _split(data: st.DataObject, wh: int) -> tuple[int, int]:
    part = data.draw(st.integers(0, wh))
    return part, wh - part


@pytest.mark.req("P1-S3.3")
@given(st.integers(-(10**15), 10**15))
@example(5_000_000)
@example(-5_000_000)
@example(4_999_999)
def test_a_cent_is_the_nearest_and_negatives_mirror(nano_usd: int) -> None:
    assert abs(cents(nano_usd) * 10_000_000 - nano_usd) <= 5_000_000
    assert cents(-nano_usd) == -cents(nano_usd)


@pytest.mark.req("P1-S3.3")
@given(documents(), moments, energies)
def test_nothing_is_dropped_and_the_unrateable_cost_nothing(
    document: TariffDocument, utc: datetime, energies_wh: list[int]
) -> None:
    """Hour-long intervals at odd minutes: some straddle a change. Each comes back, rated or with its reason."""
    tariff = parse(document.model_copy(update={"effective_to": "2026-06-01"}))
    hour = timedelta(hours=1)
    given_usages = [Usage(utc + i * hour, utc + (i + 1) * hour, wh) for i, wh in enumerate(energies_wh)]
    lines, total = rate(tariff, given_usages)
    assert [line.usage for line in lines] == given_usages
    assert total == sum(line.amount_nano_usd for line in lines if isinstance(line, Line))
    assert billed_cents(lines) == cents(total)
    for line in lines:
        covered = in_force(tariff, line.usage.start) and in_force(tariff, line.usage.end - SECOND)
        assert covered is not (isinstance(line, Unrateable) and line.reason is Reason.OUTSIDE_VALIDITY)


@pytest.mark.req("P1-S1.3")
@given(documents())
def test_a_document_survives_the_wire(document: TariffDocument) -> None:
    again = TariffDocument.model_validate_json(document.model_dump_json())
    assert again == document
    assert parse(again) == parse(document)
