"""A whole small utility with one charger, as separate processes in one folder: for the demonstration.

Everything is done as a person would: through the programs' own command lines. Nothing here imports agent or cloud.
"""

import json
import os
import socket
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from esci.timescale import VARIABLE
from hil.processes import BenchError, Crew, ask

HERE = Path(sys.executable).parent
LEAF, STRANGER = "1N4AZ0CPXDC400001", "VF1AGVYA453000002"
CIRCUIT_A = 32


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports that were free when asked for."""

    broker: int
    api: int
    pevlink: int


def free_ports() -> Ports:
    """Three ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(3)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return Ports(*(one.getsockname()[1] for one in sockets))
    finally:
        for one in sockets:
            one.close()


class Plant:
    """The folder, the commands in it, and the clock that all programs share."""

    def __init__(self, folder: Path, crew: Crew, environment: dict[str, str]) -> None:
        self.folder, self.crew, self._environment = folder, crew, environment
        self.ports = free_ports()
        self.cloud_dir, self.sim_dir, self.agent_dir = folder / "cloud", folder / "sim", folder / "agent"
        self.config = folder / "agent.toml"
        self.device = ""
        for one in (self.cloud_dir, self.sim_dir, self.agent_dir):
            one.mkdir(parents=True, exist_ok=True)

    def cloud(self, *words: str) -> str:
        """What `evse-cloud` prints."""
        return ask([str(HERE / "evse-cloud"), "--state", str(self.cloud_dir), *words], self._environment)

    def agent(self, *words: str) -> str:
        """What `evse-agent` prints."""
        return ask([str(HERE / "evse-agent"), *words, "--config", str(self.config)], self._environment)

    def found_utility(self) -> None:
        """Keys, certificates and database of the utility."""
        (self.cloud_dir / "cloud.toml").write_text(
            f"[broker]\nport = {self.ports.broker}\n[api]\nport = {self.ports.api}\n", encoding="utf-8")
        self.cloud("init")

    def enrol(self) -> None:
        """P1-S1.1 to S1.4: one account, premises and vehicle; and a certificate for a vehicle that nobody enrolled."""
        self.cloud("enrol", "account", "--id", "A-1001", "--holder", "Ada Martin", "--email", "ada@example.org")
        self.cloud("enrol", "premises", "--id", "P-1001", "--account", "A-1001", "--address", "12 Orange Grove",
                   "--timezone", "America/Los_Angeles", "--default-plan", "SCE-TOU-D-4-9PM", "--interval-min", "5",
                   "--binding-wait-s", "600", "--charge-without-binding", "--no-guests")
        self.cloud("enrol", "pev", "--vin", LEAF, "--account", "A-1001", "--program", "PRIME", "--premises", "P-1001",
                   "--cert-dir", str(self.sim_dir / "leaf"))
        self.cloud("pev-certificate", "--vin", STRANGER, "--cert-dir", str(self.sim_dir / "stranger"))

    def start_broker(self) -> None:
        """The embedded broker."""
        self.crew.start("broker", [str(HERE / "evse-cloud"), "--state", str(self.cloud_dir), "broker"])

    def start_api(self) -> None:
        """The HTTP API, on which chargers are commissioned."""
        self.crew.start("api", [str(HERE / "evse-cloud"), "--state", str(self.cloud_dir), "api"])

    def commission(self) -> None:
        """P1-S1.5: the charger makes its key and is certified. The demonstration's clock asks for slower polls."""
        code = json.loads(self.cloud("device", "token", "--premises", "P-1001", "--json"))["code"]
        environment = self._environment | {"PLUGBIND_CODE": code}
        ask([str(HERE / "evse-agent"), "commission", "--meter-port", str(self.sim_dir / "meter"), "--board-port",
             str(self.sim_dir / "board"), "--circuit-max-a", str(CIRCUIT_A), "--state-dir", str(self.agent_dir),
             "--config", str(self.config)], environment)
        self.device = str(self._adapt()["device"])

    def _adapt(self) -> dict[str, object]:
        found = tomllib.loads(self.config.read_text(encoding="utf-8"))
        found["meter"] |= {"poll_ms": 15_000}
        found["board"] |= {"poll_ms": 6_000, "heartbeat_s": 60}
        found["uplink"] |= {"retry_s": 120}
        found["pevlink"] = {"host": "127.0.0.1", "port": self.ports.pevlink}
        plain = [f"{name} = {json.dumps(value)}" for name, value in found.items() if not isinstance(value, dict)]
        for name, table in found.items():
            if isinstance(table, dict):
                plain += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        self.config.write_text("\n".join(plain) + "\n", encoding="utf-8")
        return found

    def start_world(self, scale: int, begin_utc: str, seed: int) -> None:
        """Start the clock, the simulator, the gateway and the agent."""
        clock = {VARIABLE: f"{scale},{time.monotonic():.3f},{begin_utc}"}
        self._environment |= clock
        scenario = self.folder / "scenario.toml"
        scenario.write_text(self._scenario(), encoding="utf-8")
        self.crew.start("sim", [str(HERE / "evse-sim"), "run", str(scenario), "--seed", str(seed), "--state-dir",
                                str(self.sim_dir), "--json", "--stdin"], clock)
        self.crew.start("gateway", [str(HERE / "evse-cloud"), "--state", str(self.cloud_dir), "gateway"], clock)
        self.crew.start("agent", [str(HERE / "evse-agent"), "run", "--config", str(self.config)], clock)

    def _scenario(self) -> str:
        vehicle = """
[[vehicle]]
name = "{name}"
vin = "{vin}"
capacity_wh = {capacity_wh}
soc_percent = {soc_percent}
cert = "{name}/pev.crt"
key = "{name}/pev.key"
ca = "{name}/ca.crt"
pevlink = "127.0.0.1:{port}"
params_file = "{name}/params.json"
"""
        parts = [("leaf", LEAF, 40_000, 35), ("stranger", STRANGER, 52_000, 60)]
        return "[meter]\nregister_start_kwh = 1234.567\n" + "".join(
            vehicle.format(name=name, vin=vin, capacity_wh=capacity_wh, soc_percent=soc, port=self.ports.pevlink)
            for name, vin, capacity_wh, soc in parts)

    def do(self, deed: str, **arguments: str) -> None:
        """Let something happen in the simulated world."""
        self.crew.tell("sim", json.dumps({"do": deed, **arguments}))

    def world(self) -> dict[str, object]:
        """The simulated world's own account of itself; empty before it began."""
        try:
            found = json.loads((self.sim_dir / "sim.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        if not isinstance(found, dict):
            raise BenchError(f"{self.sim_dir / 'sim.json'} is not an account of the world")
        return found

    def status(self) -> dict[str, object]:
        """The agent's own account, from its status socket; empty while it does not answer."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
                one.settimeout(2.0)
                one.connect(str(self.agent_dir / "status.sock"))
                text = b""
                while part := one.recv(65_536):
                    text += part
            found = json.loads(text)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def environment() -> dict[str, str]:
    """This process's environment without what would bend the demonstration."""
    dropped = {VARIABLE, "PLUGBIND_AGENT_CONFIG", "PLUGBIND_CLOUD_STATE", "PLUGBIND_CODE"}
    return {name: value for name, value in os.environ.items() if name not in dropped} | {"PYTHONUNBUFFERED": "1"}
