"""What an entry of the ledger is. Pure; it must not rate and knows no table (P1-S3.3).

Each line names the account debited, the account credited and one amount: it cannot be out of balance.
"""

from dataclasses import dataclass

REVENUE_ENERGY = "revenue:energy"


class ConflictError(Exception):
    """The same key came again with other lines: never overwrite, show an operator."""


@dataclass(frozen=True, slots=True)
class Charged:
    """What a line was charged for. The price is all-in, in micro-USD per kWh."""

    tariff_code: str
    tariff_version: str
    period: str
    price_micro_usd_per_kwh: int
    energy_wh: int
    session: str


@dataclass(frozen=True, slots=True)
class Line:
    """One amount, in cents, zero or more, that goes from one account to another."""

    debit_account: str
    credit_account: str
    amount_cents: int
    charged: Charged

    def __post_init__(self) -> None:
        assert self.amount_cents >= 0, f"{self.amount_cents} cents: turn the accounts round instead"
        assert self.debit_account != self.credit_account, f"{self.debit_account} cannot pay itself"


@dataclass(frozen=True, slots=True)
class Entry:
    """Lines that are posted together. The key names what they are for, and is posted once. `at` is UTC text."""

    key: str
    at: str
    memo: str
    lines: tuple[Line, ...]

    def __post_init__(self) -> None:
        assert self.lines, f"{self.key} has no lines"


@dataclass(frozen=True, slots=True)
class AccountBalance:
    """The sums of both sides of one account, in cents."""

    account: str
    debit_cents: int
    credit_cents: int


@dataclass(frozen=True, slots=True)
class TrialBalance:
    """Every account and both sums over all of them."""

    accounts: tuple[AccountBalance, ...]
    debit_cents: int
    credit_cents: int
    energy_wh: int

    @property
    def balanced(self) -> bool:
        """True while debits equal credits."""
        return self.debit_cents == self.credit_cents


def customer(account_id: str) -> str:
    """The ledger's name of a customer's account."""
    return f"customer:{account_id}"


def energy_charge(key: str, at: str, account_id: str, amount_cents: int, charged: Charged) -> Entry:
    """The entry that debits a customer for energy and credits the utility's revenue (P1-S3.3)."""
    line = Line(customer(account_id), REVENUE_ENERGY, amount_cents, charged)
    return Entry(key, at, "energy", (line,))
