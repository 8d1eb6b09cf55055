"""Whatever the network and a hostile hand do to the batches, every interval is taken once and its energy found."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from cloud.billing import service as billing
from cloud.billing.core import Reconciliation
from cloud.metering import service as metering
from desk_world import DEVICE, PREMISES, START, Journal, Utility, interval, key, opened
from esci import topics
from esci.messages import Ack
from esci.seal import canonical, load, seal
from ledger_postgres import postgres_url

QUARTER = timedelta(minutes=15)
Energies = st.lists(st.integers(0, 2500), min_size=1, max_size=12)
FLAG = st.sampled_from(["gap", "restart", "jump", "clock-unsynced", "clock-stepped"])
FLAGS = st.lists(FLAG, max_size=2, unique=True)


def journal_of(energies: list[int], flags: list[list[str]] | None = None, session: str = "") -> Journal:
    """A journal of one interval after the other."""
    journal, register_wh = Journal(), 1000
    for place, energy_wh in enumerate(energies):
        at = START + place * QUARTER
        marks = flags[place % len(flags)] if flags else []
        journal.add("interval", interval(at, energy_wh, register_wh, flags=marks, session=session), at)
        register_wh += energy_wh
    return journal


def books(world: Utility) -> Reconciliation:
    with Session(world.engine) as session:
        return billing.reconciliation(session)


def lose_and_repeat(world: Utility, journal: Journal, data: st.DataObject) -> None:
    """Batches of any cut come in any order, any number of times; acknowledgements are lost at will."""
    last = len(journal.items)
    for _ in range(data.draw(st.integers(0, 8))):
        first = data.draw(st.integers(1, last))
        send(world, journal, first, data.draw(st.integers(first, last)))


def send(world: Utility, journal: Journal, first: int, last: int) -> int:
    (ack,) = world.tell(world.message(**journal.batch(first, last)))
    assert isinstance(ack, Ack)
    return ack.seq


def finish(world: Utility, journal: Journal) -> None:
    """The charger goes on until all is acknowledged."""
    acked = send(world, journal, 1, 1)
    rounds = 0
    while acked < len(journal.items):
        rounds += 1
        assert rounds <= len(journal.items)
        acked = send(world, journal, acked + 1, min(acked + 5, len(journal.items)))


@pytest.mark.req("P1-S3.1", "P1-S3.3")
@settings(max_examples=40)
@given(energies=Energies, flags=st.lists(FLAGS, min_size=1, max_size=4), data=st.data())
def test_every_watt_hour_is_taken_once_in_any_order_with_any_loss(
    energies: list[int], flags: list[list[str]], data: st.DataObject
) -> None:
    world, journal = Utility(), journal_of(energies, flags)
    lose_and_repeat(world, journal, data)
    assert books(world).whole  # at every moment, not only at the end
    finish(world, journal)
    found = books(world)
    assert found.whole
    assert found.metered_wh == sum(energies) == found.posted_wh + found.exception_wh
    assert found.devices[0].register_delta_wh == sum(energies)
    world.engine.dispose()


@pytest.mark.req("P1-S3.1", "P1-S3.3")
@settings(max_examples=20)
@given(energies=Energies, data=st.data())
def test_the_bill_does_not_depend_on_how_the_records_came(energies: list[int], data: st.DataObject) -> None:
    journal = journal_of(energies, session="c" * 32)
    calm, stormy = Utility(), Utility()
    finish(calm, journal)
    lose_and_repeat(stormy, journal, data)
    finish(stormy, journal)
    with Session(calm.engine) as one, Session(stormy.engine) as other:
        assert billing.statement(one, PREMISES) == billing.statement(other, PREMISES)
    calm.engine.dispose()
    stormy.engine.dispose()


@pytest.mark.req("P1-S3.1")
@settings(max_examples=25)
@given(energies=st.lists(st.integers(1, 2500), min_size=2, max_size=8), data=st.data())
def test_an_edited_journal_changes_nothing_that_was_taken_and_leaves_a_trace(
    energies: list[int], data: st.DataObject
) -> None:
    world, journal = Utility(), journal_of(energies)
    taken = data.draw(st.integers(1, len(energies)))
    send(world, journal, 1, taken)
    before = books(world)
    place = data.draw(st.integers(0, taken - 1))
    forged = journal_of([*energies[:place], energies[place] + 1, *energies[place + 1:]])
    first = data.draw(st.integers(1, taken + 1).filter(lambda seq: seq <= len(energies)))
    acked = send(world, forged, first, len(energies))
    assert acked == taken
    assert books(world) == before
    with Session(world.engine) as session:
        reasons = {found.reason for found in metering.exceptions(session)}
    assert reasons == ({"conflict"} if first <= place + 1 else {"chain-broken"})
    finish(world, journal)  # the true journal still comes through
    assert books(world).metered_wh == sum(energies)
    world.engine.dispose()


Leaf = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8)
Json = st.recursive(
    Leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
RECORD_KINDS = st.sampled_from(["interval", "session.begun", "session.bound", "session.ended", "event"])
MEMBERS = st.sampled_from(
    ["session", "energy_wh", "start", "end", "flags", "tariff", "code", "detail", "register_end_wh", "premises"]
)
KINDS = st.sampled_from(["hello", "bind.request", "bind.ack", "eumd.ack", "records", "reply", "ack", "x"])


@given(
    topic=st.text(max_size=40) | KINDS.map(lambda kind: f"esci/1/{DEVICE}/up/{kind}"),
    payload=st.binary(max_size=200),
)
def test_any_bytes_on_any_topic_are_refused_and_kept(topic: str, payload: bytes) -> None:
    world = Utility()
    handled = world.desk.handle(topic, payload)
    assert handled.refused is not None
    with Session(world.engine) as session:
        assert len(metering.refused_messages(session)) == 1
    world.engine.dispose()


@given(kind=KINDS, members=st.dictionaries(
    st.sampled_from(["premises", "session", "epoch", "first_seq", "prev", "records", "tariffs", "binding", "pev", "x"]),
    Json, max_size=6))
def test_a_charger_that_seals_nonsense_is_answered_or_refused_and_nothing_else(
    kind: str, members: dict[str, object]
) -> None:
    world = Utility()
    message = world.message(kind=kind, **members)
    if all(name.isascii() for name in _names(message)):
        handled = world.desk.handle(f"esci/1/{DEVICE}/up/{kind}", seal(message, key("device")))
        assert handled.refused is not None or handled.answers or kind == "eumd.ack"
    world.engine.dispose()


@pytest.mark.req("P1-S3.2")
@given(kind=RECORD_KINDS, members=st.dictionaries(MEMBERS, Json, max_size=4))
def test_a_hostile_record_is_taken_and_at_most_an_exception(kind: str, members: dict[str, object]) -> None:
    world, journal = Utility(), Journal()
    body = interval(START, 10, 0) | members
    if all(name.isascii() for name in _names(body)):
        journal.add(kind, body, START)
        assert send(world, journal, 1, 1) == 1
        assert books(world).whole
    world.engine.dispose()


@given(energies=st.lists(st.integers(0, 2**53 - 1), min_size=1, max_size=4),
       starts=st.lists(st.integers(0, 2**53 - 1), min_size=4, max_size=4),
       spans=st.lists(st.integers(0, 40_000_000), min_size=4, max_size=4))
def test_monstrous_energies_overflow_nothing(energies: list[int], starts: list[int], spans: list[int]) -> None:
    world, journal = Utility(), Journal()
    for place, energy_wh in enumerate(energies):
        end = (START + timedelta(seconds=spans[place])).strftime("%Y-%m-%dT%H:%M:%SZ")
        end_wh = min(starts[place] + energy_wh, 2**53 - 1)
        journal.add("interval", interval(START, energy_wh, starts[place], register_end_wh=end_wh, end=end), START)
    assert send(world, journal, 1, len(energies)) == len(energies)
    assert books(world).whole
    world.engine.dispose()


def _names(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _names(inner)


@given(energies=Energies)
def test_a_changed_byte_breaks_the_seal(energies: list[int]) -> None:
    world, journal = Utility(), journal_of(energies)
    message = world.message(**journal.batch(1, len(energies)))
    payload = seal(message, key("device"))
    envelope = load(payload)
    body = dict(message) | {"first_seq": 2}
    forged = payload.replace(canonical(message), canonical(body))
    assert load(forged)["seal"] == envelope["seal"]
    handled = world.desk.handle(topics.up(DEVICE, "records"), forged)
    assert (handled.refused, opened(handled)) == ("bad-seal", [])
    world.engine.dispose()


@pytest.fixture(scope="module")
def postgres(postgres_bin: Path) -> Iterator[str]:
    """A real PostgreSQL of its own."""
    with postgres_url(postgres_bin) as url:
        yield url


@pytest.mark.req("P1-S3.1", "P1-S3.3")
@settings(max_examples=8)
@given(energies=Energies, flags=st.lists(FLAGS, min_size=1, max_size=4), data=st.data())
def test_every_watt_hour_is_taken_once_on_postgresql_too(
    postgres: str, energies: list[int], flags: list[list[str]], data: st.DataObject
) -> None:
    world, journal = on_fresh_postgres(postgres), journal_of(energies, flags)
    lose_and_repeat(world, journal, data)
    finish(world, journal)
    found = books(world)
    assert found.whole
    assert found.metered_wh == sum(energies)
    world.engine.dispose()


def on_fresh_postgres(url: str) -> Utility:
    """A utility in an empty schema: the ledger's own triggers refuse to be emptied."""
    from cloud.db import engine_for

    engine: Engine = engine_for(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return Utility(url)


@pytest.mark.req("P1-S1.10")
def test_a_hostile_topic_and_a_nul_are_kept_on_postgresql_too(postgres: str) -> None:
    world = on_fresh_postgres(postgres)
    assert world.desk.handle("esci/1/\x00\ud800/up/hello", b"\x00\xff").refused is not None
    journal = Journal()
    journal.add("session.bound", {"session": "a" * 32, "binding": "", "pev": "", "program": "\x00", "scenario": "first",
                                  "tariff": {"code": "x", "version": "y"}}, START)
    journal.add("x", {"\x00": "\x00"}, START)
    assert send(world, journal, 1, 2) == 2
    world.engine.dispose()
