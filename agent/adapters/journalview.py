"""What the journal holds, for commands that run beside the agent: sessions, their intervals, tariffs. It cannot write.

Only the command line imports this: the running agent must stay free of sqlite-utils.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import sqlite_utils

from agent.adapters.journal import open_read_only
from esci.records import Interval, SessionBegun, SessionBound, SessionEnded, SessionUnbound


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One plug-in as the journal tells it. None is unknown or not yet; energy_wh None after the end: unmetered."""

    session: str
    began_at: str
    ended_at: str | None = None
    pev: str = ""
    binding: str = ""
    program: str = ""
    rate_reason: str = ""  # why the default rate applies
    end_reason: str = ""
    energy_wh: int | None = None
    pending_wh: int | None = None
    receipt_cents: int | None = None
    unmetered: bool | None = None


def sessions(path: Path) -> list[SessionRow]:
    """All sessions whose beginning is still stored, oldest first. Raises JournalUnavailableError."""
    found: dict[str, SessionRow] = {}
    for kind, at, text in _rows(path, "kind LIKE 'session.%'"):
        match kind:
            case "session.begun":
                begun = SessionBegun.model_validate_json(text)
                found[begun.session] = SessionRow(begun.session, at)
            case "session.bound":
                bound = SessionBound.model_validate_json(text)
                if bound.session in found:
                    found[bound.session] = replace(found[bound.session], pev=bound.pev, binding=bound.binding,
                                                   program=bound.program, rate_reason="")
            case "session.unbound":
                unbound = SessionUnbound.model_validate_json(text)
                if unbound.session in found:
                    found[unbound.session] = replace(
                        found[unbound.session], pev=unbound.pev, rate_reason=unbound.reason.value)
            case "session.ended":
                ended = SessionEnded.model_validate_json(text)
                if ended.session in found:
                    found[ended.session] = replace(
                        found[ended.session], ended_at=at, end_reason=ended.reason.value, energy_wh=ended.energy_wh,
                        pending_wh=ended.pending_wh, receipt_cents=ended.receipt_cents, unmetered=ended.unmetered)
    return list(found.values())


def session_intervals(path: Path, session: str) -> list[Interval]:
    """The stored intervals of one session ("": idle time), oldest first. Raises JournalUnavailableError."""
    rows = _rows(path, "kind = 'interval' AND json_extract(body, '$.session') = ?", session)
    return [Interval.model_validate_json(text) for _, _, text in rows]


def tariffs(path: Path) -> list[str]:
    """The documents (JSON) of all stored tariff versions, by code and version. Raises JournalUnavailableError."""
    with closing(open_read_only(path)) as connection:
        database = sqlite_utils.Database(connection)
        return [str(row["document"]) for row in database["tariff"].rows_where(order_by="code, version")]


def _rows(path: Path, where: str, *arguments: str) -> list[tuple[str, str, str]]:
    """(kind, at, body) of the matching records, oldest first."""
    with closing(open_read_only(path)) as connection:
        database = sqlite_utils.Database(connection)
        found = database["record"].rows_where(where, arguments, order_by="seq")
        return [(str(row["kind"]), str(row["at"]), str(row["body"])) for row in found]
