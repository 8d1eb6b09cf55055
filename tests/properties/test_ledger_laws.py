"""Laws of money: debits equal credits, nothing is posted twice, and rounding happens once."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, delete, text
from sqlalchemy.orm import Session

from agent.core.receipt import Receipt
from cloud.billing import service as billing
from cloud.db import Base
from cloud.ledger import service
from cloud.ledger.core import REVENUE_ENERGY, Charged, ConflictError, Entry, energy_charge
from cloud.ledger.tables import LedgerLineRow
from desk_world import DEFAULT_PLAN, PREMISES, START, Journal, Utility, catalogue, interval
from esci.messages import TariffRef
from esci.records import Interval
from esci.seal import canonical
from esci.tariff import Line, Tariff, Usage, cents, rate

QUARTER = timedelta(minutes=15)
Entries = st.builds(
    lambda key, account, amount_cents, energy_wh: energy_charge(
        f"k{key}", "2025-07-16T03:00:00Z", account, amount_cents, Charged("P", "1", "x", 1, energy_wh, "")
    ),
    st.integers(0, 6), st.sampled_from(["a", "b", "c"]), st.integers(0, 10**12), st.integers(0, 10**9),
)
ENGINE = create_engine("sqlite://")
Base.metadata.create_all(ENGINE)


@pytest.mark.req("P1-S3.3")
@given(entries=st.lists(Entries, max_size=20))
def test_debits_equal_credits_and_each_key_counts_once(entries: list[Entry]) -> None:
    first: dict[str, Entry] = {}
    with Session(ENGINE) as session:  # rolled back at the end
        for entry in entries:
            stands = first.setdefault(entry.key, entry)
            if stands.lines != entry.lines:
                with pytest.raises(ConflictError):
                    service.post(session, entry)
            else:
                assert service.post(session, entry) == (stands is entry)
        balance = service.trial_balance(session)
    total_cents = sum(line.amount_cents for entry in first.values() for line in entry.lines)
    assert balance.debit_cents == balance.credit_cents == total_cents
    assert all(one.credit_cents == 0 for one in balance.accounts if one.account != REVENUE_ENERGY)
    assert balance.energy_wh == sum(line.charged.energy_wh for entry in first.values() for line in entry.lines)


@pytest.mark.req("P1-S3.3")
def test_not_even_the_orm_can_change_a_line() -> None:
    entry = energy_charge("k", "2025-07-16T03:00:00Z", "a", 5, Charged("P", "1", "x", 1, 1, ""))
    for change in (delete(LedgerLineRow), text("UPDATE ledger_line SET amount_cents = 6")):
        with Session(ENGINE) as session:
            service.post(session, entry)
            with pytest.raises(Exception, match="append-only"):
                session.execute(change)


@pytest.mark.req("P1-S3.3")
@settings(max_examples=25)
@given(energies=st.lists(st.integers(0, 2500), min_size=1, max_size=12), doubtful=st.sets(st.integers(0, 11)))
def test_the_bill_of_a_session_is_the_rounded_sum_whatever_the_split(energies: list[int], doubtful: set[int]) -> None:
    world, journal, register_wh = Utility(), Journal(), 0
    usages = []
    for place, energy_wh in enumerate(energies):
        at = START + place * QUARTER
        flags = ["gap"] if place in doubtful and energy_wh else []
        journal.add("interval", interval(at, energy_wh, register_wh, flags=flags, session="a" * 32), at)
        register_wh += energy_wh
        if energy_wh and not flags:
            usages.append(Usage(at, at + QUARTER, energy_wh))
    world.tell(world.message(**journal.batch(1, len(energies))))
    tariff = catalogue().tariff(DEFAULT_PLAN, "2025-06-01")
    assert tariff is not None
    lines, total_nano_usd = rate(tariff, usages)
    with Session(world.engine) as session:
        statement = billing.statement(session, PREMISES)
        balance = service.trial_balance(session)
    posted = [line for line in statement.sessions[0].lines if line.cents is not None and line.energy_wh]
    assert [line.cents for line in posted] == [line.amount_cents for line in lines if isinstance(line, Line)]
    assert statement.cents == balance.debit_cents == cents(total_nano_usd)
    assert statement.posted_wh + statement.pending_wh == sum(energies)
    assert all(before.start <= after.start for before, after in pairwise(statement.sessions[0].lines))
    world.engine.dispose()


FLAG = st.sampled_from(
    ["gap", "jump", "restart", "clock-stepped", "clock-unsynced", "meter-reset", "energy-while-open"]
)


def tariff_of(ref: TariffRef) -> Tariff | None:
    return catalogue().tariff(ref.code, ref.version)


@pytest.mark.req("P1-B4", "P1-S3.3")
@settings(max_examples=25)
@given(
    energies=st.lists(st.integers(0, 2500), min_size=1, max_size=12),
    flags=st.lists(st.lists(FLAG, max_size=2, unique=True), min_size=1, max_size=5),
    hours=st.integers(0, 30),
)
def test_the_chargers_receipt_is_the_bill_to_the_cent(energies: list[int], flags: list[list[str]], hours: int) -> None:
    world, journal, register_wh = Utility(), Journal(), 0
    receipt, session_id = Receipt(), "a" * 32
    for place, energy_wh in enumerate(energies):
        at = START + timedelta(hours=hours, minutes=10) + place * QUARTER  # some intervals span a change of price
        body = interval(at, energy_wh, register_wh, flags=flags[place % len(flags)], session=session_id)
        register_wh += energy_wh
        journal.add("interval", body, at)
        receipt.add(Interval.model_validate_json(canonical(body)), tariff_of)
    journal.add("session.ended", {
        "session": session_id, "reason": "unplugged", "energy_wh": receipt.energy_wh, "pending_wh": receipt.pending_wh,
        "receipt_cents": receipt.total_cents, "unmetered": False, "register_wh": register_wh}, START)
    world.tell(world.message(**journal.batch(1, len(journal.items))))
    with Session(world.engine) as session:
        (shown,) = billing.statement(session, PREMISES).sessions
    assert (shown.cents, shown.pending_wh) == (receipt.total_cents, receipt.pending_wh)
    assert shown.receipt_matches
    world.engine.dispose()
