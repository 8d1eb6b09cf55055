"""Posts entries once and adds the accounts up. It must not rate, and never commits (P1-S3.3)."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from cloud.ledger import store
from cloud.ledger.core import AccountBalance, ConflictError, Entry, TrialBalance


def post(session: Session, entry: Entry) -> bool:
    """True when posted now, False when these very lines were posted before. Raises ConflictError for other lines."""
    return post_all(session, (entry,)) == 1


def post_all(session: Session, entries: Sequence[Entry]) -> int:
    """How many were posted now; each of the others was posted before with these very lines.

    Raises ConflictError when one was posted with other lines, and then none is posted.
    """
    known = store.lines_of(session, [entry.key for entry in entries])
    new: list[Entry] = []
    for entry in entries:
        if entry.key not in known:
            known[entry.key] = entry.lines
            new.append(entry)
        elif known[entry.key] != entry.lines:
            raise ConflictError(f"{entry.key}: posted before with other lines; nothing was changed")
    store.add(session, new)
    return len(new)


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
