"""The chain of records: nothing can be taken out, put in or changed without a trace (P1-S3.1, P1-N1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esci.messages import RecordItem
from esci.records import BODIES, ORIGIN, Interval, digest

AT = "2025-07-16T03:20:00Z"
items = st.builds(
    lambda kind, text, number, clock: RecordItem.model_validate(
        {"kind": kind, "at": AT, "clock": clock, "body": {"text": text, "number": number}}),
    st.sampled_from(sorted(BODIES)), st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.integers(0, 2**53 - 1), st.sampled_from(["synced", "unsynced"]))


def chain(epoch: int, records: list[RecordItem], first_seq: int = 1, prev: str = ORIGIN) -> list[str]:
    found = []
    for seq, item in enumerate(records, first_seq):
        prev = digest(prev, epoch, seq, item)
        found.append(prev)
    return found


@pytest.mark.req("P1-S3.1")
@given(st.lists(items, min_size=2, max_size=12), items, st.data())
def test_any_change_shows_in_every_digest_from_there_on(
    records: list[RecordItem], other: RecordItem, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(records) - 1))
    before = chain(7, records)
    if records[at] != other:
        changed = chain(7, [*records[:at], other, *records[at + 1:]])
        assert changed[:at] == before[:at]
        assert not set(changed[at:]) & set(before[at:])
    shorter = [*records[:at], *records[at + 1:]]
    assert chain(7, shorter)[-1:] != before[-1:], "what was taken out is missed"
    assert not set(chain(8, records)) & set(before), "another epoch is another chain"


@pytest.mark.req("P1-S3.1")
@given(st.lists(items, min_size=1, max_size=12), st.data())
def test_a_chain_goes_on_from_any_of_its_digests(records: list[RecordItem], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(records)))
    first = chain(7, records[:cut])
    assert first + chain(7, records[cut:], cut + 1, first[-1] if first else ORIGIN) == chain(7, records)


@pytest.mark.req("P1-S3.1")
@pytest.mark.parametrize("wrong", [
    {"energy_wh": -1}, {"energy_wh": 1.0}, {"energy_wh": "1"}, {"energy_wh": True}, {"start": "2025-07-16T03:20:00+00"},
    {"pev": "IOQ"}, {"flags": ["nonsense"]}, {"extra": 1}, {"session": "A" * 32}, {"register_end_wh": 2**53}])
def test_an_interval_of_another_form_is_refused(wrong: dict[str, object]) -> None:
    good: dict[str, object] = {
        "session": "", "binding": "", "pev": "", "premises": "home-1", "tariff": None, "rate_reason": None, "start": AT,
        "end": AT, "register_start_wh": 0, "register_end_wh": 0, "energy_wh": 0, "flags": []}
    assert Interval.model_validate(good)
    with pytest.raises(ValueError):
        Interval.model_validate(good | wrong)
