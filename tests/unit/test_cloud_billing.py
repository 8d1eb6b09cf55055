"""The statement for people says what is known, and says so where nothing is (P1-B6)."""

import pytest

from cloud.billing.core import SessionStatement, Statement, StatementLine, as_text

LINE = StatementLine("2025-07-16T03:55:00Z", "2025-07-16T04:00:00Z", 606, "summer-on-peak", 563680, 34,
                     "SCE-TOU-D-PRIME 2025-06-01", "A-1", "", "")
DOUBT = StatementLine("2025-07-16T04:00:00Z", "2025-07-16T04:30:00Z", 1200, None, None, None, "", "A-1", "",
                      "metering-gap")


def session(name: str, cents: int | None, receipt_cents: int | None, *lines: StatementLine) -> SessionStatement:
    posted = sum(line.energy_wh for line in lines if line.cents is not None)
    pending = sum(line.energy_wh for line in lines) - posted
    return SessionStatement(name, "evse-1", "", "2025-07-16T03:50:00Z", "2025-07-16T04:30:00Z", "unplugged",
                            "metered" if lines else "unmetered", "", posted + pending or None, posted, pending, cents,
                            receipt_cents, None if receipt_cents is None else receipt_cents == cents, tuple(lines))


@pytest.mark.req("P1-B6", "P1-S3.3")
def test_the_statement_names_price_doubt_and_what_is_not_known() -> None:
    sessions = (session("a" * 32, 34, 34, LINE, DOUBT), session("b" * 32, None, None))
    text = as_text(Statement("P-1", sessions, 606, 1200, 34, (("A-1", 34),)))
    assert "0.606 kWh  0.563680  summer-on-peak" in text
    assert "1.200 kWh  in doubt: metering-gap" in text
    assert "no amount: the meter was silent" in text
    assert "1.200 kWh wait in the exception queue" in text
    assert text.splitlines()[-3:-1] == ["total 0.606 kWh, 0.34 USD", "  account A-1: 0.34 USD"]


def test_a_receipt_that_differs_is_said() -> None:
    text = as_text(Statement("P-1", (session("a" * 32, 34, 35, LINE),), 606, 0, 34, (("A-1", 34),)))
    assert "the charger's receipt said 0.35 USD" in text
