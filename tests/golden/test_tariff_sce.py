"""The packaged SCE plans against the utility's filing and two tables that others made from it (shared data)."""

import csv
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from cloud.rating.plans import load_plans
from esci.tariff import Tariff, Unrateable, Usage, parse, price_at, rate

PLACE = ZoneInfo("America/Los_Angeles")
TABLE = "data/tariffs/sce_tou_d_prime_2025/2025_SCE_TOU_D_PRIME_Cost_Dataframe.csv"
FILING = "data/tariffs/sce_tou_d_prime_2025/TOU-D_2025-06-01.txt"
PERIOD_COLUMNS = {
    "Summer_On_Peak_Binary": "summer-on-peak",
    "Summer_Mid_Peak_Binary": "summer-mid-peak",
    "Summer_Off_Peak_Binary": "summer-off-peak",
    "Winter_Mid_Peak_Binary": "winter-mid-peak",
    "Winter_Off_Peak_Binary": "winter-off-peak",
    "Winter_Super_Off_Peak_Binary": "winter-super-off-peak",
}


def plan(code: str, version: str) -> Tariff:
    return parse(load_plans()[code, version])


def micro(usd: str) -> int:
    value = Decimal(usd) * 1_000_000
    assert value == int(value)
    return int(value)


def table_rows(shared: Path) -> list[tuple[datetime, dict[str, str]]]:
    """(UTC start, row) of each hour: the table runs through the year hour by hour, so its local times need no guess."""
    with (shared / TABLE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first = datetime(2025, 1, 1, tzinfo=PLACE).astimezone(UTC)
    return [(first + timedelta(hours=index), row) for index, row in enumerate(rows)]


@pytest.mark.req("P1-S3.3", "P1-S1.3")
def test_prime_2025_agrees_with_every_hour_of_the_table(shared: Path) -> None:
    tariff = plan("SCE-TOU-D-PRIME", "2025-06-01")
    rows = table_rows(shared)
    assert len(rows) == 8760
    for utc, row in rows:
        assert utc.astimezone(PLACE).strftime("%Y-%m-%d %H:%M:%S") == row["Date_Time"]
        [period] = [name for column, name in PERIOD_COLUMNS.items() if row[column] == "1"]
        price = price_at(tariff, utc)
        assert (price.period, price.micro_usd_per_kwh) == (period, micro(row["Retail_Rate"])), row["Date_Time"]


@pytest.mark.req("P1-S3.3")
def test_the_table_s_daylight_saving_days_have_23_and_25_hours(shared: Path) -> None:
    hours = Counter(row["Date_Time"][:10] for _, row in table_rows(shared))
    assert {day: count for day, count in hours.items() if count != 24} == {"2025-03-09": 23, "2025-11-02": 25}


@pytest.mark.req("P1-S3.3")
def test_half_a_year_of_one_kwh_an_hour_costs_what_the_table_says(shared: Path) -> None:
    tariff = plan("SCE-TOU-D-PRIME", "2025-06-01")
    rows = [(utc, row) for utc, row in table_rows(shared) if row["Date_Time"] >= "2025-06-01"]
    lines, total = rate(tariff, [Usage(utc, utc + timedelta(hours=1), 1000) for utc, _ in rows])
    assert total == sum(micro(row["Retail_Rate"]) for _, row in rows) * 1000
    assert not any(isinstance(line, Unrateable) for line in lines)


@pytest.mark.req("P1-S1.3")
@pytest.mark.parametrize(
    ("code", "file"), [("SCE-TOU-D-PRIME", "sce-tou-d-prime.json"), ("SCE-TOU-D-4-9PM", "sce-tou-d-4-9pm.json")]
)
def test_plans_of_2026_agree_with_the_ratebook_in_every_hour(shared: Path, code: str, file: str) -> None:
    tariff = plan(code, "2026-06-01")
    book: dict[str, Any] = json.loads((shared / "data/tariffs/ratebook_urdb" / file).read_text("utf-8"))
    tiers = [period["tiers"][0] for period in book["energy"]["periods"]]
    prices = [micro(tier["rate"]) + micro(tier["adj"]) for tier in tiers]
    utc = datetime(2026, 6, 1, tzinfo=PLACE).astimezone(UTC)
    for _ in range(366 * 24):
        local = utc.astimezone(PLACE)
        rest = local.weekday() >= 5 or local.date() in tariff.holidays
        expected = prices[book["schedule"]["weekend" if rest else "weekday"][local.month - 1][local.hour]]
        assert price_at(tariff, utc).micro_usd_per_kwh == expected, local
        utc += timedelta(hours=1)
    assert tariff.effective_from.isoformat() == book["effective_range"]["start"]
    assert [part.micro_usd_per_day for part in tariff.daily_fixed] == [micro(book["fixed_charges"][0]["amount"])]


@pytest.mark.req("P1-S1.3")
@pytest.mark.parametrize(
    ("code", "heading"),
    [
        ("SCE-TOU-D-4-9PM", "Option 4-9 PM / Option 4-9 PM-CPP"),
        ("SCE-TOU-D-PRIME", "Option PRIME / Option PRIME-CPP"),
    ],
)
def test_plans_of_2025_are_the_sums_of_the_filing(shared: Path, code: str, heading: str) -> None:
    """The first table under the heading: six rows of delivery, generation, DWREC; then the two charges on each kWh."""
    tariff = plan(code, "2025-06-01")
    lines = [line.split(" (")[0].strip() for line in (shared / FILING).read_text("utf-8").splitlines()]
    start = lines.index("Total1", lines.index(heading))
    table = lines[start : lines.index("California Climate Credit4", start)]
    charges = table.index("Fixed Recovery Charge - $/kWh")
    numbers = [line for line in table[:charges] if line.startswith("0.")]
    added = micro(table[charges + 1]) + micro(table[table.index("MCAM Charge5 - $/kWh") + 1])
    expected = [micro(numbers[row]) + micro(numbers[row + 1]) + added for row in range(0, 18, 3)]
    assert [price.micro_usd_per_kwh for price in tariff.periods] == expected
    basic = next(part for part in tariff.daily_fixed if part.name == "basic-charge")
    place = "Single-Family Residence" if code == "SCE-TOU-D-4-9PM" else "Basic Charge - $/Meter/Day"
    assert basic.micro_usd_per_day == micro(table[table.index(place) + 1])


@pytest.mark.req("P1-S1.3")
def test_holidays_of_2025_are_the_listed_ones(shared: Path) -> None:
    listed = (shared / "data/tariffs/sce_tou_d_prime_2025/SCE_Holidays_2025.csv").read_text("utf-8").split()[-1]
    ours = plan("SCE-TOU-D-PRIME", "2025-06-01").holidays
    assert sorted(day.isoformat() for day in ours if day.year == 2025) == sorted(listed.split(","))
