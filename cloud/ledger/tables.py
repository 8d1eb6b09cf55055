"""The ledger's one table and the triggers that keep it append-only, on SQLite and PostgreSQL alike (P1-S3.3)."""

from sqlalchemy import DDL, BigInteger, CheckConstraint, String, Table, event
from sqlalchemy.orm import Mapped, mapped_column

from cloud.db import Base


class LedgerLineRow(Base):
    """One line: debit, credit and one amount, so it balances by construction."""

    __tablename__ = "ledger_line"
    __table_args__ = (
        CheckConstraint("amount_cents >= 0", name="ledger_amount_not_negative"),
        CheckConstraint("energy_wh >= 0", name="ledger_energy_not_negative"),
        CheckConstraint("debit_account <> credit_account", name="ledger_two_accounts"),
    )

    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[str] = mapped_column(String(20))
    memo: Mapped[str] = mapped_column(String(200))
    debit_account: Mapped[str] = mapped_column(String(100), index=True)
    credit_account: Mapped[str] = mapped_column(String(100), index=True)
    amount_cents: Mapped[int] = mapped_column(BigInteger)
    tariff_code: Mapped[str] = mapped_column(String(64))
    tariff_version: Mapped[str] = mapped_column(String(64))
    period: Mapped[str] = mapped_column(String(64))
    price_micro_usd_per_kwh: Mapped[int] = mapped_column(BigInteger)
    energy_wh: Mapped[int] = mapped_column(BigInteger)
    session: Mapped[str] = mapped_column(String(64), index=True)


_SENTENCE = "the ledger is append-only: correct it by adding a line"

# INSERT OR REPLACE deletes without firing delete triggers; the third trigger refuses it.
_SQLITE = (
    f"CREATE TRIGGER ledger_no_update BEFORE UPDATE ON ledger_line BEGIN SELECT RAISE(ABORT, '{_SENTENCE}'); END",
    f"CREATE TRIGGER ledger_no_delete BEFORE DELETE ON ledger_line BEGIN SELECT RAISE(ABORT, '{_SENTENCE}'); END",
    "CREATE TRIGGER ledger_no_replace BEFORE INSERT ON ledger_line "  # noqa: S608 - fixed text, no value from outside
    "WHEN EXISTS (SELECT 1 FROM ledger_line WHERE key = NEW.key AND line = NEW.line) "
    f"BEGIN SELECT RAISE(ABORT, '{_SENTENCE}'); END",
)
_POSTGRESQL = (
    "CREATE OR REPLACE FUNCTION ledger_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN RAISE EXCEPTION '{_SENTENCE}'; END $$",
    "CREATE TRIGGER ledger_no_change BEFORE UPDATE OR DELETE ON ledger_line "
    "FOR EACH ROW EXECUTE FUNCTION ledger_append_only()",
    "CREATE TRIGGER ledger_no_truncate BEFORE TRUNCATE ON ledger_line "
    "FOR EACH STATEMENT EXECUTE FUNCTION ledger_append_only()",
)


def _attach() -> None:
    table = LedgerLineRow.__table__
    assert isinstance(table, Table)
    for dialect, statements in (("sqlite", _SQLITE), ("postgresql", _POSTGRESQL)):
        for statement in statements:
            event.listen(table, "after_create", DDL(statement).execute_if(dialect=dialect))  # type: ignore[no-untyped-call]  # SQLAlchemy's


_attach()
