"""Every query on the ledger. Imported by cloud.ledger only."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cloud.ledger.core import Charged, Entry, Line
from cloud.ledger.tables import LedgerLineRow


def lines_of(session: Session, key: str) -> tuple[Line, ...]:
    """The lines posted under a key, in order; none when it was never posted."""
    rows = session.scalars(select(LedgerLineRow).where(LedgerLineRow.key == key).order_by(LedgerLineRow.line))
    return tuple(_line(row) for row in rows)


def add(session: Session, entry: Entry) -> None:
    """Write the entry's lines; the primary key refuses a second time."""
    for number, line in enumerate(entry.lines):
        charged = line.charged
        session.add(
            LedgerLineRow(
                key=entry.key,
                line=number,
                at=entry.at,
                memo=entry.memo,
                debit_account=line.debit_account,
                credit_account=line.credit_account,
                amount_cents=line.amount_cents,
                tariff_code=charged.tariff_code,
                tariff_version=charged.tariff_version,
                period=charged.period,
                price_micro_usd_per_kwh=charged.price_micro_usd_per_kwh,
                energy_wh=charged.energy_wh,
                session=charged.session,
            )
        )
    session.flush()


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
