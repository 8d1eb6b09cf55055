"""Laws of the journal: numbers without holes, a chain that proves itself, nothing unacknowledged is ever lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.adapters.journal import Journal
from agent.core.effects import Record
from esci.messages import BATCH_RECORDS, RecordItem
from esci.reasons import Reason
from esci.records import ORIGIN, Happening, digest

EPOCH = 1_752_636_000
AT = "2025-07-16T03:20:00Z"


def happening(text: str) -> Record:
    return Record("event", Happening(code=Reason.METER_SILENT, session="", detail={"text": text}), AT, "synced")


def proven(journal: Journal, first_seq: int) -> list[str]:
    """Everything from first_seq on, read in batches, each proven against the digest before it."""
    texts: list[str] = []
    prev: str | None = ORIGIN if first_seq == 1 else None
    seq = first_seq
    while seq <= journal.last_seq:
        before, items = journal.batch(seq, BATCH_RECORDS)
        assert items
        assert prev is None or before == prev
        prev = before
        for item in map(RecordItem.model_validate_json, items):
            prev = digest(prev, journal.epoch, seq, item)
            detail = item.body["detail"]
            assert isinstance(detail, dict)
            texts.append(str(detail["text"]))
            seq += 1
    return texts


class JournalLife(RuleBasedStateMachine):
    """Any order of append, forget, reading and restart, against a plain list as the oracle."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal.db"
        self.journal = Journal(self.path, lambda: EPOCH, kept_records=4)
        self.written: list[str] = []
        self.acked = 0
        self.snapshot: str | None = None

    @rule(texts=st.lists(st.text(max_size=20).filter(lambda text: text.isprintable()), max_size=4),
          snapshot=st.none() | st.text(st.characters(codec="utf-8"), max_size=10))
    def append(self, texts: list[str], snapshot: str | None) -> None:
        assert self.journal.append([happening(text) for text in texts], snapshot) == len(self.written) + len(texts)
        self.written += texts
        self.snapshot = self.snapshot if snapshot is None else snapshot

    @rule(seq=st.integers(0, 60))
    def forget(self, seq: int) -> None:
        self.journal.forget(seq)
        if seq <= len(self.written):
            self.acked = max(self.acked, seq)

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = Journal(self.path, lambda: EPOCH + 1, kept_records=4)

    @precondition(lambda self: self.acked < len(self.written))
    @rule(count=st.integers(1, 300))
    def read_some(self, count: int) -> None:
        _, items = self.journal.batch(self.acked + 1, count)
        assert len(items) == min(count, BATCH_RECORDS, len(self.written) - self.acked)

    @invariant()
    def numbers_stand(self) -> None:
        assert (self.journal.epoch, self.journal.last_seq, self.journal.acked_seq) == (
            EPOCH, len(self.written), self.acked)
        assert self.journal.snapshot() == self.snapshot

    @invariant()
    def what_is_owed_is_there(self) -> None:
        assert proven(self.journal, self.acked + 1) == self.written[self.acked:]

    def teardown(self) -> None:
        self.journal.close()
        self.folder.cleanup()


JournalLife.TestCase.settings = settings(max_examples=20, stateful_step_count=20)


TestJournalLife = pytest.mark.req("P1-S3.1")(JournalLife.TestCase)


WRITER = """
import sys
from pathlib import Path
from agent.adapters.journal import Journal
from agent.core.effects import Record
from esci.reasons import Reason
from esci.records import Happening
journal = Journal(Path(sys.argv[1]), lambda: 7)
while True:
    body = Happening(code=Reason.METER_SILENT, session="", detail={"text": str(journal.last_seq + 1)})
    seq = journal.append([Record("event", body, "2025-07-16T03:20:00Z", "synced")], str(journal.last_seq + 1))
    print(seq, flush=True)
"""


@pytest.mark.req("P1-S3.1")
def test_no_record_whose_append_returned_is_lost_by_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    for lines in (3, 40, 11):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        with writer, writer.stdout as output:
            told = [int(output.readline()) for _ in range(lines)]
            os.kill(writer.pid, signal.SIGKILL)
            told += [int(line) for line in output.read().split("\n")[:-1]]
        journal = Journal(path, lambda: 8)
        assert journal.epoch == 7
        assert journal.last_seq >= told[-1]
        assert proven(journal, 1) == [str(seq) for seq in range(1, journal.last_seq + 1)]
        assert journal.snapshot() == str(journal.last_seq)  # records and snapshot stand or fall together
        journal.close()
