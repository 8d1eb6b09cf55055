"""The ledger's entries: posted once, never changed, whatever speaks to the database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from cloud.db import create_schema, engine_for
from cloud.ledger import service
from cloud.ledger.core import Charged, ConflictError, Line, energy_charge
from ledger_postgres import postgres_url

CHARGED = Charged("PLAN", "1", "off-peak", 250_000, 1000, "")


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Engine]:
    """A fresh SQLite file."""
    engine = engine_for(f"sqlite:///{tmp_path / 'ledger.db'}")
    create_schema(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def postgres(postgres_bin: Path) -> Iterator[Engine]:
    """A real PostgreSQL of its own."""
    with postgres_url(postgres_bin) as url:
        engine = engine_for(url)
        create_schema(engine)
        yield engine
        engine.dispose()


WAYS_TO_CHANGE = (
    "UPDATE ledger_line SET amount_cents = 1",
    "DELETE FROM ledger_line",
    "UPDATE ledger_line SET credit_account = 'thief'",
)
WRONG_LINES = (
    "'k2', 0, '2025-07-16T03:00:00Z', 'm', 'a', 'b', -1, 'P', '1', 'x', 1, 1, ''",
    "'k2', 0, '2025-07-16T03:00:00Z', 'm', 'a', 'a', 1, 'P', '1', 'x', 1, 1, ''",
    "'k2', 0, '2025-07-16T03:00:00Z', 'm', 'a', 'b', 1, 'P', '1', 'x', 1, -1, ''",
    "'k2', 0, '2025-07-16T03:00:00Z', 'm', NULL, 'b', 1, 'P', '1', 'x', 1, 1, ''",
)


def refuses_every_change(engine: Engine, ways: tuple[str, ...]) -> None:
    with Session(engine) as session, session.begin():
        assert service.post(session, energy_charge("k", "2025-07-16T03:00:00Z", "acc-1", 25, CHARGED))
    for statement in (*ways, *(f"INSERT INTO ledger_line VALUES ({values})" for values in WRONG_LINES)):
        with engine.connect() as connection:
            with pytest.raises(DBAPIError):
                connection.execute(text(statement))
            connection.rollback()
    with Session(engine) as session:
        balance = service.trial_balance(session)
    assert [(one.account, one.debit_cents, one.credit_cents) for one in balance.accounts] == [
        ("customer:acc-1", 25, 0), ("revenue:energy", 0, 25)]


@pytest.mark.req("P1-S3.3")
def test_sqlite_refuses_every_change_of_a_posted_line(sqlite: Engine) -> None:
    replace = "INSERT OR REPLACE INTO ledger_line SELECT key, line, at, memo, debit_account, credit_account, 1, " \
        "tariff_code, tariff_version, period, price_micro_usd_per_kwh, energy_wh, session FROM ledger_line"
    refuses_every_change(sqlite, (*WAYS_TO_CHANGE, replace))


@pytest.mark.req("P1-S3.3")
def test_postgresql_refuses_every_change_of_a_posted_line(postgres: Engine) -> None:
    refuses_every_change(postgres, (*WAYS_TO_CHANGE, "TRUNCATE ledger_line"))


@pytest.mark.req("P1-S3.3")
def test_the_same_entry_is_posted_once_and_another_under_its_key_is_a_conflict(sqlite: Engine) -> None:
    entry = energy_charge("k", "2025-07-16T03:00:00Z", "acc-1", 25, CHARGED)
    with Session(sqlite) as session, session.begin():
        assert service.post(session, entry)
        assert not service.post(session, entry)
        with pytest.raises(ConflictError):
            service.post(session, energy_charge("k", "2025-07-16T03:00:00Z", "acc-1", 26, CHARGED))
        assert service.trial_balance(session).debit_cents == 25


def test_a_line_goes_from_one_account_to_another_and_is_not_negative() -> None:
    with pytest.raises(AssertionError):
        Line("a", "b", -1, CHARGED)
    with pytest.raises(AssertionError):
        Line("a", "a", 1, CHARGED)
