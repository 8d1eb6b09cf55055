"""What becomes of journal records: posted, or in the exception queue with its reason; nothing is dropped."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from cloud.billing import service as billing
from cloud.billing.core import Reconciliation
from cloud.desk import Handled
from cloud.enrolment.tables import DeviceRow
from cloud.ledger import service as ledger
from cloud.metering import service as metering
from cloud.metering.core import ExceptionView, NoticeView, RefusedView
from cloud.metering.tables import RefusedMessageRow
from desk_world import (
    DEFAULT_PLAN,
    DEVICE,
    GUEST_VIN,
    PLAN,
    PREMISES,
    START,
    VIN,
    Journal,
    Utility,
    interval,
    key,
)
from esci import topics
from esci.messages import Ack, BindConfirm
from esci.reasons import Reason
from esci.seal import seal

QUARTER = timedelta(minutes=15)


def deliver(world: Utility, journal: Journal, first_seq: int = 1, last_seq: int | None = None) -> int:
    """The seq that the utility acknowledges."""
    (ack,) = world.tell(world.message(**journal.batch(first_seq, last_seq or len(journal.items))))
    assert isinstance(ack, Ack)
    return ack.seq


def queue(world: Utility) -> tuple[ExceptionView, ...]:
    with Session(world.engine) as session:
        return metering.exceptions(session)


def books(world: Utility) -> Reconciliation:
    with Session(world.engine) as session:
        return billing.reconciliation(session)


def one(body: dict[str, object], clock: str = "synced", at: datetime = START) -> tuple[Utility, Journal]:
    """A utility that was given one interval."""
    world, journal = Utility(), Journal()
    journal.add("interval", body, at, clock)
    assert deliver(world, journal) == 1
    return world, journal


@pytest.mark.req("P1-S3.3", "P1-B4")
def test_unbound_energy_is_charged_to_the_premises_on_its_default_plan() -> None:
    world, _ = one(interval(START, 1000, 0, rate_reason="utility-unreachable"))
    with Session(world.engine) as session:
        statement = billing.statement(session, PREMISES)
        accounts = {one.account: (one.debit_cents, one.credit_cents) for one in ledger.trial_balance(session).accounts}
    (line,) = statement.sessions[0].lines
    assert line.tariff == f"{DEFAULT_PLAN} 2025-06-01"
    assert (line.rate_reason, line.account_id) == ("utility-unreachable", "acc-1")
    assert line.cents == statement.cents
    assert accounts == {"customer:acc-1": (line.cents, 0), "revenue:energy": (0, line.cents)}


@pytest.mark.req("P1-S3.2")
@pytest.mark.parametrize(("members", "reason"), [
    ({"premises": "home-2"}, Reason.PREMISES_MISMATCH),
    ({"register_end_wh": 2000}, Reason.BODY_INVALID),
    ({"register_start_wh": 3000}, Reason.METER_RESET),
    ({"flags": ["jump"]}, Reason.METER_JUMP),
    ({"flags": ["gap"]}, Reason.METERING_GAP),
    ({"flags": ["clock-unsynced"]}, Reason.CLOCK_UNSYNCED),
    ({"energy_wh": 300_000, "register_end_wh": 300_000}, Reason.METER_JUMP),
    ({"end": "2025-07-16T03:00:00Z"}, Reason.CLOCK_STEPPED),
    ({"end": "2025-09-16T03:00:00Z"}, Reason.METERING_GAP),
    ({"end": "2025-07-16T05:00:00Z"}, Reason.PRICE_CHANGE_INSIDE),
    ({"start": "2025-01-01T00:00:00Z", "end": "2025-01-01T00:15:00Z"}, Reason.OUTSIDE_VALIDITY),
    ({"tariff": None}, Reason.UNKNOWN_TARIFF),
    ({"tariff": {"code": PLAN, "version": "2025-06-01"}}, Reason.UNKNOWN_TARIFF),
    ({"tariff": {"code": DEFAULT_PLAN, "version": "1999"}}, Reason.UNKNOWN_TARIFF),
    ({"binding": "f" * 32, "session": "e" * 32, "pev": VIN}, Reason.UNKNOWN_BINDING),
])
def test_each_doubt_about_an_interval_is_in_the_queue_with_its_reason(
    members: dict[str, object], reason: Reason
) -> None:
    world, _ = one(interval(START, 1000, 0, **members))
    (found,) = queue(world)
    assert found.reason == reason
    assert found.energy_wh == members.get("energy_wh", 1000)
    whole = books(world)
    assert whole.whole
    assert (whole.posted_wh, whole.exception_wh, whole.debit_cents) == (0, found.energy_wh, 0)


@pytest.mark.req("P1-S3.2")
@pytest.mark.parametrize(("kind", "body"), [
    ("interval", {"energy_wh": 5}),
    ("interval", interval(START, 5, 0, start="2025-99-99T00:00:00Z")),
    ("interval", interval(START, 5, 0, end="2025-07-16T02:59:59Z")),
    ("interval", interval(START, 5, 2**52)),
    ("interval", interval(START, 5, 0, unknown=1)),
    ("surprise", {}),
    ("session.begun", {"session": "", "premises": PREMISES, "register_wh": None}),
])
def test_a_record_that_cannot_be_read_is_kept_acknowledged_and_in_the_queue(
    kind: str, body: dict[str, object]
) -> None:
    world, journal = Utility(), Journal()
    journal.add(kind, body, START)
    assert deliver(world, journal) == 1
    (found,) = queue(world)
    assert (found.reason, found.energy_wh) == ("body-invalid", None)
    assert books(world).metered_wh == 0


@pytest.mark.req("P1-S3.2")
def test_a_binding_pays_only_for_its_own_vehicle_charger_and_plan() -> None:
    for members, reason in (
        ({}, None),
        ({"pev": GUEST_VIN}, "unknown-binding"),
        ({"session": ""}, "unknown-binding"),
        ({"tariff": {"code": DEFAULT_PLAN, "version": "2025-06-01"}}, "unknown-tariff"),
        ({"tariff": {"code": PLAN, "version": "2026-06-01"}}, "unknown-tariff"),
    ):
        world, journal = Utility(), Journal()
        confirm = world.tell(world.bind_request())[-1]
        assert isinstance(confirm, BindConfirm)
        body = interval(START, 1000, 0, session=confirm.session, binding=confirm.binding, pev=VIN,
                        tariff={"code": PLAN, "version": "2025-06-01"})
        journal.add("interval", body | members, START)
        deliver(world, journal)
        assert [found.reason for found in queue(world)] == ([reason] if reason else []), members


@pytest.mark.req("P1-S3.2", "P1-F20")
def test_a_guest_pays_from_the_binding_on_and_the_host_before() -> None:
    world, journal = Utility(), Journal()
    confirm = world.tell(world.bind_request(pev=GUEST_VIN))[-1]
    assert isinstance(confirm, BindConfirm)
    bound: dict[str, object] = {
        "binding": confirm.binding, "pev": GUEST_VIN, "tariff": {"code": PLAN, "version": "2025-06-01"}}
    journal.add("interval", interval(START, 1000, 0, session=confirm.session), START)
    journal.add("interval", interval(START + QUARTER, 1000, 1000, session=confirm.session, **bound), START)
    deliver(world, journal)
    with Session(world.engine) as session:
        paid = dict(billing.statement(session, PREMISES).by_account)
    assert paid["acc-1"] > 0
    assert paid["acc-2"] > 0
    assert sum(paid.values()) == books(world).debit_cents


@pytest.mark.req("P1-S3.1", "P1-S3.2")
def test_the_register_goes_on_from_interval_to_interval() -> None:
    world, journal = Utility(), Journal()
    journal.add("interval", interval(START, 100, 0), START)
    journal.add("interval", interval(START + QUARTER, 100, 150), START)  # 50 Wh are in no interval
    journal.add("interval", interval(START + 2 * QUARTER, 100, 250), START)
    deliver(world, journal)
    assert [(found.seq, found.reason) for found in queue(world)] == [(2, "register-discontinuous")]
    (device,) = books(world).devices
    assert (device.metered_wh, device.register_delta_wh) == (300, 350)


@pytest.mark.req("P1-S3.2")
@pytest.mark.parametrize("announced", ["event", "flag"])
def test_a_register_may_start_anew_once_its_reset_is_recorded(announced: str) -> None:
    world, journal = Utility(), Journal()
    journal.add("interval", interval(START, 100, 90_000), START)
    if announced == "event":
        journal.add("event", {"code": "meter-reset", "session": "", "detail": {"before_wh": 90_100}}, START)
    flags = ["meter-reset"] if announced == "flag" else []
    journal.add("interval", interval(START + QUARTER, 100, 0, flags=flags), START)
    deliver(world, journal)
    assert queue(world) == ()
    assert books(world).posted_wh == 200


def test_no_energy_is_no_money_and_no_doubt() -> None:
    world, _ = one(interval(START, 0, 700, tariff=None, flags=["clock-unsynced"]), clock="unsynced")
    assert queue(world) == ()
    assert books(world).whole
    with Session(world.engine) as session:
        assert ledger.trial_balance(session).accounts == ()


@pytest.mark.req("P1-S3.1")
def test_a_batch_after_a_gap_waits_until_the_gap_is_filled() -> None:
    world, journal = Utility(), Journal()
    for place in range(4):
        journal.add("interval", interval(START + place * QUARTER, 10, place * 10), START)
    assert deliver(world, journal, 3, 4) == 0
    assert deliver(world, journal, 1, 2) == 2
    assert deliver(world, journal, 2, 4) == 4
    assert deliver(world, journal, 1, 4) == 4
    assert books(world).posted_wh == 40


@pytest.mark.req("P1-S3.1")
def test_an_edited_record_never_overwrites_and_stops_its_batch() -> None:
    world, journal = Utility(), Journal()
    journal.add("interval", interval(START, 10, 0), START)
    deliver(world, journal)
    edited = Journal()
    edited.add("interval", interval(START, 11, 0), START)
    edited.add("interval", interval(START + QUARTER, 11, 11), START)
    for _ in range(2):
        assert deliver(world, edited) == 1
    assert [(found.reason, found.seq) for found in queue(world)] == [("conflict", 1)]
    assert books(world).metered_wh == 10


@pytest.mark.req("P1-S3.1")
def test_a_record_that_does_not_follow_from_the_last_is_not_taken() -> None:
    world, journal = Utility(), Journal()
    journal.add("interval", interval(START, 10, 0), START)
    deliver(world, journal)
    other = Journal()
    other.add("interval", interval(START, 99, 0), START)
    other.add("interval", interval(START + QUARTER, 10, 10), START)
    assert deliver(world, other, 2) == 1
    assert [(found.reason, found.seq) for found in queue(world)] == [("chain-broken", 2)]


@pytest.mark.req("P1-B6")
def test_an_unmetered_session_is_shown_so_and_the_customer_is_told_once() -> None:
    world, journal = Utility(), Journal()
    session_id = "a" * 32
    journal.add("session.begun", {"session": session_id, "premises": PREMISES, "register_wh": None}, START)
    journal.add("session.ended", {
        "session": session_id, "reason": "unplugged", "energy_wh": None, "pending_wh": 0, "receipt_cents": None,
        "unmetered": True, "register_wh": None}, START + QUARTER)
    deliver(world, journal)
    deliver(world, journal)
    with Session(world.engine) as session:
        (shown,) = billing.statement(session, PREMISES).sessions
        notices: tuple[NoticeView, ...] = metering.notices(session)
        assert ledger.trial_balance(session).accounts == ()
    assert (shown.metered, shown.energy_wh, shown.cents, shown.lines) == ("unmetered", None, None, ())
    assert [(notice.account_id, notice.session) for notice in notices] == [("acc-1", session_id)]


@pytest.mark.req("P1-S3.3")
@pytest.mark.parametrize("wrong_cents", [0, 1])
def test_a_receipt_that_differs_from_the_bill_is_in_the_queue(wrong_cents: int) -> None:
    world, journal = Utility(), Journal()
    session_id = "a" * 32
    journal.add("session.begun", {"session": session_id, "premises": PREMISES, "register_wh": 0}, START)
    journal.add("interval", interval(START, 1000, 0, session=session_id), START)
    deliver(world, journal)
    receipt_cents = books(world).debit_cents + wrong_cents
    journal.add("session.ended", {
        "session": session_id, "reason": "unplugged", "energy_wh": 1000, "pending_wh": 0,
        "receipt_cents": receipt_cents, "unmetered": False, "register_wh": 1000}, START + QUARTER)
    deliver(world, journal, 3)
    with Session(world.engine) as session:
        (shown,) = billing.statement(session, PREMISES).sessions
    assert (shown.receipt_cents, shown.receipt_matches) == (receipt_cents, wrong_cents == 0)
    assert [found.reason for found in queue(world)] == ["conflict"] * wrong_cents


def refused(world: Utility) -> tuple[RefusedView, ...]:
    with Session(world.engine) as session:
        return metering.refused_messages(session)


def hello(world: Utility, **members: object) -> dict[str, object]:
    base: dict[str, object] = {
        "kind": "hello", "premises": PREMISES, "software": "1.0", "epoch": 1, "last_seq": 0, "acked_seq": 0,
        "clock": "synced", "tariffs": []}
    return world.message(**(base | members))


def wrong_messages(world: Utility) -> list[tuple[Handled, Reason]]:
    whole = hello(world)
    good = seal(whole, key("device"))
    topic = topics.up(DEVICE, "hello")
    handle = world.desk.handle
    return [
        (handle(topic, good.replace(b'"synced"', b'"unsynced"')), Reason.BAD_SEAL),
        (handle(topic, b"{"), Reason.BAD_SEAL),
        (handle(topic, seal(whole, key("stranger"))), Reason.UNKNOWN_KEY),
        (world.send(hello(world, extra=1)), Reason.MALFORMED),
        (world.send(hello(world, at="2025-13-01T00:00:00Z")), Reason.MALFORMED),
        (handle(topics.up(DEVICE, "records"), good), Reason.WRONG_TOPIC),
        (handle(topics.down(DEVICE, "ack"), good), Reason.WRONG_TOPIC),
        (handle("esci/1/evse-1/up", good), Reason.WRONG_TOPIC),
        (handle(topics.up("evse-2", "hello"), good), Reason.UNKNOWN_DEVICE),
        (handle("esci/1/\x00/up/hello", good), Reason.UNKNOWN_DEVICE),
        (world.send(hello(world, device="evse-2"), topic=topic), Reason.WRONG_TOPIC),
    ]


@pytest.mark.req("P1-S1.10")
def test_each_refused_message_has_its_reason_and_is_kept() -> None:
    world = Utility()
    done = wrong_messages(world)
    for handled, reason in done:
        assert (handled.refused, handled.answers) == (reason, ()), handled
    assert len(refused(world)) == len(done)


def test_a_refused_message_that_comes_again_only_counts() -> None:
    world = Utility()
    for _ in range(3):
        world.desk.handle("nowhere", b"x" * 300_000)
    (found,) = refused(world)
    assert found.times == 3


@pytest.mark.req("P1-S1.10")
def test_a_revoked_charger_is_heard_no_more_and_its_messages_are_kept() -> None:
    world, journal = Utility(), Journal()
    journal.add("interval", interval(START, 10, 0), START)
    world.change(DeviceRow, DEVICE, revoked=True)
    assert world.send(world.message(**journal.batch(1, 1))).refused is Reason.DEVICE_REVOKED
    assert [found.reason for found in refused(world)] == ["device-revoked"]
    assert books(world).metered_wh == 0


def test_a_flood_of_refused_messages_is_bounded_and_counted() -> None:
    world = Utility()
    room = metering.KEPT_MESSAGES
    with Session(world.engine) as session, session.begin():
        session.add_all(RefusedMessageRow(
            digest=f"{place:064x}", topic="t", payload=b"", reason="malformed", detail="", first_at="", last_at="",
            times=1) for place in range(1, room + 1))
    for number in range(3):
        world.desk.handle("nowhere", str(number).encode())
    found = refused(world)
    assert len(found) == room + 1
    assert max(one.times for one in found) == 3
