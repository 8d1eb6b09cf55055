"""Laws of presence and permission: total tables, and no order to close beside a bar, whatever the board says."""

from datetime import UTC, datetime
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.clock import Now
from agent.core.effects import AskToClose, Effect, OpenContactor
from agent.core.events import BoardFound, BoardIdentity, BoardStatus, MeterRead, MeterReading, Pilot
from agent.core.limits import LEAST_MA, Limit, ruling
from agent.core.pilot import (
    MAY_CLOSE,
    PERMISSION_LATE,
    PERMISSION_NEXT,
    PRESENCE_LATE,
    PRESENCE_NEXT,
    Permission,
    Presence,
    Seen,
    Step,
    next_permission,
    next_presence,
    seen,
)
from agent.core.power import Power
from agent.core.session import Memory, Settings
from esci.reasons import Reason

SETTINGS = Settings("evse-1", "home-1", "1.0", 32_000, 9_600, 30, 20)
statuses = st.builds(BoardStatus, st.sampled_from(Pilot), st.sampled_from([True, False, None]),
                     st.sampled_from([True, False, None]), st.booleans(),
                     st.sampled_from([None, None, "06 ground fault"]), st.integers(0, 80_000))
limits = st.lists(st.builds(Limit, st.text(max_size=3), st.integers(0, 80_000), st.none() | st.integers(0, 100),
                            st.integers(0, 80_000)), min_size=1, max_size=5)


@pytest.mark.req("P1-S1.6", "P1-S2.1")
def test_every_pair_of_presence_is_next_or_late() -> None:
    assert set(PRESENCE_NEXT) | PRESENCE_LATE == set(product(Presence, Seen))
    assert not set(PRESENCE_NEXT) & PRESENCE_LATE


@pytest.mark.req("P1-S2.7")
def test_every_pair_of_permission_is_next_or_late() -> None:
    assert not set(PERMISSION_NEXT) & PERMISSION_LATE
    assert set(product(Permission, Step)) == set(PERMISSION_NEXT) | PERMISSION_LATE


@pytest.mark.req("P1-S2.7")
@pytest.mark.parametrize("state", list(Permission))
def test_a_prohibition_bars_from_every_state(state: Permission) -> None:
    assert next_permission(state, Step.FORBIDDEN) is Permission.BARRED


@pytest.mark.req("P1-S2.7")
@pytest.mark.parametrize("event", [step for step in Step if step is not Step.CLEARED])
def test_only_clearing_ends_a_bar_and_never_straight_to_closing(event: Step) -> None:
    assert next_permission(Permission.BARRED, event) is Permission.BARRED
    assert next_permission(Permission.BARRED, Step.CLEARED) not in MAY_CLOSE


@pytest.mark.req("P1-S1.6")
@given(statuses)
def test_a_closed_contactor_means_a_vehicle(status: BoardStatus) -> None:
    found = seen(status)
    if status.closed:
        assert found is Seen.THERE
    elif status.plugged is None:
        assert found is Seen.BLIND
    for state in Presence:
        after = next_presence(state, found)
        assert after is (state if found is Seen.BLIND else Presence.PRESENT if found is Seen.THERE else Presence.EMPTY)


def _now(ms: int) -> Now:
    return Now(ms, datetime(2025, 7, 16, tzinfo=UTC), synced=True)


@pytest.mark.req("P1-S2.7", "P1-N2")
@given(st.lists(st.tuples(st.sampled_from(["report", "failed", "found", "unsafe", "power", "stop", "think"]), statuses,
                          st.booleans(), st.integers(1, 20_000)), max_size=40))
def test_no_order_to_close_beside_a_bar_or_without_permission(
    story: list[tuple[str, BoardStatus, bool, int]]
) -> None:
    power = Power(Memory(SETTINGS, 900, 60, charge_without_binding=True))
    ms, asked, known = 0, False, None
    for kind, status, allowed, wait_ms in story:
        ms += wait_ms
        effects, known = _tell(power, kind, status, known, _now(ms))
        decided = power.decide(allowed, _now(ms))
        effects += decided + (power.watch(_now(ms)) if kind == "report" else [])
        for effect in effects:
            if isinstance(effect, AskToClose):
                assert allowed and not power.bars and known == "good" and effect.limit_ma >= LEAST_MA
                asked = True
            if isinstance(effect, OpenContactor):
                asked = False
        if power.bars or not allowed:
            assert not asked, "the permission is withdrawn in the same step"
        assert asked == (power.permission in MAY_CLOSE)


def _tell(power: Power, kind: str, status: BoardStatus, known: str | None, now: Now) -> tuple[list[Effect], str | None]:
    match kind:
        case "report":
            return power.on_reported(status, now), "good" if status.fault is None else "bad"
        case "failed":
            return power.on_failed("no answer", now), "bad"
        case "found" | "unsafe":
            off = ("diode",) if kind == "unsafe" else ()
            return power.on_found(BoardFound(BoardIdentity("D8", off, 16_000)), now), known
        case "power":
            return power.on_power(MeterRead(MeterReading(1, 5_000), now), now), known
        case "stop":
            power.on_stop()
    return [], known


@pytest.mark.req("P1-S2.7")
def test_power_while_open_is_a_weld_or_a_bypass() -> None:
    power = Power(Memory(SETTINGS, 900, 60, charge_without_binding=True))
    is_open = BoardStatus(Pilot.B, plugged=True, closed=False, asleep=True, fault=None, limit_ma=0)
    for ms in (0, 1_000, 2_000):
        power.on_reported(is_open, _now(ms))
        power.decide(False, _now(ms))
        power.watch(_now(ms))
    assert power.on_power(MeterRead(MeterReading(1, 7_000), _now(10_000)), _now(10_000)) == []
    assert power.on_power(MeterRead(MeterReading(1, 150), _now(60_000)), _now(60_000)) == []
    assert len(power.on_power(MeterRead(MeterReading(1, 7_000), _now(60_000)), _now(60_000))) == 1
    assert Reason.ENERGY_WHILE_OPEN in power.bars


@pytest.mark.req("P1-F7")
@given(limits, st.integers(0, 200))
def test_the_smallest_limit_in_force_rules_and_never_rises_when_it_expires(found: list[Limit], mono_ms: int) -> None:
    rule = ruling(found, mono_ms)
    values = [limit.in_force_ma(mono_ms) for limit in found]
    assert rule.limit_ma == (min(values) if min(values) >= LEAST_MA else 0)
    assert rule.source in {limit.source for limit, value in zip(found, values, strict=True) if value == min(values)}
    assert all(limit.in_force_ma(mono_ms) <= limit.limit_ma for limit in found)
