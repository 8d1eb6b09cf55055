"""Faults that only a person may end: a weld or a bypass bars power, also after a restart, until somebody has looked.

It writes into the journal of a stopped agent; the journal's lock refuses it while the agent runs.
"""

import secrets
from pathlib import Path

from agent.adapters.journal import Journal, JournalUnavailableError
from agent.core.clock import Now
from agent.core.metering import record
from agent.core.session import Snapshot
from esci.reasons import sentence
from esci.records import Happening


def clear_faults(journal_path: Path, now: Now) -> list[str]:
    """The sentences of the faults that were latched and are no longer; each clearing is recorded.

    Raises JournalUnavailableError when there is no journal or the agent holds it.
    """
    if not journal_path.exists():
        raise JournalUnavailableError(f"{journal_path}: no such file: name the right configuration with --config")
    journal = Journal(journal_path, lambda: secrets.randbits(48))
    try:
        text = journal.snapshot()
        snapshot = None if text is None else Snapshot.model_validate_json(text)
        if snapshot is None or not snapshot.latched:
            return []
        cleared = [record("event", Happening(code=code, session="", detail={"cleared": "by a person"}), now)
                   for code in snapshot.latched]
        journal.append(cleared, snapshot.model_copy(update={"latched": {}}).model_dump_json())
        return [sentence(code) for code in snapshot.latched]
    finally:
        journal.close()
