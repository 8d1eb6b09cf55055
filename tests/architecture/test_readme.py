"""README.md says what is true: its first 30 lines hold what a newcomer needs, and every command it names works."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from architecture.house import PACKAGES, ROOT, SCRIPTS, call

README = (ROOT / "README.md").read_text("utf-8")
FIRST_30 = "\n".join(README.splitlines()[:30])
HOPS = {
    "ModbusBus.read": "agent/drivers/modbus.py", "decode": "agent/drivers/meter.py",
    "Loop.run_once": "agent/runtime.py", "Station.handle": "agent/core/station.py",
    "IntervalRecorder.on_reading": "agent/core/intervals.py", "Journal.append": "agent/adapters/journal.py",
    "MqttUplink.publish": "agent/adapters/mqtt.py", "Desk.handle": "cloud/desk.py",
    "metering.accept": "cloud/metering/service.py", "ledger.post_all": "cloud/ledger/service.py",
}  # fmt: skip
COMMAND = re.compile(r"(?<![\w/-])(evse-[a-z]+) ([a-z][a-z-]*)((?: [a-z][a-z-]*)?)(?=[` ])")


def test_the_first_30_lines_hold_what_a_newcomer_needs() -> None:
    for words in ("./run demo", "./run test", *(f"`{package}/`" for package in (*PACKAGES, "tests"))):
        assert words in FIRST_30, words
    assert re.search(r"smart EV charger", FIRST_30)
    assert re.search(r"\*\*Safety\.\*\*.*may ask to close.*may always open.*never the only layer", FIRST_30, re.DOTALL)


def test_the_first_30_lines_name_the_ten_hops_in_their_order() -> None:
    places = [FIRST_30.find(hop) for hop in HOPS]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize(("hop", "file"), HOPS.items())
def test_each_hop_is_found_by_its_name(hop: str, file: str) -> None:
    text = (ROOT / file).read_text("utf-8")
    *owner, name = hop.split(".")
    assert re.search(rf"^ *def {name}\(", text, re.MULTILINE)
    assert not owner or owner[0] in ("metering", "ledger") or f"class {owner[0]}" in text


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_every_verb_of_run_that_is_named_exists() -> None:
    usage = call(ROOT / "run", "--help").stdout
    verbs = set(re.findall(r"\./run ([a-z]+)", README))
    assert {"demo", "test", "lint", "bench", "trace"} <= verbs
    assert [verb for verb in verbs if not re.search(rf"^  {verb} ", usage, re.MULTILINE)] == []


def test_every_command_that_is_named_answers_help() -> None:
    """Also the command of a group: `evse-cloud enrol pev`."""
    commands = sorted({tuple(" ".join(found).split()) for found in COMMAND.findall(README)})
    assert {program for program, *_ in commands} == {"evse-agent", "evse-cloud", "evse-sim", "evse-hil"}
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda command: call(SCRIPTS / command[0], *command[1:], "--help"), commands))
    broken = {command: output.stdout for command, output in zip(commands, done, strict=True) if output.returncode}
    assert broken == {}


def test_every_path_that_is_named_exists() -> None:
    paths = set(re.findall(r"`([\w.]+(?:/[\w.]*)+)`", README)) | set(re.findall(r"\]\(([\w./]+)\)", README))
    assert [
        path for path in sorted(paths) if not path.startswith(("./", "/", "esci/1")) and not (ROOT / path).exists()
    ] == []
