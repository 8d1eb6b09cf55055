"""Bad surroundings, with real processes: wrong ports, a broker that refuses, databases that are locked or full.

Each ends in one sentence that says what, where and what to do, with the exit code of its kind (2 wrong, 3 missing,
4 refused), or is lived through by a program that must go on. No traceback anywhere. What needs no device, broker or
database is in tests/unit/test_agent_cli.py.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sqlite3
import subprocess
import sys
import tty
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloud import security
from hil.plant import HERE
from hil.processes import Ear
from stack.broker_world import running
from stack.main_job_world import MANY, STEP_S, Utility, utility

SCALE = 120
BEGIN_UTC = "2025-07-16T01:00:00Z"
AGENT_TOML = """\
device = "D-1"
premises = "P-1"
state_dir = "{state}"
[station]
circuit_max_ma = 32000
[meter]
model = "eastron_sdm630"
port = "{meter}"
unit_id = {unit}
[board]
port = "{board}"
[uplink]
host = "localhost"
port = 8883
"""


def call(program: str, *words: str, file_limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """The finished program; a file limit stands for a full disk."""
    def limit() -> None:
        if file_limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit_bytes, file_limit_bytes))

    clean = {name: value for name, value in os.environ.items() if not name.startswith("PLUGBIND_")}
    return subprocess.run([str(HERE / program), *words], capture_output=True, text=True, timeout=60, check=False,
                          env=clean, preexec_fn=limit)


def one_sentence(done: subprocess.CompletedProcess[str], code: int) -> str:
    """What it said on standard error, which is one line."""
    assert done.returncode == code, done.stderr + done.stdout
    (sentence,) = done.stderr.splitlines()
    return sentence


def agent_toml(folder: Path, meter: str, board: str, unit: int = 1) -> str:
    path = folder / "agent.toml"
    path.write_text(AGENT_TOML.format(state=folder / "state", meter=meter, board=board, unit=unit), encoding="utf-8")
    (folder / "state").mkdir(exist_ok=True)
    return str(path)


# ---- serial ports


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `meter` and `board`, which answer, and `silent`, which does not."""
    folder = tmp_path_factory.mktemp("lines")
    here, there = os.openpty()
    tty.setraw(there)
    (folder / "silent").symlink_to(os.ttyname(there))
    simulated = [[sys.executable, "-u", "-m", "firmware_sim.cli", name, "--print-port", "--link", str(folder / name)]
                 for name in ("meter", "board")]
    with running(simulated[0], "/"), running(simulated[1], "/"):
        yield folder
    os.close(here)
    os.close(there)


@pytest.mark.req("P1-B6")
@pytest.mark.parametrize(("meter", "board", "unit", "of_meter", "of_board"), [
    ("meter", "board", 1, "ok   meter: Eastron SDM630 v2 at {0}/meter: register ", "ok   board: "),
    ("none", "none", 1, "FAIL meter: {0}/none: no such device: plug the adapter in or name another port",
     "FAIL board: {0}/none: no such device: plug the adapter in or name another port"),
    ("silent", "silent", 1, "FAIL meter: {0}/silent unit 1: no answer: check the unit id, wiring and baud",
     "FAIL board: {0}/silent: the board is silent: check its power and the cable"),
    ("meter", "none", 7, "FAIL meter: {0}/meter unit 7: no answer: check the unit id, wiring and baud", "FAIL board: "),
    ("agent.toml", "agent.toml", 1, "FAIL meter: {0}/agent.toml: not a serial port: name the adapter's device",
     "FAIL board: {0}/agent.toml: not a serial port: name the adapter's device"),
], ids=["right", "missing", "silent", "wrong unit", "not a port"])
def test_check_says_what_is_wrong_with_a_port_and_what_to_do(
    lines: Path, meter: str, board: str, unit: int, of_meter: str, of_board: str
) -> None:
    done = call("evse-agent", "check", "--config", agent_toml(lines, str(lines / meter), str(lines / board), unit))
    for said in (of_meter, of_board):
        assert any(line.startswith(said.format(lines)) for line in done.stdout.splitlines()), done.stdout
    assert done.stderr == "" and done.returncode == 3  # 3 in every case: nobody has commissioned this one


# ---- the agent's journal


@contextmanager
def held(database: Path) -> Iterator[sqlite3.Connection]:
    """While this lasts, or until it is rolled back, another program has the SQLite database for itself."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield connection


@pytest.mark.req("P1-S3.1")
def test_a_locked_journal_ends_the_agent_with_a_sentence_and_3(tmp_path: Path) -> None:
    path = agent_toml(tmp_path, "/dev/none", "/dev/none")
    journal = tmp_path / "state" / "journal.db"
    with closing(sqlite3.connect(journal, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (a)")
    with held(journal):
        sentence = one_sentence(call("evse-agent", "run", "--config", path), 3)
    assert sentence.startswith(str(journal)) and "lock" in sentence


@pytest.mark.req("P1-S3.1")
def test_a_full_disk_ends_the_agent_with_a_sentence_and_3(tmp_path: Path) -> None:
    done = call("evse-agent", "run", "--config", agent_toml(tmp_path, "/dev/none", "/dev/none"), file_limit_bytes=8192)
    assert one_sentence(done, 3).startswith(str(tmp_path / "state" / "journal.db"))


# ---- a running charger: the broker refuses it, its journal cannot grow


@pytest.fixture(scope="module")
def charger(tmp_path_factory: pytest.TempPathFactory, mosquitto_bin: str) -> Iterator[tuple[Utility, Ear]]:
    """A charger whose broker trusts another utility's certificates, from the start of its agent on."""
    with utility(tmp_path_factory.mktemp("refused"), mosquitto_bin) as (plant, ear):
        plant.open()
        plant.config.write_text(plant.config.read_text().replace("[station]", "[station]\ninterval_s = 60"))
        plant.crew.stop("broker")
        other = plant.folder / "mosquitto" / "other-ca.crt"
        other.write_text(security.certificate_pem(security.make_authority("Other", datetime.now(UTC)).certificate))
        conf = plant.folder / "mosquitto" / "mosquitto.conf"
        ours = next(line for line in conf.read_text().splitlines() if line.startswith("cafile"))
        conf.write_text("\n".join(
            line for line in conf.read_text().replace(ours, f"cafile {other}").splitlines()
            if not line.startswith("crlfile")) + "\n")
        plant.start_broker()
        plant.start_world(SCALE, BEGIN_UTC, 7)
        plant.see("the refusal", "agent", "lost", 0, what="UplinkLost")
        plant.until("the meter is read", lambda: plant.status().get("register_wh") is not None)
        _, since = plant.plug("leaf")
        plant.see("the contactor", "agent", "board changed", since, closed="True")
        yield plant, ear


@pytest.mark.req("P1-B4", "P1-S1.7")
def test_a_broker_that_refuses_our_certificate_is_said_once_and_charging_goes_on(charger: tuple[Utility, Ear]) -> None:
    plant, ear = charger
    before = plant.waiting()
    plant.until("the journal grows", lambda: before + 3 <= plant.waiting() < MANY)
    assert plant.status()["reason"] == "utility-unreachable"
    assert plant.world()["contactor"] == "closed"
    causes = [str(line.fields["cause"]) for line in ear.since(0)
              if line.source == "agent" and line.fields.get("what") == "UplinkLost"]
    assert len(causes) == 1
    assert causes[0].startswith(f"broker localhost:{plant.ports.broker} ")
    assert "certificate" in causes[0] and "commission again" in causes[0]
    assert "Traceback" not in (plant.folder / "agent.log").read_text()


@pytest.mark.req("P1-S3.1")
def test_a_journal_that_cannot_grow_opens_and_ends_the_agent_with_a_sentence_and_loses_nothing(
    charger: tuple[Utility, Ear]
) -> None:
    plant, ear = charger
    before, session = plant.waiting(), plant.status()["session"]
    since, size_bytes = ear.position, (plant.agent_dir / "journal.db-wal").stat().st_size
    resource.prlimit(plant.crew.pid("agent"), resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
    assert plant.crew.ended("agent") == 3
    plant.until("the contactor is open", lambda: plant.world().get("contactor") == "open")
    said = ear.wait("its last word", lambda line: line.source == "agent" and "journal.db" in line.event, since, STEP_S)
    assert said.event.startswith(str(plant.agent_dir / "journal.db"))
    assert "Traceback" not in (plant.folder / "agent.log").read_text()
    since = ear.position
    plant.start_agent()
    plant.see("the agent is ready", "agent", "agent ready", since)
    plant.until("the records are there", lambda: before <= plant.waiting() < MANY)
    plant.until("the session goes on", lambda: plant.status().get("session") == session)


@pytest.mark.req("P1-S2.7")
def test_a_link_that_cannot_open_ends_the_agent_which_opens_what_it_found_closed(
    charger: tuple[Utility, Ear]
) -> None:
    """Half an agent is worse than none: what it cannot serve, it does not leave charging."""
    plant, ear = charger
    plant.until("the contactor is closed", lambda: plant.world().get("contactor") == "closed")
    plant.crew.kill("agent")
    assert plant.world().get("contactor") == "closed", "the board goes on by itself"
    with socket.create_server(("127.0.0.1", plant.ports.pevlink)):
        since = ear.position
        plant.start_agent()
        assert plant.crew.ended("agent") == 3
    ear.wait("its last word", lambda line: line.source == "agent" and str(plant.ports.pevlink) in line.event, since,
             STEP_S)
    plant.until("the contactor is open", lambda: plant.world().get("contactor") == "open")


# ---- the utility


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A founded utility on SQLite that waits 100 ms for a lock."""
    folder = tmp_path_factory.mktemp("cloud")
    (folder / "cloud.toml").write_text("[database]\nbusy_ms = 100\n", encoding="utf-8")
    assert call("evse-cloud", "--state", str(folder), "init").returncode == 0
    return folder


def enrol(state: Path, account: str, file_limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    return call("evse-cloud", "--state", str(state), "enrol", "account", "--id", account, "--holder", "Ada",
                "--email", "ada@example.org", file_limit_bytes=file_limit_bytes)


def test_a_locked_database_ends_the_command_with_a_sentence_and_3(state: Path) -> None:
    with held(state / "cloud.db"):
        sentence = one_sentence(enrol(state, "A-LOCKED"), 3)
    assert sentence == "evse-cloud: the database cannot be used now: database is locked; nothing was written, try again"
    assert enrol(state, "A-LOCKED").returncode == 0


def test_a_full_disk_ends_the_command_with_a_sentence_and_3_and_writes_nothing(state: Path) -> None:
    sentence = one_sentence(enrol(state, "A-FULL", file_limit_bytes=4096), 3)
    assert sentence.startswith("evse-cloud: the database cannot be used now: ")
    assert enrol(state, "A-FULL").returncode == 0


@pytest.mark.req("P1-S3.1")
def test_a_gateway_waits_for_a_locked_database_and_goes_on_when_it_is_free(state: Path) -> None:
    words = [sys.executable, "-m", "cloud.cli", "--state", str(state), "gateway"]
    with held(state / "cloud.db") as holder, running(words, "waiting for the database") as gateway:
        holder.execute("ROLLBACK")
        assert gateway.stdout is not None
        said = next(line for line in gateway.stdout if "the database" in line)
        assert json.loads(said)["message"] == "the database is back"


@pytest.mark.parametrize(("text", "parts"), [
    ('[database]\ncolour = "red"\n', ("cloud.toml", "database.colour", "not permitted")),
    ("[broker]\nport = 70000\n", ("cloud.toml", "broker.port", "less than or equal to 65535")),
    ("[broker\n", ("cloud.toml", "not TOML", "line 1")),
    ('[database]\nurl = "nonsense"\n', ("database.url is not a usable SQLAlchemy URL",)),
])
@pytest.mark.parametrize("command", ["bindings", "gateway"])
def test_a_wrong_cloud_toml_is_named_with_file_and_key(
    tmp_path: Path, command: str, text: str, parts: tuple[str, ...]
) -> None:
    (tmp_path / "cloud.toml").write_text(text, encoding="utf-8")
    sentence = one_sentence(call("evse-cloud", "--state", str(tmp_path), command), 2)
    assert all(part in sentence for part in parts), sentence


def test_a_utility_that_was_never_founded_says_so(tmp_path: Path) -> None:
    sentence = one_sentence(call("evse-cloud", "--state", str(tmp_path), "bindings"), 2)
    assert sentence.endswith("run `evse-cloud init`")
    for process in ("gateway", "api", "broker"):
        done = call("evse-cloud", "--state", str(tmp_path), process)
        assert done.returncode == 2
        assert "run `evse-cloud init`" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_what_the_utility_refuses_ends_with_4_and_its_reason(state: Path) -> None:
    refused = call("evse-cloud", "--state", str(state), "enrol", "pev", "--vin", "1N4AZ0CPXDC400001", "--account",
                   "A-NONE", "--program", "PRIME")
    assert one_sentence(refused, 4).startswith("evse-cloud: refused (unknown-account): ")
    nowhere = call("evse-cloud", "--state", str(state), "bill", "--premises", "P-NONE")
    assert "there are no premises 'P-NONE'" in one_sentence(nowhere, 4)
    assert json.loads(call("evse-cloud", "--state", str(state), "audit", "--json").stdout)
