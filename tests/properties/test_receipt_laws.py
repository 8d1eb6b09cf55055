"""Laws of the charger's receipt: to the cent the sum of its lines, in every zone; pending is what is in doubt."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.clock import Now
from agent.core.intervals import IntervalClosed, IntervalRecorder
from agent.core.receipt import Receipt, statement
from esci.messages import INTERVALS_S, TariffRef
from esci.reasons import Reason
from esci.records import Interval, doubt
from esci.tariff import Tariff, TariffDocument, next_change, parse
from esci.units import format_utc, parse_utc

ZONES = ["America/Los_Angeles", "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe"]
DAYS = {  # local midnight of days of 23, 25, 23.5, 24.5 and 24 hours
    "America/Los_Angeles": [(2025, 3, 9), (2025, 11, 2), (2025, 7, 4)],
    "Europe/Berlin": [(2025, 3, 30), (2025, 10, 26), (2025, 7, 4)],
    "Asia/Kolkata": [(2025, 3, 9)],
    "Australia/Lord_Howe": [(2025, 4, 6), (2025, 10, 5)],
}
REF = TariffRef(code="TOU", version="v1")
FLAGS = ["gap", "jump", "restart", "clock-stepped", "clock-unsynced", "meter-reset", "energy-while-open"]


def tou(zone: str, version: str = "v1", raise_micro: int = 0) -> Tariff:
    """Prices that change at 1, 2, 3, 6 and 21 o'clock, where clocks shift too."""
    hours = [(0, 1, "night"), (1, 2, "owl"), (2, 3, "night"), (3, 6, "dawn"), (6, 21, "day"), (21, 24, "night")]
    prices = {"night": 171_234, "owl": 99_999, "dawn": 250_001, "day": 583_333}
    return parse(TariffDocument.model_validate({
        "code": "TOU", "version": version, "title": "TOU", "currency": "USD", "timezone": zone,
        "effective_from": "2024-01-01",
        "periods": [{"name": name, "micro_usd_per_kwh": price + raise_micro} for name, price in prices.items()],
        "seasons": [{"name": "year", "months": list(range(1, 13)), "hours": [
            {"day_types": ["weekday", "weekend"], "from_hour": first, "to_hour": last, "period": name}
            for first, last, name in hours]}]}))


def local_price(zone: str, raise_micro: int, moment: datetime) -> int:
    """What a person reads off the wall clock."""
    hour = moment.astimezone(ZoneInfo(zone)).hour
    name = "owl" if hour == 1 else "dawn" if 3 <= hour < 6 else "day" if 6 <= hour < 21 else "night"
    return {"night": 171_234, "owl": 99_999, "dawn": 250_001, "day": 583_333}[name] + raise_micro


def body(
    start: datetime, end: datetime, energy_wh: int, ref: TariffRef | None = REF, flags: tuple[str, ...] = ()
) -> Interval:
    return Interval.model_validate({
        "session": "a" * 32, "binding": "", "pev": "", "premises": "home-1", "tariff": ref, "rate_reason": None,
        "start": format_utc(start), "end": format_utc(end), "register_start_wh": 5, "register_end_wh": 5 + energy_wh,
        "energy_wh": energy_wh, "flags": list(flags)})


def metered(tariff: Tariff, start: datetime, hours: int, interval_s: int, power_w: int) -> list[Interval]:
    """What the recorder makes of steady power."""
    recorder = IntervalRecorder(interval_s, 30, 9_600, lambda moment: next_change(tariff, moment))
    found: list[Interval] = []
    for second in range(0, hours * 3600 + 1, 20):
        register_wh = 1_000 + power_w * second // 3600
        for one in recorder.on_reading(register_wh, Now(second * 1000, start + timedelta(seconds=second), synced=True)):
            assert isinstance(one, IntervalClosed) and one.flags == ()
            found.append(body(one.start, one.end, one.register_end_wh - one.register_start_wh))
    return found


@pytest.mark.req("P1-B4", "P1-S3.3")
@pytest.mark.parametrize("interval_s", INTERVALS_S)
@pytest.mark.parametrize(("zone", "day"), [(zone, day) for zone in ZONES for day in DAYS[zone]])
def test_the_receipt_of_a_short_or_long_day_is_its_lines_to_the_cent(
    zone: str, day: tuple[int, int, int], interval_s: int
) -> None:
    tariff = tou(zone)
    start = datetime(*day, tzinfo=ZoneInfo(zone)).astimezone(UTC) + timedelta(seconds=7)
    intervals = metered(tariff, start, 26, interval_s, 3_337)
    receipt = statement(intervals, lambda ref: tariff)
    lines = [line for _, line in receipt.lines]
    assert all(line is not None for line in lines), "no interval straddles a change of price"
    exact = sum(one.energy_wh * local_price(zone, 0, parse_utc(one.start)) for one in intervals)
    assert abs(receipt.total.total_cents * 10_000_000 - exact) <= 5_000_000
    assert sum(line.amount_cents for line in lines if line) == receipt.total.total_cents
    assert receipt.total.pending_wh == 0 and receipt.total.energy_wh == sum(one.energy_wh for one in intervals)
    for before, after in pairwise(intervals):
        assert before.end == after.start
    for one in intervals:
        inside = parse_utc(one.end) - timedelta(seconds=1)
        assert local_price(zone, 0, parse_utc(one.start)) == local_price(zone, 0, inside)


@pytest.mark.req("P1-B4", "P1-S3.2")
@given(st.lists(st.tuples(st.integers(0, 9_000), st.lists(st.sampled_from(FLAGS), unique=True, max_size=3),
                          st.sampled_from(["v1", "v2", "v3", None])), max_size=60),
       st.sampled_from(ZONES))
def test_pending_is_exactly_what_is_in_doubt_or_on_a_tariff_that_is_not_here(
    parts: list[tuple[int, list[str], str | None]], zone: str
) -> None:
    held = {"v1": tou(zone), "v2": tou(zone, "v2", 12_345)}
    start = datetime(2025, 7, 16, 3, tzinfo=UTC)
    intervals = [
        body(start + timedelta(minutes=15 * at), start + timedelta(minutes=15 * at + 15), energy_wh,
             None if version is None else TariffRef(code="TOU", version=version), tuple(flags))
        for at, (energy_wh, flags, version) in enumerate(parts)]
    receipt = Receipt()
    for one in intervals:
        line = receipt.add(one, lambda ref: held.get(ref.version))
        missing = one.tariff is None or one.tariff.version not in held
        assert (line is None) == (doubt(one) is not None or missing)
    rated = [one for one in intervals if doubt(one) is None and one.tariff and one.tariff.version in held]
    exact = sum(one.energy_wh * local_price(zone, 12_345 if one.tariff and one.tariff.version == "v2" else 0,
                                            parse_utc(one.start)) for one in rated)
    assert receipt.running_nano_usd == exact
    assert receipt.energy_wh == sum(one.energy_wh for one in intervals)
    assert receipt.pending_wh == receipt.energy_wh - sum(one.energy_wh for one in rated)


@pytest.mark.req("P1-N1", "P1-S3.2")
@given(st.integers(0, 9_000), st.lists(st.sampled_from(FLAGS), unique=True), st.booleans(), st.integers(-1, 1))
def test_doubt_names_the_flags_that_a_person_must_look_at(
    energy_wh: int, flags: list[str], has_tariff: bool, seconds: int
) -> None:
    start = datetime(2025, 7, 16, 3, tzinfo=UTC)
    found = doubt(body(start, start + timedelta(seconds=seconds), energy_wh, REF if has_tariff else None, tuple(flags)))
    in_question = bool({"clock-unsynced", "jump", "gap"} & set(flags)) or not has_tariff or seconds <= 0
    assert (found is not None) == (energy_wh > 0 and in_question)
    if energy_wh and seconds > 0 and flags == ["gap"]:
        assert found is Reason.METERING_GAP
