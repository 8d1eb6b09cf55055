"""`evse-sim` as people and the demonstration start it: real processes, real pseudo-terminals, real signals."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware_sim.rapi_wire import frame
from firmware_sim.scenario import ScenarioError, read_scenario

SCENARIOS = Path(__file__).resolve().parents[2] / "firmware_sim" / "scenarios"
WAIT_S = 10.0
MAP = """
model = "Eastron SDM630 v2"
[point.energy_import]
address = 0x0048
type = "f32"
unit = "kWh"
"""


def start(*arguments: str, scale: int | None = None) -> subprocess.Popen[bytes]:
    environment = {**os.environ}
    environment.pop("PLUGBIND_CLOCK", None)
    if scale is not None:
        environment["PLUGBIND_CLOCK"] = f"{scale},{time.monotonic()},2025-07-16T03:20:00Z"
    return subprocess.Popen(
        [sys.executable, "-m", "firmware_sim.cli", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )


class Simulation:
    """A running `evse-sim run --stdin --json`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "state"
        (directory / "map.toml").write_text(MAP)
        (directory / "scenario.toml").write_text(
            '[meter]\nregister_start_kwh = 1234.567\n[[vehicle]]\nname = "leaf"\nvin = "1N4AZ0CPXDC400001"\n'
            "capacity_wh = 40000\n"
        )
        self.process = start(
            "run", str(directory / "scenario.toml"), "--seed", "3", "--state-dir", str(self.directory),
            "--meter-map", str(directory / "map.toml"), "--json", "--stdin", scale=60,
        )  # fmt: skip
        self._pending = b""
        self.until("simulation started")

    def until(self, event: str) -> dict[str, object]:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            while b"\n" in self._pending:
                line, self._pending = self._pending.split(b"\n", 1)
                found: dict[str, object] = json.loads(line)
                if found["event"] == event:
                    return found
            if select.select([descriptor], [], [], 0.5)[0]:
                part = os.read(descriptor, 65536)
                assert part, "the simulator ended"
                self._pending += part
        raise AssertionError(f"{event} never came")

    def command(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def state(self) -> dict[str, object]:
        content: dict[str, object] = json.loads((self.directory / "sim.json").read_text())
        return content

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=WAIT_S)
        return self.process.returncode


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[Simulation]:
    one = Simulation(tmp_path)
    yield one
    if one.process.poll() is None:
        one.end(signal.SIGKILL)


@pytest.mark.req("P1-S1.6", "P1-F20")
def test_a_vehicle_is_driven_over_standard_input_and_everything_is_tidied_up(simulation: Simulation) -> None:
    board = os.open(simulation.directory / "board", os.O_RDWR | os.O_NOCTTY)
    simulation.command('{"do":"plug","vehicle":"leaf"}')
    while simulation.until("board state")["contactor"] != "closed":
        pass
    os.read(board, 4096)
    os.write(board, frame(b"$GV"))
    reply = b""
    while b"$OK 8.2.3.EU 5.2.1^11\r" not in reply:
        assert select.select([board], [], [], WAIT_S)[0]
        reply += os.read(board, 4096)
    simulation.command('{"do":"unplug"}')
    while simulation.until("board state")["contactor"] != "open":
        pass
    simulation.command('{"do":"dance"}')
    assert "unknown deed" in str(simulation.until("deed refused")["error"])
    simulation.command("[1,")
    assert "one line such as" in str(simulation.until("command refused")["error"])
    os.close(board)
    assert simulation.end() == 0
    state = simulation.state()
    delivered_mwh = state["delivered_mwh"]
    assert isinstance(delivered_mwh, int)
    assert delivered_mwh > 0
    assert state["register_wh"] == 1_234_567 + (delivered_mwh + 500) // 1000
    assert sorted(path.name for path in simulation.directory.iterdir()) == ["sim.json"]


@pytest.mark.req("P1-F20")
def test_an_interrupt_ends_with_130(simulation: Simulation) -> None:
    assert simulation.end(signal.SIGINT) == 130
    assert not (simulation.directory / "board").is_symlink()


@pytest.mark.req("P1-N2", "P1-B4")
def test_a_vehicle_without_its_certificate_says_so_and_charges_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text(MAP)
    (tmp_path / "scenario.toml").write_text(
        '[meter]\nlink = "tcp"\nregister_start_kwh = 7.0\n[[vehicle]]\nname = "leaf"\nvin = "1N4AZ0CPXDC400001"\n'
        'capacity_wh = 40000\ncert = "c"\nkey = "k"\nca = "a"\npevlink = "127.0.0.1:7443"\n'
        '[[event]]\nat_s = 1\ndo = "plug"\nvehicle = "leaf"\n'
    )
    state = tmp_path / "state"
    process = start(
        "run", str(tmp_path / "scenario.toml"), "--state-dir", str(state), "--meter-map", str(tmp_path / "map.toml"),
        "--end-after-s", "30", "--json", scale=60,
    )  # fmt: skip
    output, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, errors) == (0, b"")
    events = [json.loads(line) for line in output.splitlines()]
    lost = next(event for event in events if event["event"] == "pev link lost")
    assert "is missing; enrol the vehicle first" in lost["cause"]
    assert json.loads((state / "sim.json").read_text())["register_wh"] > 7000
    assert isinstance(events[0]["meter_port"], int)


@pytest.mark.req("P1-F20")
def test_a_meter_alone_over_tcp_and_a_board_alone(tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text(MAP)
    for arguments in (
        ("meter", "--tcp", "--meter-map", str(tmp_path / "map.toml"), "--power-w", "1000", "--print-port"),
        ("meter", "--link", str(tmp_path / "m"), "--meter-map", str(tmp_path / "map.toml"), "--print-port"),
        ("board", "--link", str(tmp_path / "b"), "--print-port"),
    ):
        process = start(*arguments)
        assert process.stdout is not None
        assert process.stdout.readline().strip()
        process.terminate()
        process.communicate(timeout=WAIT_S)
        assert process.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["map.toml"]


BAD = [
    ("[world]\nspeed = 3\n", "world.speed"),
    ("[[vehicle]]\nname = 'a'\n", "vehicle.0"),
    ("[[event]]\nat_s = 1\ndo = 'dance'\n", "unknown deed"),
    ("[[event]]\nat_s = 1\ndo = 'plug'\nvehicle = 'bus'\n", "which is not there"),
    ("[[event]]\nat_s = 1\ndo = 'plug'\ncolour = 'red'\n", "unknown key"),
    ("[meter]\nregister_start_kwh = -1.0\n", "register_start_kwh"),
    ("[meter]\nregister_start_kwh = nan\n", "register_start_kwh"),
    ("not toml [", "is not TOML"),
]


@pytest.mark.req("P1-F20")
@pytest.mark.parametrize(("text", "cause"), BAD)
def test_a_bad_scenario_is_refused_with_one_sentence(tmp_path: Path, text: str, cause: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        read_scenario(path)
    assert cause in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.req("P1-F20")
def test_missing_files_and_bad_clocks_end_with_two(tmp_path: Path) -> None:
    process = start("run", str(tmp_path / "none.toml"), "--state-dir", str(tmp_path))
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2
    assert errors.decode().count("\n") == 1
    assert "cannot be read" in errors.decode()


@pytest.mark.req("P1-F20")
@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_scenario_of_the_house_is_good(path: Path) -> None:
    assert read_scenario(path).vehicle
