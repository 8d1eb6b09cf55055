"""Laws of units, of the VIN's check digit and of the clock's quality."""

import string
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agent.core.clock import EARLIEST, STEP_S, ClockWatch, Now
from esci.ids import check_vin, vin_check_digit
from esci.units import dollars, energy_wh, format_utc, kwh, parse_utc

LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789"
SAME = ("AJ1", "BKS2", "CLT3", "DMU4", "ENV5", "FW6", "GPX7", "HY8", "RZ9", "0")  # 49 CFR 565.15, table of values
moments = st.integers(-2_208_988_800, 4_102_444_800).map(
    lambda at: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at))
WRITTEN = r"\A[0-9 ]{4}-[0-9 ]{2}-[0-9 ]{2}T[0-9 ]{2}:[0-9 ]{2}:[0-9 ]{2}Z\Z"
vins = st.text(LETTERS, min_size=17, max_size=17).map(lambda text: text[:8] + vin_check_digit(text) + text[9:])


@pytest.mark.req("P1-N1")
@given(moments, st.integers(-14 * 60, 14 * 60))
def test_a_time_survives_writing_and_is_utc_whatever_its_zone(moment: datetime, offset_min: int) -> None:
    text = format_utc(moment)
    assert parse_utc(text) == moment and len(text) == 20
    assert format_utc(moment.astimezone(timezone(timedelta(minutes=offset_min)))) == text


@pytest.mark.req("P1-N1")
@given(st.one_of(st.text(max_size=25), st.from_regex(WRITTEN)))
def test_what_parses_is_what_would_be_written(text: str) -> None:
    try:
        moment = parse_utc(text)
    except ValueError:
        return
    assume(" " not in text)  # a day such as ` 6` is taken too; on the wire UtcText refuses it first
    assert format_utc(moment) == text or moment.year < 1000


@pytest.mark.req("P1-N1")
def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        format_utc(datetime(2025, 7, 16))


@given(st.floats(0, 9e7))
def test_watt_hours_are_the_nearest(value: float) -> None:
    assert abs(energy_wh(value) - value * 1000) <= 0.5 + value * 1e-9


@pytest.mark.parametrize("value", [-0.001, 1e8, float("nan"), float("inf"), -float("inf")])
def test_nonsense_is_no_energy(value: float) -> None:
    with pytest.raises(ValueError, match="not a register value"):
        energy_wh(value)


@given(st.integers(-(10**12), 10**12), st.integers(0, 10**12))
def test_amounts_read_back(amount: int, energy: int) -> None:
    whole, part = dollars(amount).lstrip("-").split(".")
    assert int(whole) * 100 + int(part) == abs(amount) and len(part) == 2
    assert dollars(amount).startswith("-") == (amount < 0)
    whole, part = kwh(energy).split(".")
    assert int(whole) * 1000 + int(part) == energy and len(part) == 3


@pytest.mark.req("P1-S1.1")
@given(vins, st.integers(0, 16), st.sampled_from(LETTERS))
def test_every_slip_is_found_but_those_of_equal_value(vin: str, at: int, letter: str) -> None:
    """ISO 3779 cannot tell letters of one value (A J 1, B K S 2, ...): those slips alone stay unseen."""
    assume(letter != vin[at])
    wrong = vin[:at] + letter + vin[at + 1:]
    is_equal = at != 8 and any(letter in group and vin[at] in group for group in SAME)
    if is_equal:
        assert check_vin(wrong) == wrong
    else:
        with pytest.raises(ValueError, match="position 9 "):
            check_vin(wrong)


@pytest.mark.req("P1-S1.1")
@given(vins, st.integers(0, 15))
def test_neighbours_that_change_places_are_found_when_the_sum_tells_them(vin: str, at: int) -> None:
    swapped = vin[:at] + vin[at + 1] + vin[at] + vin[at + 2:]
    if vin_check_digit(swapped) != swapped[8]:
        with pytest.raises(ValueError, match="position 9 "):
            check_vin(swapped)
    else:
        assert check_vin(swapped) == swapped


@pytest.mark.req("P1-S1.1")
@given(vins, st.integers(0, 16), st.sampled_from("IOQ!- ." + "äß٣"))
def test_a_letter_that_no_vin_has_is_named_with_its_position(vin: str, at: int, letter: str) -> None:
    wrong = vin[:at] + letter + vin[at + 1:]
    if len(wrong.strip().upper()) == 17:
        with pytest.raises(ValueError, match=f"position {at + 1} "):
            check_vin(wrong)


@pytest.mark.req("P1-S1.1")
@given(vins)
def test_case_and_blanks_around_do_not_matter(vin: str) -> None:
    assert check_vin(f"  {vin.lower()} ") == vin


@pytest.mark.req("P1-S1.1")
@given(st.text(string.printable, max_size=30))
def test_any_text_is_a_vin_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert len(check_vin(text)) == 17


@pytest.mark.req("P1-N1")
@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(-10**5, 10**5)), max_size=20))
def test_the_watch_reports_each_step_of_the_clock_once(story: list[tuple[int, int]]) -> None:
    watch, mono_ms, shift_s = ClockWatch(), 0, 0
    start = datetime(2025, 7, 16, tzinfo=UTC)
    assert watch.step_s(Now(0, start, synced=True)) == 0
    for passed_ms, step_s in story:
        mono_ms, shift_s = mono_ms + passed_ms, shift_s + step_s
        utc = (start + timedelta(milliseconds=mono_ms, seconds=shift_s)).replace(microsecond=0)
        found = watch.step_s(Now(mono_ms, utc, synced=True))
        assert abs(found - step_s) <= 1 if abs(step_s) > STEP_S + 1 else abs(found) <= STEP_S + 2
        assert watch.step_s(Now(mono_ms, utc, synced=True)) == 0


@pytest.mark.req("P1-N1")
@given(moments, st.booleans())
def test_a_date_before_the_software_was_made_is_never_synced(moment: datetime, synced: bool) -> None:
    assert Now(0, moment, synced).quality == ("synced" if synced and moment >= EARLIEST else "unsynced")
