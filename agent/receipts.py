"""Receipts out of the journal, for the command line: the same intervals, tariffs and arithmetic as the bill (P1-B4)."""

import json
from dataclasses import dataclass
from pathlib import Path

from agent.adapters.journalview import SessionRow, session_intervals, sessions, tariffs
from agent.core.receipt import Statement, statement
from esci.messages import TariffRef
from esci.reasons import sentence
from esci.tariff import Line, Tariff, TariffDocument, parse
from esci.units import dollars, kwh


@dataclass(frozen=True, slots=True)
class PrintedReceipt:
    """One session's receipt."""

    row: SessionRow
    statement: Statement

    def as_json(self) -> dict[str, object]:
        """For machines."""
        row, total = self.row, self.statement.total
        lines = [{"start": interval.start, "end": interval.end, "energy_wh": interval.energy_wh,
                  "period": line.period if line else None,
                  "micro_usd_per_kwh": line.micro_usd_per_kwh if line else None,
                  "amount_cents": line.amount_cents if line else None, "flags": interval.flags}
                 for interval, line in self.statement.lines if interval.energy_wh > 0]
        return {"session": row.session, "began_at": row.began_at, "ended_at": row.ended_at, "program": row.program,
                "rate_reason": row.rate_reason, "unmetered": row.unmetered, "lines": lines,
                "energy_wh": None if row.energy_wh is None and row.ended_at else total.energy_wh,
                "pending_wh": total.pending_wh, "total_cents": total.total_cents}

    def as_text(self) -> str:
        """For people."""
        row, total = self.row, self.statement.total
        rate = f"program {row.program}" if row.program else "premises' default rate"
        why = f" ({sentence(row.rate_reason)})" if row.rate_reason else ""
        text = [f"Receipt of session {row.session}", f"{row.began_at} to {row.ended_at or 'now'}: {rate}{why}"]
        for interval, line in self.statement.lines:
            if interval.energy_wh == 0:
                continue
            span = f"{interval.start[11:19]} to {interval.end[11:19]}"
            price = "waits for the utility"
            if line is not None:
                price = f"{price_text(line)}  {line.period:20}{dollars(line.amount_cents):>8}"
            text.append(f"  {span} {kwh(interval.energy_wh):>9} kWh  {price}")
        if row.energy_wh is None and row.ended_at:
            text.append("  unmetered: the meter was silent, so no energy is stated and none is billed")
        else:
            text.append(f"  {'total':20}  {kwh(total.energy_wh):>9} kWh  {dollars(total.total_cents):>36} USD")
            if row.unmetered:
                text.append("  the meter fell silent during the session: later energy is not known and not in the sum")
        if total.pending_wh:
            text.append(f"  {kwh(total.pending_wh)} kWh of it wait for the utility's decision and are not in the sum")
        return "\n".join(text)


def price_text(line: Line) -> str:
    """`0.563680`: USD for a kWh, without floats."""
    return f"{line.micro_usd_per_kwh // 1_000_000}.{line.micro_usd_per_kwh % 1_000_000:06d}"


def read_receipt(journal: Path, session: str) -> PrintedReceipt | None:
    """The receipt of a session, or of the last one when none is named; None when there is no such session."""
    rows = sessions(journal)
    chosen = [row for row in rows if row.session == session] if session else rows[-1:]
    if not chosen:
        return None
    held: dict[tuple[str, str], Tariff] = {}
    for text in tariffs(journal):
        document = TariffDocument.model_validate(json.loads(text))
        held[document.code, document.version] = parse(document)

    def find(ref: TariffRef) -> Tariff | None:
        return held.get((ref.code, ref.version))

    return PrintedReceipt(chosen[0], statement(session_intervals(journal, chosen[0].session), find))
