"""Posts entries once and adds the accounts up. It must not rate, and never commits (P1-S3.3)."""

from sqlalchemy.orm import Session

from cloud.ledger import store
from cloud.ledger.core import AccountBalance, ConflictError, Entry, TrialBalance


def post(session: Session, entry: Entry) -> bool:
    """True when posted now, False when these very lines were posted before. Raises ConflictError for other lines."""
    known = store.lines_of(session, entry.key)
    if not known:
        store.add(session, entry)
        return True
    if known != entry.lines:
        raise ConflictError(f"{entry.key}: posted before with other lines; nothing was changed")
    return False


def trial_balance(session: Session) -> TrialBalance:
    """Every account with both its sums, in cents, by name."""
    debit, credit = store.debits(session), store.credits(session)
    accounts = tuple(
        AccountBalance(account, debit.get(account, 0), credit.get(account, 0)) for account in sorted(debit | credit)
    )
    balance = TrialBalance(accounts, sum(debit.values()), sum(credit.values()), store.energy_wh(session, ""))
    assert balance.balanced, f"debits {balance.debit_cents} and credits {balance.credit_cents} cents differ"
    return balance


def energy_wh(session: Session, key_prefix: str) -> int:
    """Watt-hours posted under keys that begin so, e.g. `interval:evse-1:`."""
    return store.energy_wh(session, key_prefix)
