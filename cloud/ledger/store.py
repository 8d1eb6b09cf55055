"""Every query on the ledger. Imported by cloud.ledger only."""

from collections.abc import Sequence
from typing import cast

from sqlalchemy import Table, func, insert, select
from sqlalchemy.orm import Session

from cloud.ledger.core import Charged, Entry, Line
from cloud.ledger.tables import LedgerLineRow

_TABLE = cast(Table, LedgerLineRow.__table__)
_KEYS_AT_ONCE = 500  # a statement takes a bounded number of values


def lines_of(session: Session, keys: Sequence[str]) -> dict[str, tuple[Line, ...]]:
    """The lines posted under each key, in order; a key that was never posted is not among them."""
    found: dict[str, tuple[Line, ...]] = {}
    for place in range(0, len(keys), _KEYS_AT_ONCE):
        asked = keys[place:place + _KEYS_AT_ONCE]
        query = select(LedgerLineRow).where(LedgerLineRow.key.in_(asked))
        for row in session.scalars(query.order_by(LedgerLineRow.key, LedgerLineRow.line)):
            found[row.key] = (*found.get(row.key, ()), _line(row))
    return found


def add(session: Session, entries: Sequence[Entry]) -> None:
    """Write the entries' lines; the primary key refuses a second time."""
    rows = [_row(entry, number, line) for entry in entries for number, line in enumerate(entry.lines)]
    if rows:
        session.execute(insert(_TABLE), rows)


def debits(session: Session) -> dict[str, int]:
    """Cents debited, by account."""
    account = LedgerLineRow.debit_account
    rows = session.execute(select(account, func.sum(LedgerLineRow.amount_cents)).group_by(account))
    return {row[0]: int(row[1]) for row in rows}


def credits(session: Session) -> dict[str, int]:
    """Cents credited, by account."""
    account = LedgerLineRow.credit_account
    rows = session.execute(select(account, func.sum(LedgerLineRow.amount_cents)).group_by(account))
    return {row[0]: int(row[1]) for row in rows}


def energy_wh(session: Session, key_prefix: str) -> int:
    """Watt-hours of every line whose key begins so."""
    query = select(func.coalesce(func.sum(LedgerLineRow.energy_wh), 0))
    return int(session.scalar(query.where(LedgerLineRow.key.startswith(key_prefix, autoescape=True))) or 0)


def _line(row: LedgerLineRow) -> Line:
    charged = Charged(
        row.tariff_code, row.tariff_version, row.period, row.price_micro_usd_per_kwh, row.energy_wh, row.session
    )
    return Line(row.debit_account, row.credit_account, row.amount_cents, charged)


def _row(entry: Entry, number: int, line: Line) -> dict[str, str | int]:
    charged = line.charged
    return {
        "key": entry.key,
        "line": number,
        "at": entry.at,
        "memo": entry.memo,
        "debit_account": line.debit_account,
        "credit_account": line.credit_account,
        "amount_cents": line.amount_cents,
        "tariff_code": charged.tariff_code,
        "tariff_version": charged.tariff_version,
        "period": charged.period,
        "price_micro_usd_per_kwh": charged.price_micro_usd_per_kwh,
        "energy_wh": charged.energy_wh,
        "session": charged.session,
    }
