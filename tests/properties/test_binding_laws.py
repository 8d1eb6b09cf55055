"""Laws of the binding machine: every pair has one meaning, and no path leads to power without an outcome."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.binding import IMPOSSIBLE, LATE, NEXT, WAITING, Binding, Happened, State, step
from esci.reasons import Reason

PAIRS = set(product(State, Happened))
events = st.lists(st.sampled_from(Happened), max_size=40)


@pytest.mark.req("P1-S1.6", "P1-S2.1", "P1-F10")
def test_every_pair_is_next_late_or_impossible() -> None:
    assert set(NEXT) | LATE | IMPOSSIBLE == PAIRS
    assert len(NEXT) + len(LATE) + len(IMPOSSIBLE) == len(PAIRS), "no pair has two meanings"


@pytest.mark.req("P1-S1.6")
@pytest.mark.parametrize(("state", "event"), sorted(PAIRS, key=str))
def test_a_step_does_what_the_table_says(state: State, event: Happened) -> None:
    if (state, event) in IMPOSSIBLE:
        with pytest.raises(KeyError):
            step(state, event)
        return
    binding = Binding(state=state)
    assert binding.on(event) is ((state, event) not in LATE)
    assert binding.state is (state if (state, event) in LATE else NEXT[state, event])


@pytest.mark.req("P1-S2.7", "P1-N2", "P1-N3")
@given(events)
def test_bound_and_unbound_are_reached_only_through_an_answer_or_the_end_of_the_wait(path: list[Happened]) -> None:
    state, seen = State.IDLE, set[Happened]()
    for event in path:
        if (state, event) in IMPOSSIBLE:
            continue
        before, state = state, step(state, event)
        seen = set() if state is State.IDLE else seen | {event}
        if state is State.BOUND and before is not State.BOUND:
            assert Happened.IDENTIFIED in seen
            assert Happened.CONFIRMED_AGAIN in seen or {Happened.CONFIRMED_FIRST, Happened.PEV_SET} <= seen
        if state is State.UNBOUND and before is not State.UNBOUND:
            assert event in (Happened.REFUSED, Happened.WAIT_OVER)


@pytest.mark.req("P1-F10")
@pytest.mark.parametrize("state", sorted(WAITING, key=str))
def test_every_wait_ends_by_itself_and_by_unplugging(state: State) -> None:
    assert step(state, Happened.WAIT_OVER) is State.UNBOUND
    assert step(state, Happened.UNPLUGGED) is State.IDLE


@pytest.mark.req("P1-F10")
@pytest.mark.parametrize(("state", "reason"), [
    (State.AWAITING_PEV, Reason.NO_PEV_LINK), (State.VALIDATING, Reason.UTILITY_UNREACHABLE),
    (State.CONFIRMING, Reason.NO_PEV_LINK)])
def test_the_reason_names_who_kept_us_waiting(state: State, reason: Reason) -> None:
    assert Binding(state=state).reason_for_wait_over() is reason
