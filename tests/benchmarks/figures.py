"""Each figure of the benchmark: how it is taken, for the agent and for the baseline in the same call.

Must not print results and must not judge them; that is `bench`.
"""

import random
import sqlite3
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise
from pathlib import Path
from signal import SIGKILL

import psutil

from agent.adapters.journal import Journal
from agent.core.effects import Record
from benchmarks.receiver import Ear, Epoch, Receiver
from benchmarks.stage import PLAN, PREMISES, RIVAL, Meter, Program, Stage, StageError, look, until
from cloud.rating.plans import load_plans
from cloud.rating.service import Catalogue
from esci.records import Interval, JournalBegun
from esci.units import format_utc

Tell = Callable[[str], None]
WORLD_SCALE = 600  # a minute of the world is a tenth of a second: one interval record for each reading
PIECE = 200
_NUMBERS = count()


@dataclass(frozen=True, slots=True)
class Size:
    """How long the benchmark runs."""

    starts: int
    warm_up_s: int
    steady_s: int
    backlog: int
    drains: int
    kills: int


FULL = Size(starts=9, warm_up_s=10, steady_s=120, backlog=10_000, drains=5, kills=20)
QUICK = Size(starts=3, warm_up_s=5, steady_s=60, backlog=2_000, drains=1, kills=4)  # a minute holds one interval's end


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process used while it took `readings`; bytes None: this file system does not count them."""

    readings: int
    rss_bytes: int
    uss_bytes: int
    cpu_s: float
    disk_bytes: int | None
    written_bytes: int

    @property
    def cpu_s_per_1000(self) -> float:
        """CPU seconds for 1,000 readings."""
        return self.cpu_s * 1000 / self.readings

    @property
    def disk_bytes_per_reading(self) -> float | None:
        """Bytes that it caused to be written to disk for one reading, logs included."""
        return None if self.disk_bytes is None else self.disk_bytes / self.readings


@dataclass(frozen=True, slots=True)
class Drained:
    """One backlog's end: seconds from the welcome of the last to come until all was forgotten."""

    seconds: float
    cpu_s: float


@dataclass(slots=True)
class Survived:
    """What the kills cost."""

    records: int = 0
    lost: int = 0
    doubled: int = 0
    notes: list[str] = field(default_factory=list)


# ---- start


def start_seconds(program: Program, meter: Meter, runs: int) -> float:
    """Median time from the process's start to the first request that the meter answers; file cache warm."""
    times: list[float] = []
    for _ in range(runs + 1):
        before = len(meter.answered_s)
        begun_s = program.start()
        times.append(meter.wait_beyond(before) - begun_s)
        time.sleep(0.5)
        program.end(SIGKILL)
    return statistics.median(times[1:])


# ---- steady state


def steady(pairs: list[tuple[Program, Meter]], size: Size) -> list[Usage]:
    """What each uses while all run side by side at 10 Hz over the same span."""
    for program, _ in pairs:
        program.start()
    for program, meter in pairs:
        meter.wait_beyond(len(meter.answered_s))
        program.check()
    time.sleep(size.warm_up_s)
    before = [_sample(program, meter) for program, meter in pairs]
    time.sleep(size.steady_s)
    after = [_sample(program, meter) for program, meter in pairs]
    for program, _ in pairs:
        program.end()
    return [_between(one, two) for one, two in zip(before, after, strict=True)]


def _sample(program: Program, meter: Meter) -> Usage:
    process = psutil.Process(program.pid)
    memory, times, io = process.memory_full_info(), process.cpu_times(), process.io_counters()
    return Usage(len(meter.answered_s), memory.rss, memory.uss, times.user + times.system, io.write_bytes,
                 io.write_chars)


def _between(before: Usage, after: Usage) -> Usage:
    disk = None if before.disk_bytes is None or after.disk_bytes is None else after.disk_bytes - before.disk_bytes
    return Usage(after.readings - before.readings, after.rss_bytes, after.uss_bytes, after.cpu_s - before.cpu_s,
                 disk or None, after.written_bytes - before.written_bytes)


# ---- backlog


def fill_journal(state_dir: Path, size: int) -> None:
    """A journal with `size` records that wait: a begin, then intervals of one minute, each of 33 Wh."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    tariff = Catalogue(load_plans()).in_force(PLAN, now)
    journal = Journal(state_dir / "journal.db", lambda: random.getrandbits(48))
    start = now - timedelta(minutes=size)
    records = [Record("journal.begun", JournalBegun(software="bench", premises=PREMISES), format_utc(start), "synced")]
    for number in range(size - 1):
        begin, end = (format_utc(start + timedelta(minutes=number + step)) for step in (0, 1))
        register_wh = 1_000_000 + 33 * number
        records.append(Record("interval", Interval(
            session="", binding="", pev="", premises=PREMISES, tariff=tariff, rate_reason=None, start=begin, end=end,
            register_start_wh=register_wh, register_end_wh=register_wh + 33, energy_wh=33, flags=[]), end, "synced"))
    for first in range(0, size, PIECE):
        journal.append(records[first:first + PIECE], None)
    journal.close()


def fill_database(database: Path, size: int) -> None:
    """The baseline's database with `size` readings that wait."""
    body = '{"at": 1752636000.1, "power_w": 2000.0, "energy_kwh": 1234.567}'
    with closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE reading (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL)")
        db.executemany("INSERT INTO reading (body) VALUES (?)", [(body,)] * size)
        db.commit()


def drain_agent(stage: Stage, size: Size, *, real_gateway: bool) -> Drained:
    """The agent with a full journal meets a broker that comes back, and a utility behind it."""
    state_dir = stage.state_dir(f"drain-{next(_NUMBERS)}")
    fill_journal(state_dir, size.backlog)
    names = [stage.device]
    gateway = receiver = None
    if real_gateway:
        gateway = stage.gateway()
        gateway.start()
        stage.broker.wait_for("gateway")
        time.sleep(0.5)  # its subscription is made
        names.append("gateway")
    else:
        receiver = stage.receiver()
        names.append("gateway-bench")
    program, journal = stage.agent(state_dir, meter := stage.meter()), state_dir / "journal.db"
    try:
        return _drain(stage, program, meter, names,
                      lambda: look(journal, "SELECT acked_seq FROM meta") >= size.backlog)
    finally:
        if receiver is not None:
            receiver.stop()
        if gateway is not None:
            gateway.end()


def drain_baseline(stage: Stage, size: Size) -> Drained:
    """The baseline with a full database meets a broker that comes back."""
    database = stage.folder / f"drain-{next(_NUMBERS)}.db"
    fill_database(database, size.backlog)
    program = stage.baseline(database, meter := stage.meter())
    query = f"SELECT NOT EXISTS (SELECT 1 FROM reading WHERE id <= {size.backlog})"
    return _drain(stage, program, meter, [RIVAL], lambda: look(database, query) == 1)


def _drain(stage: Stage, program: Program, meter: Meter, names: list[str], done: Callable[[], bool]) -> Drained:
    stage.broker.stop()
    program.start()
    meter.wait_beyond(20)  # it runs
    process = psutil.Process(program.pid)
    cpu = process.cpu_times()
    stage.broker.start()
    begun_s = max(stage.broker.wait_for(name) for name in names)
    ended_s = until("the backlog to be delivered", done, 300)
    used = process.cpu_times()
    program.end()
    return Drained(ended_s - begun_s, used.user + used.system - cpu.user - cpu.system)


# ---- kill -9


def kill_agent(stage: Stage, size: Size, tell: Tell) -> Survived:
    """The agent is killed at random moments while it makes ten records each second; nothing may be lost or doubled."""
    begun_s = time.monotonic()
    clock = f"{WORLD_SCALE},{begun_s:.3f},2025-07-16T03:20:00Z"
    state_dir = stage.state_dir("kill-agent")
    meter = stage.meter(lambda: int((time.monotonic() - begun_s) * 1000 * WORLD_SCALE))
    program = stage.agent(state_dir, meter, clock, meter={"poll_ms": 100 * WORLD_SCALE}, uplink={"retry_s": 1200},
                          board={"poll_ms": 1000 * WORLD_SCALE, "heartbeat_s": 60})
    receiver = stage.receiver()
    try:
        _kill_often(program, meter, size.kills, tell)
        journal = state_dir / "journal.db"
        program.start()
        last_seq = look(journal, "SELECT max(seq) FROM record")
        meter.wait_beyond(len(meter.answered_s) + 10)
        until("the last records to be acknowledged",
              lambda: look(journal, "SELECT acked_seq FROM meta") > last_seq, 60)
        program.end()
        return _judge(receiver, journal)
    finally:
        receiver.stop()


def _judge(receiver: Receiver, journal: Path) -> Survived:
    """What the receiver took against what the journal says was acknowledged."""
    found = Survived()
    if len(receiver.epochs) != 1:
        found.notes.append(f"{len(receiver.epochs)} epochs where there should be one")
    epoch = next(iter(receiver.epochs.values()), Epoch())
    acked_seq = look(journal, "SELECT acked_seq FROM meta")
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
        stored = dict(db.execute("SELECT seq, hex(digest) FROM record").fetchall())
    found.records = epoch.seq
    held = {seq for seq, digest in enumerate(epoch.digests, 1) if stored.get(seq, digest.upper()) == digest.upper()}
    found.lost = sum(seq not in held for seq in range(1, acked_seq + 1))
    intervals = [Interval.model_validate(item.body) for item in epoch.items if item.kind == "interval"]
    for before, after in pairwise(intervals):
        found.doubled += after.start < before.end or after.register_start_wh < before.register_end_wh
        found.lost += after.start > before.end or after.register_start_wh > before.register_end_wh
    found.doubled += epoch.conflicts
    found.notes.append(f"{len(intervals)} intervals join without hole or overlap" if not found.lost + found.doubled
                       else "the intervals do not join")
    found.notes.append(f"{epoch.repeated} records came again and were known, {epoch.early} batches came too early, "
                       f"{len(receiver.refused)} messages were refused")
    return found


def kill_baseline(stage: Stage, size: Size, tell: Tell) -> Survived:
    """The same for the baseline, whose receiver gets what the broker acknowledged."""
    database, meter, ear = stage.folder / "kill-baseline.db", stage.meter(), stage.ear()
    program = stage.baseline(database, meter)
    try:
        _kill_often(program, meter, size.kills, tell)
        program.start()
        meter.wait_beyond(len(meter.answered_s) + 20)
        query = "SELECT seq FROM sqlite_sequence"
        program.end()
        last_id = look(database, query)
        waiting = look(database, "SELECT count(*) FROM reading")
        _settle(ear, last_id - waiting)
        return _judge_baseline(ear, database, last_id)
    finally:
        ear.stop()


def _settle(ear: Ear, expected: int) -> None:
    """Wait a while for what is under way; what does not come is lost."""
    end_s = time.monotonic() + 5
    while len(ear.heard) < expected and time.monotonic() < end_s:
        time.sleep(0.05)


def _judge_baseline(ear: Ear, database: Path, last_id: int) -> Survived:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        waiting = {row[0] for row in db.execute("SELECT id FROM reading")}
    found = Survived(records=len(ear.heard))
    found.lost = sum(number not in ear.heard and number not in waiting for number in range(1, last_id + 1))
    found.doubled = sum(times - 1 for times in ear.heard.values())
    return found


def _kill_often(program: Program, meter: Meter, kills: int, tell: Tell) -> None:
    chance = random.Random(20)
    for number in range(kills):
        before = len(meter.answered_s)
        program.start()
        try:
            meter.wait_beyond(before)
        except StageError:
            program.check()  # tells its last words when it has ended by itself
            raise
        time.sleep(chance.uniform(0.0, 3.0))
        program.check()
        program.end(SIGKILL)
        if (number + 1) % 5 == 0:
            tell(f"{number + 1} of {kills} kills")
