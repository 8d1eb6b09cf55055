"""Requests to bind and the set-up of bindings, at the desk and in the pure core."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from sqlalchemy.orm import Session

from cloud.binding import service
from cloud.binding.core import TRANSITIONS, Accepted, BindingView, Case, Event, Refused, State, Step, decide, step
from cloud.enrolment.core import Account, Device, Pev, Premises
from cloud.enrolment.tables import AccountRow, DeviceRow, PevRow, PremisesRow
from cloud.metering import service as metering
from desk_world import (
    DEVICE,
    GUEST_ACCOUNT,
    GUEST_VIN,
    HOST_ACCOUNT,
    PLAN,
    PREMISES,
    PROGRAM,
    VIN,
    Utility,
    opened,
)
from esci.messages import BindConfirm, BindReject, EumdDetect
from esci.reasons import Reason

WHOLE = Case(
    device=Device(DEVICE, PREMISES, "kid", "pem", False),
    asked_premises_id=PREMISES,
    premises=Premises(PREMISES, HOST_ACCOUNT, True, "UTC", "plan", 900, 60, True, False),
    premises_account=Account(HOST_ACCOUNT, "x", True),
    pev=Pev(VIN, HOST_ACCOUNT, PROGRAM, PLAN, False),
    pev_account=Account(HOST_ACCOUNT, "x", True),
    plan_in_force=True,
    age=timedelta(0),
)
assert WHOLE.device is not None
assert WHOLE.premises is not None
assert WHOLE.pev is not None
WRONG = {
    Reason.UNKNOWN_DEVICE: replace(WHOLE, device=None),
    Reason.DEVICE_REVOKED: replace(WHOLE, device=replace(WHOLE.device, revoked=True)),
    Reason.STALE: replace(WHOLE, age=timedelta(seconds=301)),
    Reason.PREMISES_MISMATCH: replace(WHOLE, asked_premises_id="home-2"),
    Reason.PREMISES_NOT_SERVED: replace(WHOLE, premises=replace(WHOLE.premises, served=False)),
    Reason.ACCOUNT_CLOSED: replace(WHOLE, premises_account=Account(HOST_ACCOUNT, "x", False)),
    Reason.UNKNOWN_PEV: replace(WHOLE, pev=None),
    Reason.PEV_SUSPENDED: replace(WHOLE, pev=replace(WHOLE.pev, suspended=True)),
    Reason.GUEST_NOT_ALLOWED: replace(WHOLE, pev=replace(WHOLE.pev, account_id=GUEST_ACCOUNT)),
    Reason.NO_PROGRAM: replace(WHOLE, pev=replace(WHOLE.pev, program="")),
}


@pytest.mark.req("P1-S1.10")
@pytest.mark.parametrize("reason", WRONG)
def test_each_way_to_be_wrong_has_its_own_reason(reason: Reason) -> None:
    assert decide(WRONG[reason]) == Refused(reason)


def test_a_whole_case_is_accepted_to_the_last_second_and_without_a_clock() -> None:
    for age in (None, timedelta(seconds=300), timedelta(seconds=-300)):
        assert isinstance(decide(replace(WHOLE, age=age)), Accepted)
    assert decide(replace(WHOLE, age=timedelta(seconds=-301))) == Refused(Reason.STALE)


def test_each_state_and_event_is_next_late_or_impossible() -> None:
    assert set(TRANSITIONS) == set(itertools.product(State, Event))
    assert all(isinstance(step(*pair), State | Step) for pair in TRANSITIONS)


def test_set_up_is_reached_only_through_the_vehicles_and_the_meters_acknowledgement() -> None:
    into = {pair for pair, following in TRANSITIONS.items() if following is State.SET_UP}
    assert into == {(State.PEV_ACKED, Event.EUMD_APPLIED), (State.SET_UP, Event.CONFIRMED_AGAIN)}
    bound = {pair for pair, following in TRANSITIONS.items() if following is State.PEV_ACKED}
    assert {pair for pair in bound if pair[0] is State.CONFIRMED} == {(State.CONFIRMED, Event.PEV_ACK)}


def views(world: Utility) -> tuple[BindingView, ...]:
    with Session(world.engine) as session:
        return service.bindings(session)


def bind(world: Utility, **members: object) -> BindConfirm:
    answer = world.tell(world.bind_request(**members))[-1]
    assert isinstance(answer, BindConfirm), answer
    return answer


def acknowledge(world: Utility, confirm: BindConfirm) -> EumdDetect:
    (found,) = world.tell(
        world.message(kind="bind.ack", request=confirm.request, binding=confirm.binding, pev=confirm.pev)
    )
    assert isinstance(found, EumdDetect)
    return found


def eumd_ack(detect: EumdDetect, /, **members: object) -> dict[str, object]:
    base: dict[str, object] = {
        "kind": "eumd.ack", "detect": detect.id, "binding": detect.binding, "applied": True, "reason": None,
        "interval_s": detect.interval_s,
    }
    return base | members


def set_up(world: Utility) -> BindConfirm:
    confirm = bind(world)
    detect = acknowledge(world, confirm)
    assert world.tell(world.message(**eumd_ack(detect))) == []
    return confirm


@pytest.mark.req("P1-S1.11", "P1-S1.13", "P1-S1.14", "P1-S1.16")
def test_a_binding_is_bound_after_the_vehicles_ack_and_set_up_after_the_meters() -> None:
    world = Utility()
    confirm = bind(world)
    assert (confirm.scenario, confirm.program, confirm.interval_s) == ("first", PROGRAM, 900)
    assert confirm.valid_until == "2025-07-17T03:00:00Z"
    assert views(world)[0].state == "confirmed"
    detect = acknowledge(world, confirm)
    assert views(world)[0].state == "pev-acked"
    world.tell(world.message(**eumd_ack(detect)))
    (view,) = views(world)
    assert (view.state, view.binding_id, view.eumd_reason) == ("set-up", confirm.binding, "")


@pytest.mark.req("P1-S1.13")
def test_a_repeated_vehicle_ack_gets_the_same_detection_and_changes_nothing() -> None:
    world = Utility()
    confirm = bind(world)
    first = acknowledge(world, confirm)
    before = views(world)
    assert acknowledge(world, confirm).id == first.id
    assert views(world) == before
    world.tell(world.message(**eumd_ack(first)))
    assert acknowledge(world, confirm).id == first.id
    assert views(world)[0].state == "set-up"


@pytest.mark.req("P1-S1.15", "P1-S1.16")
def test_a_refused_detection_leaves_the_binding_bound_with_the_reason() -> None:
    world = Utility()
    detect = acknowledge(world, bind(world))
    world.tell(world.message(**eumd_ack(detect, applied=False, reason="interval-not-allowed")))
    assert (views(world)[0].state, views(world)[0].eumd_reason) == ("pev-acked", "interval-not-allowed")
    assert [one.id for one in world.hello() if isinstance(one, EumdDetect)] == [detect.id]


@pytest.mark.req("P1-S1.16")
def test_an_eumd_ack_that_fits_no_detection_is_refused_and_kept() -> None:
    world = Utility()
    confirm = bind(world)
    detect = acknowledge(world, confirm)
    for members, reason in (
        ({"detect": "f" * 32}, Reason.STALE),
        ({"interval_s": 60}, Reason.STALE),
        ({"binding": "f" * 32}, Reason.UNKNOWN_BINDING),
    ):
        assert world.send(world.message(**eumd_ack(detect, **members))).refused is reason
    assert views(world)[0].state == "pev-acked"
    with Session(world.engine) as session:
        assert len(metering.refused_messages(session)) == 3


@pytest.mark.req("P1-S2.6", "P1-F28")
def test_a_later_plug_in_keeps_the_binding_and_needs_no_set_up() -> None:
    world = Utility()
    first = set_up(world)
    world.later(3600)
    again = bind(world, known_binding=first.binding)
    assert (again.scenario, again.binding) == ("again", first.binding)
    assert again.ticket != first.ticket
    assert views(world)[0].state == "set-up"


@pytest.mark.req("P1-S1.11")
def test_a_charger_that_lost_its_memory_is_set_up_anew_under_the_same_binding() -> None:
    world = Utility()
    first = set_up(world)
    again = bind(world, known_binding="")
    assert (again.scenario, again.binding) == ("first", first.binding)
    assert views(world)[0].state == "confirmed"


@pytest.mark.req("P1-S1.10")
def test_the_same_request_gets_the_same_answer_and_another_body_is_refused() -> None:
    world = Utility()
    request = world.bind_request()
    answer = world.tell(request)[-1]
    world.change(PevRow, VIN, suspended=True)
    world.later(10_000)
    assert world.tell(request) == [answer]
    (other,) = world.tell(request | {"pev": GUEST_VIN})
    assert isinstance(other, BindReject)
    assert other.reason is Reason.REPLAYED
    with Session(world.engine) as session:
        assert [one.reason for one in metering.refused_messages(session)] == ["replayed"]


@pytest.mark.req("P1-S2.5")
def test_a_suspension_since_the_last_session_is_honoured() -> None:
    world = Utility()
    confirm = set_up(world)
    world.change(PevRow, VIN, suspended=True)
    (answer,) = world.tell(world.bind_request(known_binding=confirm.binding))
    assert isinstance(answer, BindReject)
    assert answer.reason is Reason.PEV_SUSPENDED


@pytest.mark.req("P1-S1.10", "P1-S1.4")
@pytest.mark.parametrize(("table", "primary", "values", "members", "reason"), [
    (DeviceRow, DEVICE, {"revoked": True}, {}, Reason.DEVICE_REVOKED),
    (PremisesRow, PREMISES, {"served": False}, {}, Reason.PREMISES_NOT_SERVED),
    (AccountRow, HOST_ACCOUNT, {"open": False}, {}, Reason.ACCOUNT_CLOSED),
    (AccountRow, GUEST_ACCOUNT, {"open": False}, {"pev": GUEST_VIN}, Reason.ACCOUNT_CLOSED),
    (PremisesRow, PREMISES, {"guests_allowed": False}, {"pev": GUEST_VIN}, Reason.GUEST_NOT_ALLOWED),
    (PevRow, VIN, {"plan": "NONE"}, {}, Reason.NO_PROGRAM),
    (PevRow, VIN, {}, {"pev": "5YJ3E1EA7KF317999"}, Reason.UNKNOWN_PEV),
    (PevRow, VIN, {}, {"premises": "home-2"}, Reason.PREMISES_MISMATCH),
    (PevRow, VIN, {}, {"at": "2025-07-16T02:54:59Z"}, Reason.STALE),
])
def test_the_desk_refuses_each_wrong_request_with_its_reason(
    table: type[object], primary: str, values: dict[str, object], members: dict[str, object], reason: Reason
) -> None:
    world = Utility()
    world.change(table, primary, **values)
    handled = world.send(world.bind_request(**members))
    (answer,) = opened(handled)
    assert cast(BindReject, answer).reason is reason
    assert views(world) == ()


@pytest.mark.req("P1-S1.4")
def test_a_guest_binds_where_guests_are_allowed() -> None:
    assert bind(Utility(), pev=GUEST_VIN).pev == GUEST_VIN


def test_an_unset_clock_makes_no_request_stale() -> None:
    bind(Utility(), at="2000-01-01T00:00:00Z", clock="unsynced")


@pytest.mark.req("P1-S1.13")
def test_an_ack_for_a_strangers_binding_or_an_old_request_is_refused() -> None:
    world = Utility()
    confirm = bind(world)
    newer = bind(world)
    for request, binding_id, pev, reason in (
        (confirm.request, confirm.binding, VIN, Reason.STALE),
        (newer.request, newer.binding, GUEST_VIN, Reason.UNKNOWN_BINDING),
        (newer.request, "f" * 32, VIN, Reason.UNKNOWN_BINDING),
    ):
        handled = world.send(world.message(kind="bind.ack", request=request, binding=binding_id, pev=pev))
        assert handled.refused is reason
    assert views(world)[0].state == "confirmed"


@pytest.mark.req("P1-S1.11", "P1-F18")
def test_a_device_gets_a_tariff_before_the_confirmation_that_names_it_and_only_once() -> None:
    world = Utility()
    assert [one.kind for one in world.hello()] == ["tariff", "params", "ack"]
    assert [one.kind for one in world.tell(world.bind_request())] == ["tariff", "bind.confirm"]
    assert [one.kind for one in world.tell(world.bind_request())] == ["bind.confirm"]
    assert [one.kind for one in world.hello()] == ["tariff", "tariff", "params", "ack"]


@pytest.mark.req("P1-F18", "P1-F24")
def test_changed_parameters_are_sent_once_to_a_charger_that_has_said_hello() -> None:
    world = Utility()
    assert world.desk.changed() == ()
    world.hello()
    assert world.desk.changed() == ()
    world.change(PremisesRow, PREMISES, interval_s=300, binding_wait_s=10)
    (answer,) = world.desk.changed()
    assert (answer.topic, answer.kind) == (f"esci/1/{DEVICE}/down/params", "params")
    assert b'"interval_s":300' in answer.payload
    assert world.desk.changed() == ()
    world.change(PremisesRow, PREMISES, default_plan=PLAN)
    assert [one.kind for one in world.desk.changed()] == ["tariff", "params"]
    world.change(DeviceRow, DEVICE, revoked=True)
    world.change(PremisesRow, PREMISES, interval_s=60)
    assert world.desk.changed() == ()


@pytest.mark.req("P1-F18")
def test_a_new_version_of_the_default_plan_reaches_a_charger_on_its_first_day() -> None:
    world = Utility()
    world.hello()
    world.now = datetime(2026, 6, 2, tzinfo=UTC)
    assert [one.kind for one in world.desk.changed()] == ["tariff", "params"]


@pytest.mark.req("P1-S1.14", "P1-F18", "P1-F24")
@pytest.mark.parametrize("online", [True, False])
def test_a_changed_interval_is_a_new_detection_and_set_up_again_after_its_ack(online: bool) -> None:
    world = Utility()
    world.hello()
    first = acknowledge(world, set_up(world))
    world.change(PremisesRow, PREMISES, interval_s=300)
    if online:
        assert [answer.kind for answer in world.desk.changed()] == ["params", "eumd.detect"]
    (detect,) = [one for one in world.hello() if isinstance(one, EumdDetect)]
    assert (detect.interval_s, detect.id != first.id) == (300, True)
    assert views(world)[0].state == "pev-acked"
    assert world.send(world.message(**eumd_ack(first))).refused is Reason.STALE
    world.tell(world.message(**eumd_ack(detect)))
    assert (views(world)[0].state, views(world)[0].interval_s) == ("set-up", 300)
