"""The journal in SQLite: the one append-only, hash-chained stream that must not be lost (P1-S3.1, P1-N1).

It stores what it is given and proves that it is unchanged. It must not decide what to record, to send or to forget.
One connection, one thread. A record takes under 1 kB, the file at most PAGES_MAX pages (96 MiB: over 400 days of
15-minute intervals with their sessions), the write-ahead log about 1 MiB. Only this module imports sqlite3.
"""

import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

from agent.core.effects import Record
from esci.messages import BATCH_RECORDS, ClockQuality
from esci.records import ORIGIN, item_text, raw_digest, stored_digest
from esci.seal import canonical

SCHEMA: Final = 1
PAGES_MAX: Final = 24_576  # of 4 KiB
KEPT_RECORDS: Final = 45_000  # 400 days of 96 intervals, and 6,600 for sessions and events
SLICE: Final = 500  # rows that one transaction thins at most
BATCH_BYTES: Final = 200_000
BODY_BYTES: Final = 65_536
CHECKED_AT_START: Final = 100

_TABLES = (
    "CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), schema INTEGER NOT NULL, epoch INTEGER NOT NULL,"
    " acked_seq INTEGER NOT NULL) STRICT",
    "CREATE TABLE record (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, at TEXT NOT NULL, clock TEXT NOT NULL,"
    " body TEXT NOT NULL, digest BLOB NOT NULL CHECK (length(digest) = 32)) STRICT",
    "CREATE TABLE snapshot (one INTEGER PRIMARY KEY CHECK (one = 1), text TEXT NOT NULL) STRICT",
    "CREATE TABLE tariff (code TEXT NOT NULL, version TEXT NOT NULL, document TEXT NOT NULL,"
    " PRIMARY KEY (code, version)) STRICT, WITHOUT ROWID",
)
_CODES_SHIFT = 0xFF  # an extended SQLite error code holds the primary one in its low byte

log = logging.getLogger(__name__)


class JournalError(Exception):
    """The journal cannot do what was asked; the text says what, where and what to do."""


class JournalUnavailableError(JournalError):
    """Locked, full, read-only or out of reach: nothing was written."""


class JournalCorruptError(JournalError):
    """What is stored is not what was written."""


class Journal:
    """See `agent.ports.Journal`. Open it in the thread that uses it."""

    def __init__(
        self,
        path: Path,
        new_epoch: Callable[[], int],
        *,
        busy_s: float = 2.0,
        pages_max: int = PAGES_MAX,
        kept_records: int = KEPT_RECORDS,
    ) -> None:
        """Opens the journal, or begins one named new_epoch(). Raises JournalError and its kinds."""
        self._path = path
        self._kept_records = kept_records
        self._epoch = self._first_seq = self._last_seq = self._acked_seq = 0  # _first_seq 0: no record is stored
        self._tail = ORIGIN
        self._snapshot: str | None = None
        self._full = False
        self._lock = _take_lock(path)
        try:
            with self._translated():
                self._db = sqlite3.connect(path, timeout=busy_s, isolation_level=None)
            try:
                self._open(new_epoch, pages_max)
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def epoch(self) -> int:
        """The name of this life of the journal."""
        return self._epoch

    @property
    def last_seq(self) -> int:
        """Number of the newest record; 0 when there is none."""
        return self._last_seq

    @property
    def acked_seq(self) -> int:
        """The utility has every record up to and including this one; 0 means none."""
        return self._acked_seq

    def append(self, records: Sequence[Record], snapshot: str | None) -> int:
        """The new last_seq. Records and snapshot (None: keep the old one) are on disk together, or neither is.

        Raises JournalUnavailableError when nothing was written.
        """
        rows = self._rows(records)
        changed = snapshot is not None and snapshot != self._snapshot
        if not rows and not changed:
            return self._last_seq
        try:
            self._write(rows, snapshot if changed else None)
        except JournalUnavailableError:
            if not self._make_room():
                raise
            self._write(rows, snapshot if changed else None)
        if rows:
            self._last_seq, self._tail = rows[-1][0], rows[-1][5].hex()
            self._first_seq = self._first_seq or rows[0][0]
        if changed:
            self._snapshot = snapshot
        return self._last_seq

    def snapshot(self) -> str | None:
        """The text last given to `append`; None before the first."""
        return self._snapshot

    def batch(self, first_seq: int, count: int) -> tuple[str, list[str]]:
        """The digest before first_seq and up to `count` records from it on, within BATCH_RECORDS and BATCH_BYTES.

        A record comes as the canonical text of its `RecordItem`: what was written is sent, nothing is made anew.

        Raises JournalCorruptError when a record is not what was written, JournalError when first_seq is not stored.
        """
        oldest = 1 if self._first_seq <= 1 else self._first_seq + 1  # the oldest row only proves the next one
        if not oldest <= first_seq <= self._last_seq:
            raise JournalError(f"{self._path}: record {first_seq} is not stored, only {oldest} to {self._last_seq}")
        before = ORIGIN if first_seq == 1 else self._digest(first_seq - 1)
        items: list[str] = []
        prev, size = before, 0
        for row in self._read(first_seq, min(count, BATCH_RECORDS)):
            item, prev = self._checked(row, first_seq + len(items), prev)
            size += len(row[4].encode()) + 120
            if items and size > BATCH_BYTES:
                break
            items.append(item)
        return before, items

    def forget(self, seq: int) -> None:
        """Sets acked_seq when seq is beyond it, and thins old acknowledged records by one slice.

        A seq that was never written is logged and changes nothing. Raises JournalUnavailableError.
        """
        if seq > self._last_seq:
            log.error("utility acknowledged a record that is not written",
                      extra={"seq": seq, "last_seq": self._last_seq})
            return
        if seq <= self._acked_seq:
            return
        first_seq = self._thinned(seq, self._last_seq - self._kept_records + 1)
        with self._transaction():
            self._db.execute("UPDATE meta SET acked_seq = ?", (seq,))
            if first_seq > self._first_seq:
                self._db.execute("DELETE FROM record WHERE seq < ?", (first_seq,))
        self._acked_seq, self._first_seq = seq, first_seq

    def keep_tariff(self, code: str, version: str, document: str) -> None:
        """Stores one tariff version for good; the same version again replaces its document."""
        with self._transaction():
            self._db.execute("INSERT INTO tariff (code, version, document) VALUES (?, ?, ?) ON CONFLICT (code, version)"
                             " DO UPDATE SET document = excluded.document", (code, version, document))

    def tariffs(self) -> list[str]:
        """The documents of all stored tariff versions, by code and version."""
        with self._translated():
            return [row[0] for row in self._db.execute("SELECT document FROM tariff ORDER BY code, version")]

    def close(self) -> None:
        """Ends the use of the file; what was appended is on disk already."""
        self._db.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # ---- opening ----

    def _open(self, new_epoch: Callable[[], int], pages_max: int) -> None:
        with self._translated():
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA wal_autocheckpoint = 256")
            self._db.execute("PRAGMA journal_size_limit = 2097152")
            self._db.execute("PRAGMA cache_size = -512")
            self._db.execute(f"PRAGMA max_page_count = {int(pages_max)}")
            schema = self._db.execute("PRAGMA user_version").fetchone()[0]
        if schema == 0:
            self._create(new_epoch())
        elif schema != SCHEMA:
            raise JournalError(f"{self._path}: written by another version of the software (schema {schema}, this one"
                               f" knows {SCHEMA}): install that version, or move the file away to begin a new journal")
        self._load()
        self._verify_tail()

    def _create(self, epoch: int) -> None:
        with self._transaction():
            for statement in _TABLES:
                self._db.execute(statement)
            self._db.execute("INSERT INTO meta (one, schema, epoch, acked_seq) VALUES (1, ?, ?, 0)", (SCHEMA, epoch))
            self._db.execute(f"PRAGMA user_version = {SCHEMA}")

    def _load(self) -> None:
        with self._translated():
            meta = self._db.execute("SELECT epoch, acked_seq FROM meta").fetchone()
            first, last = self._db.execute("SELECT min(seq), max(seq) FROM record").fetchone()
            text = self._db.execute("SELECT text FROM snapshot").fetchone()
        if meta is None:
            raise self._corrupt("its epoch is missing")
        self._epoch, self._acked_seq = meta
        self._first_seq, self._last_seq = first or 0, last or 0
        self._snapshot = None if text is None else text[0]
        self._tail = ORIGIN if last is None else self._digest(last)
        if not 0 <= self._acked_seq <= self._last_seq or self._first_seq > max(self._acked_seq, 1):
            raise self._corrupt(f"records {self._first_seq} to {self._last_seq} do not fit acknowledgement"
                                f" {self._acked_seq}")

    def _verify_tail(self) -> None:
        """The newest records hang together; older ones are proven when they are read."""
        seq = max(self._first_seq, self._last_seq - CHECKED_AT_START + 1)
        if seq == 0:
            return
        prev = ORIGIN
        if seq > 1:
            prev, seq = self._digest(seq), seq + 1  # the oldest one's predecessor may have been thinned
        for row in self._read(seq, CHECKED_AT_START):
            _, prev = self._checked(row, seq, prev)
            seq += 1
        if seq != self._last_seq + 1:
            raise self._corrupt(f"record {seq} is missing")

    # ---- reading and writing ----

    def _rows(self, records: Sequence[Record]) -> list[tuple[int, str, str, str, str, bytes]]:
        rows = []
        seq, prev = self._last_seq, self._tail
        for record in records:
            seq += 1
            body = record.body.model_dump(mode="json")
            text = canonical(body).decode()
            assert len(text) <= BODY_BYTES, f"a {record.kind} of {len(text)} bytes"
            prev = raw_digest(prev, self._epoch, seq, record.kind, record.at, cast(ClockQuality, record.clock), body)
            rows.append((seq, record.kind, record.at, record.clock, text, bytes.fromhex(prev)))
        return rows

    def _write(self, rows: list[tuple[int, str, str, str, str, bytes]], snapshot: str | None) -> None:
        with self._transaction():
            self._db.executemany(
                "INSERT INTO record (seq, kind, at, clock, body, digest) VALUES (?, ?, ?, ?, ?, ?)", rows)
            if snapshot is not None:
                self._db.execute("INSERT INTO snapshot (one, text) VALUES (1, ?)"
                                 " ON CONFLICT (one) DO UPDATE SET text = excluded.text", (snapshot,))

    def _read(self, first_seq: int, count: int) -> list[tuple[int, str, str, str, str, bytes]]:
        with self._translated():
            return self._db.execute("SELECT seq, kind, at, clock, body, digest FROM record WHERE seq >= ?"
                                    " ORDER BY seq LIMIT ?", (first_seq, count)).fetchall()

    def _digest(self, seq: int) -> str:
        with self._translated():
            row = self._db.execute("SELECT digest FROM record WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            raise self._corrupt(f"record {seq} is missing")
        return bytes(row[0]).hex()

    def _checked(self, row: tuple[int, str, str, str, str, bytes], seq: int, prev: str) -> tuple[str, str]:
        """The record's text and its digest, proven against the one before it."""
        found, kind, at, clock, text, digest = row
        if found != seq:
            raise self._corrupt(f"record {seq} is missing")
        try:
            proof = stored_digest(prev, self._epoch, seq, kind, at, clock, text)
        except UnicodeEncodeError as error:
            raise self._corrupt(f"record {seq} cannot be read") from error
        if proof != digest.hex():
            raise self._corrupt(f"record {seq} is not what was written")
        return item_text(kind, at, clock, text), proof

    def _thinned(self, acked_seq: int, wanted: int) -> int:
        """The first_seq after thinning a slice towards `wanted`. Record acked_seq stays: the next hangs on it."""
        return max(self._first_seq, min(wanted, acked_seq, self._first_seq + SLICE))

    def _make_room(self) -> bool:
        """True when old acknowledged records were deleted because the file is full: detail goes before what is owed."""
        if not self._full:
            return False
        first_seq = self._thinned(self._acked_seq, self._acked_seq)
        if first_seq <= self._first_seq:
            return False
        with self._transaction():
            self._db.execute("DELETE FROM record WHERE seq < ?", (first_seq,))
        log.warning("journal is full, old acknowledged records deleted",
                    extra={"first_seq": self._first_seq, "last_seq": first_seq - 1})
        self._first_seq = first_seq
        return True

    # ---- failures ----

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's faults as ours; everything else (a bug) passes."""
        self._full = False
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error

    def _failure(self, error: sqlite3.DatabaseError) -> JournalError:
        code = getattr(error, "sqlite_errorcode", 0) & _CODES_SHIFT
        match code:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                text = "is locked by another process: end it (`fuser` names it) or wait until it is done"
            case sqlite3.SQLITE_FULL:
                self._full = True
                text = "is full: free space on its disk, or bring the charger online so that records can be delivered"
            case sqlite3.SQLITE_READONLY:
                text = "is read-only: mount its disk for writing, or give the file to the agent's user"
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
                text = "cannot be opened: create its folder, and give it to the agent's user"
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return self._corrupt(str(error))
            case _:
                text = f"cannot be used ({error}): look at the disk and at `journalctl -k`"
        return JournalUnavailableError(f"{self._path} {text}")

    def _corrupt(self, what: str) -> JournalCorruptError:
        return JournalCorruptError(f"{self._path} is damaged: {what}: keep the file for the utility, move it away and"
                                   " start again; a new journal begins")


def open_read_only(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, for a command beside the running agent. Raises JournalUnavailableError."""
    if not path.is_file():
        raise JournalUnavailableError(f"{path} does not exist: has the agent run here? Name another with --config")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2.0)
        connection.execute("SELECT count(*) FROM meta").fetchone()
    except sqlite3.DatabaseError as error:
        raise JournalUnavailableError(f"{path} cannot be read ({error}): run this as root") from error
    return connection


def set_aside(path: Path) -> Path:
    """The new name of a damaged journal, so that a new one can begin; nothing is deleted.

    Raises JournalUnavailableError.
    """
    number = 1
    while (kept := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    try:
        for end in ("-wal", "-shm", ""):
            part = path.with_name(path.name + end)
            if part.exists():
                part.rename(kept.with_name(kept.name + end))
    except OSError as error:
        raise JournalUnavailableError(f"{path} cannot be moved away: {error}") from error
    return kept


def _take_lock(path: Path) -> int:
    """A held lock: two agents on one journal would give one number to two records."""
    name = path.with_name(path.name + ".lock")
    try:
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JournalUnavailableError(f"{path} cannot be opened ({error.strerror}): create its folder, and give it to"
                                      " the agent's user") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise JournalUnavailableError(f"{path} is locked by another process: an agent runs already; stop it first"
                                      " (`systemctl stop evse-agent`)") from error
    return handle
