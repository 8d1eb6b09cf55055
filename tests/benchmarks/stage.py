"""What the benchmarks stand on: one utility, one real mosquitto, simulated meters and a board, and the two contestants.

Everything runs as processes of this machine in one folder on disk. Must not measure anything itself.
"""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.adapters.keys import KeyFolder, load_key
from benchmarks.receiver import Ear, Receiver, Wire
from cloud.pki import Pki
from esci.units import format_utc
from firmware_sim.bench import meter_values
from firmware_sim.meter import TcpMeter
from firmware_sim.meter_map import MeterValues, read_map
from firmware_sim.world import World

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
METER_MAP = ROOT / "agent" / "meters" / "eastron_sdm630.toml"
BASELINE = Path(__file__).with_name("baseline.py")
PREMISES, PLAN = "P-1001", "SCE-TOU-D-4-9PM"
RIVAL = "baseline-1"
LOAD_W = 2_000
CLOCK = "PLUGBIND_CLOCK"


class StageError(Exception):
    """The benchmark cannot go on; the text says why and what to do."""


class Meter:
    """A simulated SDM630 on Modbus TCP, in this process, that notes the moment of each answer."""

    def __init__(self, world_ms: Callable[[], int]) -> None:
        self._world = World(1, 0, register_start_wh=1_234_567, base_load_w=LOAD_W)
        self._world_ms, self._lock = world_ms, threading.Lock()
        self._changed = threading.Condition()
        self.answered_s: list[float] = []
        self._server = TcpMeter(read_map(METER_MAP), self._read_values, 0)
        self._server.start()

    @property
    def port(self) -> int:
        """Where it is reached."""
        return self._server.port

    def stop(self) -> None:
        """No more answers."""
        self._server.stop()

    def wait_beyond(self, count: int, wait_s: float = 30.0) -> float:
        """When the answer after `count` answers was given. Raises StageError when none was asked for."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.answered_s) > count, wait_s):
                raise StageError(f"nobody read the meter within {wait_s:g} s")
            return self.answered_s[count]

    def _read_values(self) -> MeterValues:
        with self._lock:
            self._world.advance(self._world_ms())
            values = meter_values(self._world, 19_630_001)
        with self._changed:
            self.answered_s.append(time.monotonic())
            self._changed.notify_all()
        return values


@dataclass(slots=True)
class Program:
    """One process of the stage; what it says goes to a file beside its other files."""

    words: list[str]
    log: Path
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """When it was started."""
        with self.log.open("ab") as out:
            started_s = time.monotonic()
            self.process = subprocess.Popen(self.words, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                            env=dict(self.environment), start_new_session=True)
        return started_s

    @property
    def pid(self) -> int:
        """Its process id. Raises StageError when it has ended by itself."""
        self.check()
        assert self.process is not None
        return self.process.pid

    def check(self) -> None:
        """Raises StageError when it is not running."""
        if self.process is None:
            raise StageError(f"{Path(self.words[0]).name} was not started")
        if self.process.poll() is not None:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise StageError(f"{Path(self.words[0]).name} ended with {self.process.returncode}: {last[0]}")

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """It is gone when this returns; killed if it does not go within 10 s."""
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


@dataclass(slots=True)
class Broker:
    """Debian's mosquitto with the product's own configuration; notes when each client came in."""

    binary: str
    config: Path
    process: subprocess.Popen[str] | None = None
    came_s: dict[str, float] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _is_running: bool = False

    def start(self) -> None:
        """Listens when it returns."""
        self.came_s.clear()
        self._is_running = False
        self.process = subprocess.Popen([self.binary, "-c", str(self.config)], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        threading.Thread(target=self._listen, args=(self.process.stderr,), daemon=True).start()
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_running, 15):
                raise StageError(f"mosquitto does not start: try `{self.binary} -c {self.config}`")

    def stop(self) -> None:
        """Gone, its sessions on disk."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def wait_for(self, name: str, wait_s: float = 30.0) -> float:
        """When the client was welcomed."""
        with self._changed:
            if not self._changed.wait_for(lambda: name in self.came_s, wait_s):
                raise StageError(f"{name} did not come to the broker within {wait_s:g} s")
            return self.came_s[name]

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            with self._changed:
                self._is_running |= "running" in line
                if "New client connected" in line and " as " in line:
                    self.came_s[line.split(" as ", 1)[1].split(" ", 1)[0]] = time.monotonic()
                self._changed.notify_all()


def environment() -> dict[str, str]:
    """This process's environment without what would bend the measurement."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PLUGBIND", "PYTHON"))}


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def ask(*words: str, extra: Mapping[str, str] | None = None) -> str:
    """What a program of ours prints. Raises StageError with its own words."""
    done = subprocess.run([str(BIN / words[0]), *words[1:]], capture_output=True, text=True, timeout=60, check=False,
                          env=environment() | dict(extra or {}), stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise StageError(f"{' '.join(words[:4])}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


class Stage:
    """The whole set-up; a context manager that leaves no process and no file behind."""

    def __init__(self, mosquitto: str, folder: Path) -> None:
        self.folder, self.cloud_dir = folder, folder / "cloud"
        self.pki = Pki(self.cloud_dir / "pki")
        self.broker_port, self.device = free_port(), ""
        self.broker = Broker(mosquitto, folder / "mosquitto" / "mosquitto.conf")
        self._programs: list[Program] = []
        self._meters: list[Meter] = []
        self.board = folder / "board"

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        for program in reversed(self._programs):
            program.end()
        for meter in self._meters:
            meter.stop()
        self.broker.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- set-up

    def build(self) -> None:
        """Utility founded, charger commissioned as a technician does it, baseline certified, board and broker up."""
        self.cloud_dir.mkdir(parents=True)
        api_port = free_port()
        (self.cloud_dir / "cloud.toml").write_text(
            f"[broker]\nport = {self.broker_port}\n[api]\nport = {api_port}\n", encoding="utf-8")
        self._cloud("init")
        self._cloud("certificate", "--service", "gateway-bench", "--out", str(self.folder / "bench"))
        self._cloud("enrol", "account", "--id", "A-1001", "--holder", "Ada Martin", "--email", "ada@example.org")
        self._cloud("enrol", "premises", "--id", PREMISES, "--account", "A-1001", "--address", "12 Orange Grove",
                    "--timezone", "America/Los_Angeles", "--default-plan", PLAN, "--interval-min", "1")
        self._commission()
        self._certify_baseline()
        self._cloud("broker-config", "--out", str(self.folder / "mosquitto"))
        with (self.folder / "mosquitto" / "acl").open("a", encoding="utf-8") as acl:  # ends with gateway-bench's rules
            acl.write(f"topic read bench/{RIVAL}\n\nuser {RIVAL}\ntopic write bench/{RIVAL}\n")
        with self.broker.config.open("a", encoding="utf-8") as config:
            config.write("log_type information\n")  # tells when it runs
        self.program("board", [str(BIN / "evse-sim"), "board", "--link", str(self.board)]).start()
        self.broker.start()

    def _cloud(self, *words: str) -> str:
        return ask("evse-cloud", "--state", str(self.cloud_dir), *words)

    def _commission(self) -> None:
        api = self.program("api", [str(BIN / "evse-cloud"), "--state", str(self.cloud_dir), "api"])
        api.start()
        port = tomllib.loads((self.cloud_dir / "cloud.toml").read_text(encoding="utf-8"))["api"]["port"]
        until("the API answers", lambda: _listens(port), 30)
        api.check()
        code = json.loads(self._cloud("device", "token", "--premises", PREMISES, "--json"))["code"]
        told = ask("evse-agent", "commission", "--meter-port", "127.0.0.1:502", "--board-port", str(self.board),
                   "--circuit-max-a", "32", "--state-dir", str(self.folder / "charger"), "--config",
                   str(self.folder / "commissioned.toml"), "--json", extra={"PLUGBIND_CODE": code})
        self.device = json.loads(told)["device"]
        api.end()

    def _certify_baseline(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        cert = self.pki.device_certifier(datetime.now(UTC))(RIVAL, key.public_key())
        (self.folder / "baseline.crt").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        path = self.folder / "baseline.key"
        path.touch(0o600)
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                           serialization.NoEncryption()))

    # ---- what the measurements use

    def program(self, name: str, words: list[str], extra: Mapping[str, str] | None = None) -> Program:
        """A program that ends with the stage at the latest."""
        program = Program(words, self.folder / f"{name}.log", environment() | dict(extra or {}))
        self._programs.append(program)
        return program

    def meter(self, world_ms: Callable[[], int] = lambda: int(time.monotonic() * 1000)) -> Meter:
        """A meter that ends with the stage."""
        meter = Meter(world_ms)
        self._meters.append(meter)
        return meter

    def state_dir(self, name: str) -> Path:
        """A new state folder with the charger's keys and no journal."""
        folder = self.folder / name
        shutil.copytree(self.folder / "charger" / "keys", folder / "keys")
        return folder

    def agent(self, state_dir: Path, meter: Meter, clock: str = "", /, **changes: object) -> Program:
        """The agent on that state and that meter, ready to start; `changes` per section of its configuration."""
        found = tomllib.loads((self.folder / "commissioned.toml").read_text(encoding="utf-8"))
        found["state_dir"] = str(state_dir)
        found["station"] = found["station"] | {"interval_s": 60}
        found["meter"] = found["meter"] | {"port": f"127.0.0.1:{meter.port}", "poll_ms": 100}
        found["pevlink"] = {"host": "127.0.0.1", "port": 0}
        for section, values in changes.items():
            assert isinstance(values, dict)
            found[section] = found[section] | values
        config = state_dir / "agent.toml"
        config.write_text(_toml(found), encoding="utf-8")
        return self.program(state_dir.name, [str(BIN / "evse-agent"), "run", "--config", str(config)],
                            {CLOCK: clock} if clock else None)

    def baseline(self, database: Path, meter: Meter) -> Program:
        """The baseline on that database and that meter, ready to start."""
        files = [str(self.folder / "baseline.crt"), str(self.folder / "baseline.key"), str(self.pki.utility_ca)]
        words = [sys.executable, str(BASELINE), str(meter.port), str(self.broker_port), RIVAL, str(database), *files]
        return self.program(database.stem, words)

    def gateway(self) -> Program:
        """The real utility's gateway, ready to start."""
        return self.program("gateway", [str(BIN / "evse-cloud"), "--state", str(self.cloud_dir), "gateway"])

    def receiver(self) -> Receiver:
        """The benchmark's own receiver, connected. It takes the place of a gateway."""
        public = load_key(KeyFolder.of(self.folder / "charger").tls.key).public_key()
        receiver = Receiver(self._wire(), public, self.pki.seal_signer(), lambda: format_utc(datetime.now(UTC)))
        receiver.start()
        return receiver

    def ear(self) -> Ear:
        """Hears the baseline's readings; connected."""
        ear = Ear(self._wire(), f"bench/{RIVAL}")
        ear.start()
        return ear

    def _wire(self) -> Wire:
        folder = self.folder / "bench"
        return Wire(self.broker_port, "gateway-bench", folder / "gateway-bench.crt", folder / "gateway-bench.key",
                    folder / "ca.crt")


def look(database: Path, query: str) -> int:
    """One number from a database that another process writes; -1 while it has none."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as db:
            row = db.execute(query).fetchone()
    except sqlite3.OperationalError:
        return -1
    return -1 if row is None or row[0] is None else int(row[0])


def until(what: str, happened: Callable[[], bool], wait_s: float, every_s: float = 0.02) -> float:
    """When it happened. Raises StageError when it did not in time."""
    end_s = time.monotonic() + wait_s
    while not happened():
        if time.monotonic() > end_s:
            raise StageError(f"waited {wait_s:g} s for: {what}")
        time.sleep(every_s)
    return time.monotonic()


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _toml(found: Mapping[str, object]) -> str:
    """Text of a configuration of plain values and one level of tables."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in found.items() if not isinstance(value, dict)]
    for name, table in found.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"
