"""`evse-agent` at the command line, as a process: wrong input gives one sentence and its exit code, never a traceback.

Each sentence names what is wrong, where it is, and what to do (STYLE 23). Exit codes: 2 wrong, 3 missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent import checks
from agent.core.clock import Now

EVSE_AGENT = str(Path(sys.executable).parent / "evse-agent")
COMMANDS = ("run", "check", "commission", "status", "sessions", "receipt", "clear-faults", "version")
GOOD = """\
device = "D-1"
premises = "P-1"
state_dir = "{folder}/state"
[station]
circuit_max_ma = 32000
[meter]
model = "eastron_sdm630"
port = "{folder}/meter"
[board]
port = "{folder}/board"
[uplink]
host = "localhost"
port = 8883
"""


def agent(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished command."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PLUGBIND_")}
    return subprocess.run([EVSE_AGENT, *words], capture_output=True, text=True, timeout=60, check=False,
                          env=clean | environment)


def config(folder: Path, old: str = "", new: str = "") -> str:
    """A path of an agent.toml, in which one text is replaced."""
    text = GOOD.format(folder=folder)
    assert old in text
    path = folder / "agent.toml"
    path.write_text(text.replace(old, new, 1) if old else text, encoding="utf-8")
    return str(path)


# ---- the configuration


@pytest.mark.parametrize(("old", "new", "parts"), [
    ("circuit_max_ma = 32000", "circuit_max_ma = 320000", ("station.circuit_max_ma", "320000", "80000")),
    ("circuit_max_ma = 32000", 'circuit_max_ma = "32"', ("station.circuit_max_ma", "'32'", "valid integer")),
    ("circuit_max_ma = 32000", "circuit_max_ma = 32000\nphases = 2", ("station.phases", "2", "1 or 3")),
    ("[board]", '[board]\ncolour = "red"', ("unknown key board.colour", "remove it or mend its spelling")),
    ('device = "D-1"\n', "", ("device is missing", "add it")),
    ("[meter]", "[meter", ("not TOML", "line 6")),
    ("port = 8883", "port = 0", ("uplink.port", "0", "greater than or equal to 1")),
])
def test_a_wrong_configuration_is_named_with_file_and_key(
    tmp_path: Path, old: str, new: str, parts: tuple[str, ...]
) -> None:
    done = agent("run", "--config", config(tmp_path, old, new))
    assert done.returncode == 2 and done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"{tmp_path}/agent.toml: ")
    assert all(part in sentence for part in parts), sentence


@pytest.mark.parametrize("command", ["run", "check", "status", "sessions", "receipt"])
def test_a_missing_configuration_says_how_to_get_one(tmp_path: Path, command: str) -> None:
    done = agent(command, "--config", f"{tmp_path}/none.toml")
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path}/none.toml: no such file: run `evse-agent commission` or name another with " \
                          "--config\n"


def test_a_configuration_that_is_a_folder_or_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path, tmp_path / "bytes.toml"):
        done = agent("run", "--config", str(path))
        assert done.returncode == 2
        assert done.stderr.startswith(f"{path}: cannot be read: ") and done.stderr.count("\n") == 1


def test_an_unknown_meter_model_names_the_known_ones(tmp_path: Path) -> None:
    path = config(tmp_path, "eastron_sdm630", "acme_9000")
    done = agent("run", "--config", path)
    assert done.returncode == 2
    assert done.stderr == "meter model 'acme_9000' is unknown: choose one of eastron_sdm630\n"
    checked = agent("check", "--config", path)
    assert checked.returncode == 3
    assert "FAIL meter: meter model 'acme_9000' is unknown: choose one of eastron_sdm630" in checked.stdout


def test_missing_keys_send_to_commissioning(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    done = agent("run", "--config", config(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("no such file: run `evse-agent commission`")
    assert "Traceback" not in done.stderr


# ---- the commands


def test_check_prints_all_that_is_in_force_and_fails_when_something_is_missing(tmp_path: Path) -> None:
    done = agent("check", "--config", config(tmp_path))
    assert done.returncode == 3
    assert '[meter] model = "eastron_sdm630"' in done.stdout
    assert f"FAIL meter: {tmp_path}/meter: no such device: plug the adapter in or name another port" in done.stdout
    assert f"FAIL board: {tmp_path}/board: no such device: plug the adapter in or name another port" in done.stdout
    found = json.loads(agent("check", "--json", "--no-probe", "--config", config(tmp_path)).stdout)
    assert [finding["subject"] for finding in found["findings"]] == ["clock", "keys"]


def test_status_sessions_and_receipt_without_an_agent_say_what_to_do(tmp_path: Path) -> None:
    path = config(tmp_path)
    asked = agent("status", "--config", path)
    assert asked.returncode == 3
    assert asked.stderr == f"{tmp_path}/state/status.sock: the agent is not running: start it with `systemctl start " \
                           "evse-agent`\n"
    for command in ("sessions", "receipt"):
        done = agent(command, "--config", path)
        assert done.returncode == 3, done.stdout
        assert f"{tmp_path}/state/journal.db" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = agent(command, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"Usage: evse-agent {command}")


@pytest.mark.parametrize("words", [("nonsense",), ("check", "--wat"), ("--wat",), (),
                                   ("commission", "--circuit-max-a", "100", "--code", "x", "--meter-port", "m",
                                    "--board-port", "b")])
def test_a_wrong_command_line_is_answered_with_usage_and_2(words: tuple[str, ...]) -> None:
    done = agent(*words)
    assert done.returncode == 2
    assert "Usage: evse-agent" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("code", "exit_code", "words"), [
    ("bad", 2, "that is not a commissioning code such as https://"),
    (f"https://localhost:1#token#{'a' * 64}", 3, "https://localhost:1 cannot be reached"),
])
def test_commissioning_that_cannot_work_says_why_and_keeps_the_code_secret(
    tmp_path: Path, code: str, exit_code: int, words: str
) -> None:
    done = agent("commission", "--meter-port", "/dev/m", "--board-port", "/dev/b", "--circuit-max-a", "32",
                 "--state-dir", str(tmp_path / "state"), "--config", str(tmp_path / "agent.toml"), PLUGBIND_CODE=code)
    assert done.returncode == exit_code
    assert done.stderr.startswith(words) and done.stderr.count("\n") == 1
    assert "#token#" not in done.stderr
    assert not (tmp_path / "agent.toml").exists()


# ---- the clock


@pytest.mark.req("P1-N1")
def test_a_clock_in_1970_is_found_and_said_what_it_means() -> None:
    finding = checks._clock(Now(0, datetime(1970, 1, 1, tzinfo=UTC), synced=True))
    assert not finding.ok
    assert finding.text.startswith("it is 1970-01-01 here: connect a time server")
    assert checks._clock(Now(0, datetime(2026, 1, 1, tzinfo=UTC), synced=True)).ok


def test_a_meter_port_that_is_no_address_is_named(tmp_path: Path) -> None:
    done = agent("run", "--config", config(tmp_path, f'port = "{tmp_path}/meter"', 'port = "10.0.0.1:"'))
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert "meter.port = '10.0.0.1:'" in sentence


def test_a_clock_variable_that_is_no_scale_is_named(tmp_path: Path) -> None:
    done = agent("run", "--config", config(tmp_path), PLUGBIND_CLOCK="fast")
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert "PLUGBIND_CLOCK" in sentence and "unset it" in sentence
