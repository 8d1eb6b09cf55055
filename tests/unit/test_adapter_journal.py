"""The journal: one clear sentence for each way in which a file can fail, and proof of what it stores."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.adapters import journal as module
from agent.adapters import journalview
from agent.adapters.journal import (
    Journal,
    JournalCorruptError,
    JournalError,
    JournalUnavailableError,
    open_read_only,
    set_aside,
)
from agent.core.effects import Record
from esci.messages import RecordItem, TariffRef, Wire
from esci.reasons import Reason
from esci.records import Happening, Interval, SessionBegun, SessionBound, SessionEnded, digest

AT = "2025-07-16T03:20:00Z"
SESSION = "a" * 32
BINDING = "b" * 32
PEV = "1HGCM82633A004352"
E1 = TariffRef(code="TOU-D", version="1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    opened = Journal(path, lambda: 1, busy_s=0.05)
    yield opened
    opened.close()


def event(number: int, size: int = 0) -> Record:
    return Record("event", Happening(code=Reason.METER_SILENT, session="", detail={"n": number, "pad": "x" * size}),
                  AT, "synced")


def other_hand(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


# ---- keeping ----


@pytest.mark.req("P1-S3.1", "P1-N1")
def test_an_interval_comes_back_as_it_was_written(journal: Journal) -> None:
    body = Interval(session=SESSION, binding=BINDING, pev=PEV, premises="home", tariff=E1, rate_reason=None,
                    start="2025-07-16T03:15:00Z", end=AT, register_start_wh=1000, register_end_wh=1500, energy_wh=500,
                    flags=["clock-unsynced"])
    assert journal.append([event(1), Record("interval", body, AT, "unsynced")], '{"a":1}') == 2
    prev, texts = journal.batch(2, 1)
    assert prev == digest("0" * 64, 1, 1, RecordItem.model_validate_json(journal.batch(1, 1)[1][0]))
    item = RecordItem.model_validate_json(texts[0])
    assert (item.kind, item.at, item.clock) == ("interval", AT, "unsynced")
    assert Interval.model_validate(item.body | {"rate_reason": None}) == body


def test_an_ordinary_record_costs_less_than_a_kilobyte(journal: Journal, path: Path) -> None:
    body = Interval(session=SESSION, binding=BINDING, pev=PEV, premises="premises-0001", tariff=E1,
                    rate_reason=Reason.UTILITY_UNREACHABLE, start=AT, end=AT, register_start_wh=10**9,
                    register_end_wh=10**9, energy_wh=0, flags=["gap", "clock-unsynced"])
    journal.append([Record("interval", body, AT, "synced")] * 1000, None)
    journal.close()
    assert path.stat().st_size < 1000 * 1000


def test_a_batch_is_bounded_in_records_and_bytes(journal: Journal) -> None:
    journal.append([event(number) for number in range(250)], None)
    assert len(journal.batch(1, 1000)[1]) == 200
    journal.append([event(number, size=60_000) for number in range(5)], None)
    assert len(journal.batch(251, 200)[1]) == 3


def test_a_batch_of_what_is_not_stored_is_refused_in_a_sentence(journal: Journal) -> None:
    journal.append([event(1)], None)
    for seq in (0, 2):
        with pytest.raises(JournalError, match=f"record {seq} is not stored, only 1 to 1"):
            journal.batch(seq, 1)


@pytest.mark.req("P1-S3.1")
def test_acknowledged_records_are_thinned_and_the_owed_ones_never(path: Path) -> None:
    journal = Journal(path, lambda: 1, kept_records=10)
    journal.append([event(number) for number in range(1, 31)], None)
    journal.forget(5)
    assert len(journal.batch(6, 200)[1]) == 25
    journal.forget(28)
    with pytest.raises(JournalError, match="only 22 to 30"):
        journal.batch(21, 1)
    assert len(journal.batch(22, 200)[1]) == 9
    journal.close()
    again = Journal(path, lambda: 2, kept_records=10)
    assert (again.epoch, again.acked_seq, again.last_seq) == (1, 28, 30)
    again.close()


def test_an_acknowledgement_beyond_the_last_record_changes_nothing(journal: Journal) -> None:
    journal.append([event(1)], None)
    journal.forget(2)
    assert journal.acked_seq == 0
    journal.forget(1)
    journal.forget(0)
    assert journal.acked_seq == 1


def test_tariffs_are_kept_and_the_same_version_is_replaced(journal: Journal, path: Path) -> None:
    journal.keep_tariff("B", "1", "b1")
    journal.keep_tariff("A", "2", "a2")
    journal.keep_tariff("A", "2", "a2 again")
    assert journal.tariffs() == ["a2 again", "b1"] == journalview.tariffs(path)


# ---- failing ----


def test_a_locked_journal_is_named_and_nothing_is_written(journal: Journal, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalUnavailableError, match=r"journal\.db is locked by another process: "):
        journal.append([event(1)], "s")
    other.execute("ROLLBACK")
    other.close()
    assert (journal.last_seq, journal.snapshot()) == (0, None)
    assert journal.append([event(1)], "s") == 1


def test_a_second_agent_is_refused(journal: Journal, path: Path) -> None:
    with pytest.raises(JournalUnavailableError, match="an agent runs already"):
        Journal(path, lambda: 2)


def test_a_full_journal_says_so_and_keeps_what_it_has(path: Path) -> None:
    journal = Journal(path, lambda: 1, pages_max=24)
    with pytest.raises(JournalUnavailableError, match=r"journal\.db is full: free space"):
        for number in range(1000):
            journal.append([event(number, size=500)], None)
    assert journal.last_seq == len(journal.batch(1, 200)[1])
    held = journal.last_seq
    journal.forget(held - 3)  # now there is something that may go
    assert journal.append([event(number, size=500) for number in range(5)], None) == held + 5
    assert len(journal.batch(held - 2, 200)[1]) == 8
    journal.close()


def test_a_read_only_journal_says_so(journal: Journal) -> None:
    journal._db.execute("PRAGMA query_only = ON")
    with pytest.raises(JournalUnavailableError, match=r"journal\.db is read-only: mount its disk for writing"):
        journal.append([event(1)], None)


def test_a_journal_of_another_user_is_refused_in_a_sentence(path: Path, journal: Journal) -> None:
    """Root may do anything, so the attempt is made by user `nobody`, in a folder that it can reach."""
    script = ("import os, sys; from pathlib import Path\n"
              "from agent.adapters.journal import Journal, JournalUnavailableError\n"
              "os.chdir(sys.argv[1])\n"
              "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
              "else: os.chmod('.', 0o500); os.chmod('journal.db.lock', 0o400)\n"
              "try: Journal(Path('journal.db'), lambda: 1)\n"
              "except JournalUnavailableError as error: print(error)\n")
    done = subprocess.run([sys.executable, "-c", script, path.parent], capture_output=True, text=True, check=False)
    os.chmod(path.parent, 0o700)
    assert "journal.db cannot be opened (Permission denied): create its folder" in done.stdout, done.stderr


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(JournalUnavailableError, match=r"cannot be opened .*: create its folder"):
        Journal(tmp_path / "none" / "journal.db", lambda: 1)


@pytest.mark.parametrize(("damage", "sentence"), [
    ("UPDATE record SET body = replace(body, '\"n\":7', '\"n\":8') WHERE seq = 7", "record 7 is not what was written"),
    ("UPDATE record SET at = '2025-07-16T03:20:01Z' WHERE seq = 7", "record 7 is not what was written"),
    ("UPDATE record SET body = '{' WHERE seq = 7", "record 7 is not what was written"),
    ("DELETE FROM record WHERE seq = 7", "record 7 is missing"),
    ("UPDATE record SET seq = 99 WHERE seq = 10", "record 10 is missing"),
    ("UPDATE meta SET acked_seq = 11", "do not fit acknowledgement 11"),
    ("UPDATE meta SET epoch = 2", "record 1 is not what was written"),
    ("DELETE FROM record WHERE seq < 4", "records 4 to 10 do not fit acknowledgement 0"),
    ("DELETE FROM meta", "its epoch is missing"),
])  # fmt: skip
def test_a_damaged_journal_is_found_at_start(path: Path, damage: str, sentence: str) -> None:
    journal = Journal(path, lambda: 1)
    journal.append([event(number) for number in range(1, 11)], None)
    journal.close()
    other_hand(path, damage)
    with pytest.raises(JournalCorruptError, match=f"journal.db is damaged: .*{sentence}"):
        Journal(path, lambda: 1)
    set_aside(path)
    fresh = Journal(path, lambda: 2)
    assert (fresh.epoch, fresh.last_seq) == (2, 0)
    fresh.close()


def test_a_record_damaged_while_running_is_not_sent(journal: Journal, path: Path) -> None:
    journal.append([event(number) for number in range(1, 4)], None)
    other_hand(path, "UPDATE record SET clock = 'unsynced' WHERE seq = 2")
    with pytest.raises(JournalCorruptError, match="record 2 is not what was written"):
        journal.batch(1, 3)


def test_a_file_that_is_no_journal_is_not_overwritten(path: Path) -> None:
    path.write_bytes(b"photographs of my dog" * 1000)
    with pytest.raises(JournalCorruptError, match="keep the file"):
        Journal(path, lambda: 1)
    assert path.read_bytes().startswith(b"photographs")
    assert set_aside(path).read_bytes().startswith(b"photographs")


def test_a_journal_of_later_software_is_left_alone(path: Path) -> None:
    Journal(path, lambda: 1).close()
    other_hand(path, f"PRAGMA user_version = {module.SCHEMA + 1}")
    with pytest.raises(JournalError, match="another version of the software"):
        Journal(path, lambda: 1)


# ---- the view ----


def test_the_view_tells_sessions_and_their_intervals_and_cannot_write(journal: Journal, path: Path) -> None:
    def add(kind: str, body: Wire) -> None:
        journal.append([Record(kind, body, AT, "synced")], None)

    add("session.begun", SessionBegun(session=SESSION, premises="home", register_wh=1000))
    assert journalview.sessions(path)[0].ended_at is None
    add("session.bound", SessionBound(session=SESSION, binding=BINDING, pev=PEV, program="ev", tariff=E1,
                                      scenario="first"))
    add("interval", Interval(session=SESSION, binding=BINDING, pev=PEV, premises="home", tariff=E1, rate_reason=None,
                             start=AT, end=AT, register_start_wh=1000, register_end_wh=1500, energy_wh=500, flags=[]))
    add("session.ended", SessionEnded(session=SESSION, reason=Reason.UNPLUGGED, energy_wh=None, pending_wh=0,
                                      receipt_cents=None, unmetered=True, register_wh=None))
    row = journalview.sessions(path)[0]
    assert (row.pev, row.binding, row.program, row.end_reason) == (PEV, BINDING, "ev", "unplugged")
    assert (row.energy_wh, row.receipt_cents, row.unmetered) == (None, None, True)
    assert [interval.energy_wh for interval in journalview.session_intervals(path, SESSION)] == [500]
    assert journalview.session_intervals(path, "") == []
    connection = open_read_only(path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM record")
    connection.close()


def test_the_view_of_nothing_is_a_sentence(path: Path) -> None:
    with pytest.raises(JournalUnavailableError, match="does not exist: has the agent run here"):
        journalview.sessions(path)
    path.write_bytes(b"x" * 5000)
    with pytest.raises(JournalUnavailableError, match="cannot be read"):
        journalview.sessions(path)
