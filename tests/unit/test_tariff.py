"""The tariff arithmetic by example, and documents that must be refused."""

import copy
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from esci.reasons import Reason
from esci.tariff import (
    SEARCH_LIMIT,
    DailyComponent,
    Line,
    Price,
    Tariff,
    TariffDocument,
    Unrateable,
    Usage,
    cents,
    daily_fixed_micro_usd,
    in_force,
    local_date,
    next_change,
    parse,
    price_at,
    rate,
    rate_one,
)

BOTH = ["weekday", "weekend"]
DAY_NIGHT: dict[str, Any] = {
    "code": "DAY-NIGHT-TEST",
    "version": "2025-06-01",
    "title": "Day and night",
    "currency": "USD",
    "timezone": "America/Los_Angeles",
    "effective_from": "2025-06-01",
    "effective_to": "2026-01-01",
    "holidays": ["2025-07-04"],
    "periods": [{"name": "day", "micro_usd_per_kwh": 300_000}, {"name": "night", "micro_usd_per_kwh": 100_000}],
    "seasons": [
        {
            "name": "year",
            "months": list(range(1, 13)),
            "hours": [
                {"day_types": BOTH, "from_hour": 0, "to_hour": 8, "period": "night"},
                {"day_types": ["weekday"], "from_hour": 8, "to_hour": 24, "period": "day"},
                {"day_types": ["weekend"], "from_hour": 8, "to_hour": 24, "period": "night"},
            ],
        }
    ],
    "daily_fixed": [{"name": "basic-charge", "micro_usd_per_day": 516_000}],
}
HOURS = DAY_NIGHT["seasons"][0]["hours"]
SEASON = DAY_NIGHT["seasons"][0]
NIGHT_HOURS = [{"day_types": BOTH, "from_hour": 0, "to_hour": 24, "period": "night"}]
DAY, NIGHT = Price("day", 300_000), Price("night", 100_000)
EIGHT = datetime(2025, 7, 15, 15, tzinfo=UTC)  # 08:00 in Los Angeles, a Tuesday


def day_night(**changes: object) -> Tariff:
    return parse(TariffDocument.model_validate(DAY_NIGHT | changes))


def flat_test() -> Tariff:
    hours = [{"day_types": BOTH, "from_hour": 0, "to_hour": 24, "period": "flat"}]
    season = {"name": "year", "months": list(range(1, 13)), "hours": hours}
    periods = [{"name": "flat", "micro_usd_per_kwh": 170_000}]
    return day_night(code="FLAT-TEST", periods=periods, seasons=[season], effective_to=None, holidays=[])


# ---- prices ----


@pytest.mark.req("P1-S1.3")
@pytest.mark.parametrize(
    ("local", "expected"),
    [
        (datetime(2025, 7, 15, 7, 59, 59), NIGHT),
        (datetime(2025, 7, 15, 8), DAY),
        (datetime(2025, 7, 15, 23, 59, 59), DAY),
        (datetime(2025, 7, 16, 0), NIGHT),
        (datetime(2025, 7, 12, 12), NIGHT),  # a Saturday
        (datetime(2025, 7, 4, 12), NIGHT),  # a holiday, a Friday
        (datetime(2025, 7, 3, 12), DAY),
    ],
)
def test_the_local_clock_and_calendar_set_the_price(local: datetime, expected: Price) -> None:
    utc = local.replace(tzinfo=ZoneInfo("America/Los_Angeles")).astimezone(UTC)
    assert price_at(day_night(), utc) == expected


@pytest.mark.req("P1-S3.3")
def test_a_change_is_strictly_after_the_moment_asked_about() -> None:
    tariff = day_night()
    assert next_change(tariff, EIGHT - timedelta(seconds=1)) == EIGHT
    assert next_change(tariff, EIGHT) == datetime(2025, 7, 16, 7, tzinfo=UTC)
    assert next_change(tariff, EIGHT - timedelta(microseconds=1)) == EIGHT


@pytest.mark.req("P1-S3.3")
def test_a_weekend_with_a_holiday_before_it_is_one_stretch() -> None:
    night_falls = datetime(2025, 7, 4, 7, tzinfo=UTC)  # midnight at the end of Thursday
    assert next_change(day_night(), night_falls) == datetime(2025, 7, 7, 15, tzinfo=UTC)


@pytest.mark.req("P1-S3.3")
def test_a_flat_tariff_never_changes() -> None:
    tariff = flat_test()
    assert next_change(tariff, EIGHT) == EIGHT + SEARCH_LIMIT
    assert rate_one(tariff, Usage(EIGHT, EIGHT + timedelta(days=900), 5)) == Price("flat", 170_000)


@pytest.mark.req("P1-S3.3")
@pytest.mark.parametrize("before_change", [timedelta(hours=6), timedelta(days=90)])
def test_the_search_for_a_change_ends_after_400_days(before_change: timedelta) -> None:
    """A period only on weekdays of February, and a year in which all of those are holidays."""
    february = [date(2026, 2, day) for day in range(1, 29)]
    seasons = [SEASON | {"months": [2]}, SEASON | {"name": "rest", "months": [1, *range(3, 13)], "hours": NIGHT_HOURS}]
    tariff = day_night(seasons=seasons, holidays=[day.isoformat() for day in february])
    change = datetime(2027, 2, 1, 16, tzinfo=UTC)  # 08:00 on the next Monday in a February
    assert next_change(tariff, change - timedelta(days=399)) == change
    asked = change - SEARCH_LIMIT - before_change
    assert next_change(tariff, asked) == asked + SEARCH_LIMIT


@pytest.mark.req("P1-S3.3")
def test_a_change_of_name_at_the_same_price_counts() -> None:
    periods = [{"name": "day", "micro_usd_per_kwh": 100_000}, {"name": "night", "micro_usd_per_kwh": 100_000}]
    tariff = day_night(periods=periods)
    assert next_change(tariff, EIGHT - timedelta(hours=1)) == EIGHT


@pytest.mark.req("P1-N1")
@pytest.mark.parametrize(
    "moment",
    [
        datetime(2025, 7, 15, 15),
        datetime(2025, 7, 15, 8, tzinfo=ZoneInfo("America/Los_Angeles")),
        datetime(2025, 7, 15, 15, tzinfo=timezone(timedelta(seconds=1))),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, tzinfo=UTC),
    ],
)
def test_a_time_that_is_not_utc_or_out_of_reach_is_refused(moment: datetime) -> None:
    tariff = day_night()
    for ask in (price_at, next_change, in_force, local_date):
        with pytest.raises(ValueError, match=r"is not a UTC time|is not between the years"):
            ask(tariff, moment)
    with pytest.raises(ValueError, match=r"is not a UTC time|is not between the years"):
        Usage(moment, moment, 0)


@pytest.mark.req("P1-S3.3")
def test_the_clock_of_a_board_without_time_can_be_asked() -> None:
    """A charger that has no time yet reads 1970: that is a price, but outside the validity."""
    start = datetime(1970, 1, 1, tzinfo=UTC)
    assert price_at(day_night(), start) == DAY  # 16:00 on Wednesday, 1969-12-31
    usage = Usage(start, start + timedelta(minutes=15), 100)
    assert rate_one(day_night(), usage) == Unrateable(Reason.OUTSIDE_VALIDITY, usage)


# ---- rating ----


@pytest.mark.req("P1-S3.3")
def test_a_line_carries_rate_exact_amount_and_cents() -> None:
    usages = [Usage(EIGHT + i * timedelta(minutes=15), EIGHT + (i + 1) * timedelta(minutes=15), 50) for i in range(2)]
    lines, total = rate(day_night(), usages)
    assert lines == (
        Line(usages[0], "day", 300_000, 15_000_000, 2),  # 1.5 cents
        Line(usages[1], "day", 300_000, 15_000_000, 1),
    )
    assert total == 30_000_000


@pytest.mark.req("P1-S3.3")
def test_a_day_of_20_wh_a_minute_is_490_cents_not_0() -> None:
    """The example of STYLE 4.10."""
    minute = timedelta(minutes=1)
    lines, total = rate(flat_test(), [Usage(EIGHT + i * minute, EIGHT + (i + 1) * minute, 20) for i in range(1440)])
    assert sum(line.amount_cents for line in lines if isinstance(line, Line)) == 490 == cents(total)


@pytest.mark.req("P1-S3.3")
def test_an_interval_over_a_change_is_not_guessed() -> None:
    over = Usage(EIGHT - timedelta(minutes=1), EIGHT + timedelta(seconds=1), 100)
    until = Usage(EIGHT - timedelta(minutes=1), EIGHT, 100)
    after = Usage(EIGHT, EIGHT + timedelta(minutes=1), 100)
    lines, total = rate(day_night(), [until, over, after])
    assert lines[1] == Unrateable(Reason.PRICE_CHANGE_INSIDE, over)
    assert total == 100 * 100_000 + 100 * 300_000


@pytest.mark.req("P1-S3.3")
@pytest.mark.parametrize(
    ("start", "end", "rated"),
    [
        (datetime(2025, 6, 1, 7), datetime(2025, 6, 1, 8), True),  # the first local hour
        (datetime(2025, 6, 1, 6, 59, 59), datetime(2025, 6, 1, 8), False),
        (datetime(2026, 1, 1, 7), datetime(2026, 1, 1, 8), True),  # the last local hour
        (datetime(2026, 1, 1, 7), datetime(2026, 1, 1, 8, 0, 1), False),
        (datetime(2026, 1, 1, 8), datetime(2026, 1, 1, 8), False),
        (datetime(2025, 6, 1, 7), datetime(2025, 6, 1, 7), True),
    ],
)
def test_validity_ends_at_local_midnight(start: datetime, end: datetime, rated: bool) -> None:
    usage = Usage(start.replace(tzinfo=UTC), end.replace(tzinfo=UTC), 0)
    assert (rate_one(day_night(), usage) != Unrateable(Reason.OUTSIDE_VALIDITY, usage)) is rated


@pytest.mark.req("P1-S3.3")
@pytest.mark.parametrize(
    ("start", "end", "energy_wh"),
    [
        (EIGHT, EIGHT - timedelta(seconds=1), 0),
        (EIGHT, EIGHT, 1),
        (EIGHT, EIGHT + timedelta(minutes=1), -1),
        (EIGHT, EIGHT + timedelta(minutes=1), 10**12),
        (EIGHT, EIGHT + timedelta(microseconds=1), 1),
    ],
)
def test_usage_that_cannot_be_is_refused(start: datetime, end: datetime, energy_wh: int) -> None:
    with pytest.raises(ValueError, match="interval"):
        Usage(start, end, energy_wh)


@pytest.mark.req("P1-S3.3")
@pytest.mark.parametrize(
    ("nano_usd", "expected"),
    [(0, 0), (4_999_999, 0), (5_000_000, 1), (15_000_000, 2), (-4_999_999, 0), (-5_000_000, -1), (-133_000_000, -13)],
)
def test_half_a_cent_goes_away_from_zero(nano_usd: int, expected: int) -> None:
    assert cents(nano_usd) == expected


@pytest.mark.req("P1-S1.3")
def test_daily_amounts_are_named() -> None:
    tariff = day_night()
    assert daily_fixed_micro_usd(tariff) == (DailyComponent("basic-charge", 516_000),)
    assert local_date(tariff, datetime(2025, 7, 16, 6, 59, tzinfo=UTC)) == date(2025, 7, 15)


# ---- hostile documents ----


def changed(*path: str | int, value: object) -> dict[str, Any]:
    document = copy.deepcopy(DAY_NIGHT)
    inner: Any = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return document


@pytest.mark.req("P1-S3.3")
@pytest.mark.parametrize(
    "document",
    [
        DAY_NIGHT | {"surprise": 1},
        DAY_NIGHT | {"currency": "EUR"},
        DAY_NIGHT | {"code": "../etc"},
        DAY_NIGHT | {"effective_from": "2025-06-01T00:00"},
        DAY_NIGHT | {"effective_from": date(2025, 6, 1)},
        DAY_NIGHT | {"effective_from": "٢٠٢٥-06-01"},
        DAY_NIGHT | {"effective_from": "0001-01-01"},
        DAY_NIGHT | {"periods": []},
        DAY_NIGHT | {"seasons": []},
        DAY_NIGHT | {"holidays": ["2025-07-04"] * 401},
        DAY_NIGHT | {"timezone": "../../etc/passwd"},
        changed("periods", 0, "micro_usd_per_kwh", value=0.3),
        changed("periods", 0, "micro_usd_per_kwh", value="300000"),
        changed("periods", 0, "micro_usd_per_kwh", value=True),
        changed("periods", 0, "micro_usd_per_kwh", value=-1),
        changed("periods", 0, "micro_usd_per_kwh", value=10_000_001),
        changed("seasons", 0, "months", value=[0]),
        changed("seasons", 0, "hours", 0, "to_hour", value=25),
        changed("seasons", 0, "hours", 0, "from_hour", value=-1),
        changed("seasons", 0, "hours", 0, "day_types", value=["holiday"]),
        changed("daily_fixed", 0, "micro_usd_per_day", value=10**10),
    ],
)
def test_a_document_of_the_wrong_form_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TariffDocument.model_validate(document)


@pytest.mark.req("P1-S3.3")
@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (DAY_NIGHT | {"timezone": "America"}, "not a known time zone"),
        (DAY_NIGHT | {"timezone": "Mars/Olympus"}, "not a known time zone"),
        (DAY_NIGHT | {"timezone": "/etc/localtime"}, "not a known time zone"),
        (DAY_NIGHT | {"effective_from": "2025-06-31"}, "2025-06-31 is not a date"),
        (DAY_NIGHT | {"effective_to": "2025-06-01"}, "must be after effective_from"),
        (DAY_NIGHT | {"holidays": ["2025-07-04", "2025-07-04"]}, "holiday 2025-07-04 is listed twice"),
        (DAY_NIGHT | {"holidays": ["2025-02-29"]}, "2025-02-29 is not a date"),
        (DAY_NIGHT | {"daily_fixed": DAY_NIGHT["daily_fixed"] * 2}, "daily_fixed basic-charge is listed twice"),
        (DAY_NIGHT | {"periods": DAY_NIGHT["periods"] * 2}, "period day is listed twice"),
        (DAY_NIGHT | {"seasons": [SEASON, SEASON]}, "season year is listed twice"),
        (DAY_NIGHT | {"seasons": [SEASON, SEASON | {"name": "again", "months": [7]}]}, "month 7 is listed twice"),
        (changed("seasons", 0, "months", value=[1, 1]), "month 1 is listed twice"),
        (changed("seasons", 0, "months", value=list(range(1, 12))), "no season covers month 12"),
        (changed("seasons", 0, "hours", value=HOURS[:2]), "season year, weekend: hour 8 is not covered"),
        (changed("seasons", 0, "hours", value=[*HOURS, HOURS[0]]), "season year, weekday: hour 0 is covered twice"),
        (changed("seasons", 0, "hours", 0, "day_types", value=["weekday", "weekday"]), "weekend: hour 0 is not"),
        (changed("seasons", 0, "hours", 1, "from_hour", value=9), "season year, weekday: hour 8 is not covered"),
        (changed("seasons", 0, "hours", 2, "to_hour", value=23), "season year, weekend: hour 23 is not covered"),
        (changed("seasons", 0, "hours", 1, "to_hour", value=8), "hours 8 to 8 must rise"),
        (changed("seasons", 0, "hours", 0, "period", value="dawn"), "period dawn is not among"),
        (DAY_NIGHT | {"periods": [*DAY_NIGHT["periods"], {"name": "x", "micro_usd_per_kwh": 1}]}, "period x is never"),
    ],
)
def test_a_document_that_does_not_add_up_is_refused_with_a_sentence(document: dict[str, Any], sentence: str) -> None:
    wire = TariffDocument.model_validate(document)
    with pytest.raises(ValueError, match=sentence) as refused:
        parse(wire)
    assert str(refused.value).startswith("tariff DAY-NIGHT-TEST 2025-06-01: ")
