"""A weld bars power until a person says so, on a stopped agent, and the clearing is on record."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.adapters.journal import Journal, JournalUnavailableError
from agent.core.clock import Now
from agent.core.session import Snapshot
from agent.faults import clear_faults
from esci.reasons import Reason

NOW = Now(0, datetime(2025, 7, 16, tzinfo=UTC), synced=True)


def latched(path: Path) -> None:
    snapshot = Snapshot(default_tariff=None, interval_s=900, binding_wait_s=60, charge_without_binding=True, known={},
                        detect="", detect_at="", params_at="", unanswered=None, interval=None, session=None,
                        latched={Reason.CONTACTOR_WELDED: "seen closed"})
    journal = Journal(path, lambda: 7)
    journal.append([], snapshot.model_dump_json())
    journal.close()


@pytest.mark.req("P1-S2.7")
def test_a_latched_fault_ends_only_when_a_person_clears_it_and_that_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    latched(path)
    assert clear_faults(path, NOW) == ["The contactor may be welded: have a person look before it is used again."]
    journal = Journal(path, lambda: 8)
    text = journal.snapshot()
    assert text is not None and Snapshot.model_validate_json(text).latched == {}
    _, (text,) = journal.batch(1, 1)
    body = json.loads(text)["body"]
    assert body["code"] == "contactor-welded" and body["detail"] == {"cleared": "by a person"}
    journal.close()
    assert clear_faults(path, NOW) == []


def test_a_running_agent_keeps_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    latched(path)
    running = Journal(path, lambda: 7)
    with pytest.raises(JournalUnavailableError):
        clear_faults(path, NOW)
    running.close()


def test_without_a_journal_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(JournalUnavailableError, match="--config"):
        clear_faults(tmp_path / "journal.db", NOW)
    assert not (tmp_path / "journal.db").exists()
