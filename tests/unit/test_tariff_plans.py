"""The packaged plans: they load, their holidays follow the filing's rule, and the version in force is chosen."""

import tomllib
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files

import pytest

from cloud.rating.core import choose
from cloud.rating.plans import load_plans, read_plans
from esci.seal import canonical
from esci.tariff import DailyComponent, Price, TariffDocument, daily_fixed_micro_usd, parse, price_at

PRIME, HOME = "SCE-TOU-D-PRIME", "SCE-TOU-D-4-9PM"
EVENING = datetime(2025, 7, 16, 3, 20, tzinfo=UTC)  # 20:20 on Tuesday, 2025-07-15, in Los Angeles


def text_of(name: str) -> str:
    return (files("cloud.rating") / "plans" / name).read_text("utf-8")


def holidays_by_the_rule(year: int) -> set[date]:
    """Schedule TOU-D, Special Condition 1: a Sunday moves to Monday, a Saturday does not move."""

    def nth_monday_or_thursday(month: int, weekday: int, nth: int) -> date:
        days = [date(year, month, day) for day in range(1, 31 if month != 2 else 29)]
        return [day for day in days if day.weekday() == weekday][nth - 1]

    memorial = max(date(year, 5, day) for day in range(25, 32) if date(year, 5, day).weekday() == 0)
    fixed = [date(year, 1, 1), date(year, 7, 4), date(year, 11, 11), date(year, 12, 25)]
    floating = [
        nth_monday_or_thursday(2, 0, 3),
        memorial,
        nth_monday_or_thursday(9, 0, 1),
        nth_monday_or_thursday(11, 3, 4),
    ]
    return {day + timedelta(days=1) if day.weekday() == 6 else day for day in fixed + floating}


@pytest.mark.req("P1-S1.3")
def test_the_packaged_plans_are_these() -> None:
    assert set(load_plans()) == {(code, version) for code in (PRIME, HOME) for version in ("2025-06-01", "2026-06-01")}


@pytest.mark.req("P1-S1.3")
@pytest.mark.parametrize("key", sorted(load_plans()))
def test_holidays_follow_the_filing_s_rule(key: tuple[str, str]) -> None:
    expected = set().union(*(holidays_by_the_rule(year) for year in (2025, 2026, 2027)))
    tariff = parse(load_plans()[key])
    assert tariff.holidays == expected
    assert len(expected) == 24
    assert tariff.effective_to is not None
    assert tariff.effective_to.year - 1 <= max(tariff.holidays).year, "in force beyond its own list of holidays"


@pytest.mark.req("P1-S1.3")
def test_an_evening_in_july_2025_has_its_price_on_both_plans() -> None:
    plans = load_plans()
    day = date(2025, 7, 15)
    prices = {}
    for code in (PRIME, HOME):
        document = choose(plans, code, day)
        assert document is not None
        prices[code] = price_at(parse(document), EVENING)
    assert prices == {PRIME: Price("summer-on-peak", 563_680), HOME: Price("summer-on-peak", 585_220)}


@pytest.mark.req("P1-S1.3")
def test_prime_has_its_daily_charge_and_submeter_credit() -> None:
    assert daily_fixed_micro_usd(parse(load_plans()[PRIME, "2025-06-01"])) == (
        DailyComponent("basic-charge", 516_000),
        DailyComponent("ev-submeter-credit", -133_000),
    )


@pytest.mark.req("P1-S1.3")
@pytest.mark.parametrize(
    ("day", "version"),
    [
        (date(2025, 5, 31), None),
        (date(2025, 6, 1), "2025-06-01"),
        (date(2025, 12, 31), "2025-06-01"),
        (date(2026, 1, 1), None),
        (date(2026, 6, 1), "2026-06-01"),
        (date(2027, 12, 31), "2026-06-01"),
        (date(2028, 1, 1), None),
    ],
)
def test_the_version_in_force_is_chosen_or_none(day: date, version: str | None) -> None:
    chosen = choose(load_plans(), PRIME, day)
    assert (chosen.version if chosen else None) == version
    assert choose(load_plans(), "NO-SUCH-PLAN", day) is None


@pytest.mark.req("P1-S1.3")
def test_a_later_filing_supersedes_an_open_one() -> None:
    plan = load_plans()[PRIME, "2025-06-01"]
    older = plan.model_copy(update={"effective_to": None})
    newer = plan.model_copy(update={"version": "next", "effective_from": "2025-09-01"})
    plans = {(each.code, each.version): each for each in (newer, older)}
    assert choose(plans, PRIME, date(2025, 8, 31)) == older
    assert choose(plans, PRIME, date(2025, 9, 1)) == newer
    assert choose(plans, PRIME, date(2026, 1, 1)) == older


@pytest.mark.req("P1-S1.3")
@pytest.mark.parametrize("key", sorted(load_plans()))
def test_a_plan_can_be_sealed_and_comes_back_whole(key: tuple[str, str]) -> None:
    document = load_plans()[key]
    assert TariffDocument.model_validate_json(canonical(document.model_dump(mode="json"))) == document


@pytest.mark.req("P1-S1.3")
@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("563680", "0.56368", "micro_usd_per_kwh"),
        ("title", "titel", "titel"),
        ("to_hour = 21", "to_hour = 20", "hour 20 is not covered"),
        ('"USD"', '"USD', "plan x.toml"),
    ],
)
def test_a_bad_plan_is_refused_by_its_file_name(old: str, new: str, sentence: str) -> None:
    text = text_of("sce_tou_d_prime_2025_06_01.toml")
    with pytest.raises(ValueError, match=sentence) as refused:
        read_plans([("x.toml", text.replace(old, new))])
    assert str(refused.value).startswith("plan x.toml: ")


@pytest.mark.req("P1-S1.3")
def test_one_version_in_two_files_is_refused() -> None:
    text = text_of("sce_tou_d_prime_2025_06_01.toml")
    with pytest.raises(ValueError, match="is in another file too"):
        read_plans([("a.toml", text), ("b.toml", text)])


@pytest.mark.req("P1-S1.3")
def test_the_loader_reads_each_file_as_it_is() -> None:
    raw = tomllib.loads(text_of("sce_tou_d_4_9pm_2025_06_01.toml"))
    assert load_plans()[HOME, "2025-06-01"].model_dump() == raw
