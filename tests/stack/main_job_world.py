"""A real utility for the tests of the main job: mosquitto, PostgreSQL, gateway, simulator and agent, each a process.

It is the demonstration's plant (`hil.plant`) with production's broker and database, a charger that is a stranger to the
first one, and an observer: a client with a certificate of its own that only listens (P1-S1.9).
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from hil.plant import LEAF, Plant, environment
from hil.processes import BenchError, Crew, Ear, Heard, ask

Made = TypeVar("Made")
HERE = Path(sys.executable).parent
STEP_S = 20.0
WAIT_S = 15.0
MANY = 1_000_000
SERVICES = ("observer", "gateway-other")


@dataclass(frozen=True, slots=True)
class Seen:
    """One message as a client got it from the broker. `body`: what is sealed, or the whole when nothing is."""

    topic: str
    kind: str
    body: Mapping[str, Any]
    is_sealed: bool


class Listener:
    """A client of the broker that keeps all it hears; it comes back by itself when the broker does."""

    def __init__(self, folder: Path, name: str, port: int, topic: str) -> None:
        """`folder` holds NAME.key, NAME.crt and ca.crt."""
        self._topic = topic
        self._seen: list[Seen] = []
        self._changed = threading.Condition()
        self._granted = False
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, name, clean_session=False)
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
        self._client.tls_set_context(context)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.connect_async("localhost", port)
        self._client.loop_start()
        self.wait(f"{name} listens to {topic}", lambda: self._granted)

    def wait(self, what: str, happened: Callable[[], bool]) -> None:
        """Return once it has happened. Raises BenchError when it does not in time."""
        with self._changed:
            if not self._changed.wait_for(happened, WAIT_S):
                raise BenchError(f"waited {WAIT_S:g} s for: {what}; it did not happen")

    def await_seen(self, what: str, wanted: Callable[[Seen], bool]) -> Seen:
        """The first wanted message of all that was and will be heard. Raises BenchError when none comes in time."""
        self.wait(what, lambda: any(map(wanted, self._seen)))
        return next(filter(wanted, self.seen()))

    def seen(self) -> list[Seen]:
        """Everything so far, in the broker's order."""
        with self._changed:
            return list(self._seen)

    def post(self, topic: str, payload: bytes) -> None:
        """Publish with QoS 1 and wait for the broker's acknowledgement, which it gives to forbidden topics as well."""
        self._client.publish(topic, payload, qos=1).wait_for_publish(WAIT_S)

    def close(self) -> None:
        """Leave the broker."""
        self._client.disconnect()
        self._client.loop_stop()
        self._client.on_connect = self._client.on_subscribe = self._client.on_message = None

    def _on_subscribe(self, *_: object) -> None:
        with self._changed:
            self._granted = True
            self._changed.notify_all()

    def _on_message(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        try:
            found = json.loads(message.payload)
        except ValueError:
            found = {}
        body = found if isinstance(found, dict) else {}
        sealed = isinstance(body.get("seal"), dict) and isinstance(body.get("body"), dict)
        one = Seen(message.topic, message.topic.rsplit("/", 1)[1], body["body"] if sealed else body, sealed)
        with self._changed:
            self._seen.append(one)
            self._changed.notify_all()


class TidyCrew(Crew):
    """A crew that also waits for a child that ends by itself."""

    def ended(self, name: str) -> int:
        """The exit code of a child that is about to end by itself."""
        self._expected.add(name)
        return self._children[name].wait(STEP_S)


class Utility(Plant):
    """The plant with mosquitto and any database; its programs are waited for by what they say."""

    def __init__(self, folder: Path, crew: TidyCrew, ear: Ear, mosquitto: str, database_url: str) -> None:
        """`database_url` empty: SQLite."""
        super().__init__(folder, crew, environment())
        self.crew: TidyCrew = crew
        self._ear, self._mosquitto, self._database_url = ear, mosquitto, database_url
        self.keys = folder / "clients"
        self.scale = 1

    # ---- set-up

    def found_utility(self) -> None:
        """Keys, certificates, database."""
        (self.cloud_dir / "cloud.toml").write_text(
            f"[database]\nurl = {json.dumps(self._database_url)}\n[broker]\nport = {self.ports.broker}\n"
            f"[api]\nport = {self.ports.api}\n", encoding="utf-8")
        self.cloud("init")

    def _prepare_broker(self) -> None:
        """Certificates for the listeners, and then mosquitto's files."""
        for name in SERVICES:
            self.cloud("certificate", "--service", name, "--out", str(self.keys))
        self.cloud("broker-config", "--out", str(self.folder / "mosquitto"))

    def start_broker(self) -> None:
        """Debian's mosquitto, and return when it listens."""
        since = self._ear.position
        self.crew.start("broker", [self._mosquitto, "-c", str(self.folder / "mosquitto" / "mosquitto.conf")])
        self._ear.wait("mosquitto runs", lambda line: line.source == "broker" and line.event.endswith(" running"),
                       since, STEP_S, self.crew.check)

    def open(self, with_other: bool = False, interval_min: int = 5) -> None:
        """Found, enrol, start broker and API, commission; the API is not needed any more then."""
        self.found_utility()
        since = self._ear.position
        self.start_api()
        with ThreadPoolExecutor() as hands:
            for done in [hands.submit(self._prepare_broker), hands.submit(self.enrol)]:
                done.result()
        if interval_min != 5:
            self.cloud("enrol", "premises", "--id", "P-1001", "--change", "--interval-min", str(interval_min))
        self.start_broker()
        self.see("the API listens", "api", "api ready", since)
        self.commission()
        if with_other:
            self._commission_other()
        self.crew.stop("api")

    def _commission_other(self) -> None:
        """A second charger, whose certificate another customer could hold: keys `D-OTHER` beside the listeners'."""
        code = json.loads(self.cloud("device", "token", "--premises", "P-1001", "--json"))["code"]
        state = self.folder / "other"
        ask([str(HERE / "evse-agent"), "commission", "--meter-port", "/dev/null", "--board-port", "/dev/null",
             "--circuit-max-a", "16", "--device", "D-OTHER", "--state-dir", str(state),
             "--config", str(self.folder / "other.toml")], environment() | {"PLUGBIND_CODE": code})
        for name in ("key", "crt"):
            (self.keys / f"D-OTHER.{name}").write_bytes((state / "keys" / f"device.{name}").read_bytes())

    def begin(self, scale: int, begin_utc: str, seed: int) -> None:
        """Start the clock and all that follows it; return when the charger is ready for a vehicle."""
        self.scale = scale
        since = self._ear.position
        self.start_world(scale, begin_utc, seed)
        self.see("the agent is ready", "agent", "agent ready", since)
        self.see("the agent found the board", "agent", "happened", since, what="BoardFound")
        self.see("the utility's parameters", "agent", "received", since, kind="params")
        self.until("the meter is read", lambda: self.status().get("register_wh") is not None)

    def start_agent(self) -> None:
        """Start the agent once more, on the same clock."""
        self.crew.start("agent", [str(HERE / "evse-agent"), "run", "--config", str(self.config)], self._environment)

    def start_gateway(self) -> None:
        """Start the gateway once more, on the same clock."""
        self.crew.start("gateway", [str(HERE / "evse-cloud"), "--state", str(self.cloud_dir), "gateway"],
                        self._environment)

    def listen(self, name: str, topic: str) -> Listener:
        """A listener with the certificate of that name."""
        return Listener(self.keys, name, self.ports.broker, topic)

    # ---- looking

    def see(self, what: str, source: str, event: str, since: int, /, **fields: str) -> Heard:
        """The first such log line from a position on. Raises BenchError when it does not come in time."""
        def wanted(line: Heard) -> bool:
            return line.source == source and line.event == event and all(
                str(line.fields.get(name)) == value for name, value in fields.items())

        return self._ear.wait(f"{what} ({source}: {event} {fields or ''})", wanted, since, STEP_S, self.crew.check)

    def until(self, what: str, happened: Callable[[], bool]) -> None:
        """Return once it has happened."""
        self._ear.poll(what, happened, STEP_S, self.crew.check)

    def waiting(self) -> int:
        """Records that wait for the utility; MANY while the agent does not say."""
        found = self.status().get("journal_waiting")
        return found if isinstance(found, int) else MANY

    def world_s(self) -> int:
        """Seconds since the simulated world began."""
        found = self.world().get("world_s", 0)
        return found if isinstance(found, int) else 0

    def let_pass(self, world_s: int) -> None:
        """Return when so much world time has passed."""
        begun_s = self.world_s()
        self.until(f"{world_s} s of world time", lambda: self.world_s() >= begun_s + world_s)

    # ---- deeds

    def plug(self, vehicle: str) -> tuple[Heard, int]:
        """Plug in; the agent's line that tells it, and the position before it."""
        since = self._ear.position
        self.do("plug", vehicle=vehicle)
        return self.see("On-Plug", "agent", "board changed", since, plugged="True"), since

    def unplug(self, vehicle: str) -> None:
        """Unplug, and return when the session's end is recorded."""
        since = self._ear.position
        self.do("unplug", vehicle=vehicle)
        self.see("the session's end", "agent", "recorded", since, record="session.ended")

    def drained(self) -> None:
        """Return when the utility has acknowledged every record."""
        self.until("the journal is drained", lambda: self.waiting() == 0)

    def suspend(self, word: str) -> None:
        """`--suspend` or `--resume` the enrolled vehicle."""
        self.cloud("enrol", "pev", "--vin", LEAF, word)

    def account(self) -> Account:
        """What charger, utility and the simulated world say of the same energy."""
        sessions = [one["session"] for one in json.loads(self.agent("sessions", "--json"))]
        with ThreadPoolExecutor() as hands:
            told = [hands.submit(self.cloud, *words, "--json")
                    for words in (("bill", "--premises", "P-1001"), ("reconcile",), ("trial-balance",))]
            receipts = {name: hands.submit(self.agent, "receipt", name, "--json") for name in sessions}
        bill, whole, balance = (json.loads(one.result()) for one in told)
        return Account({name: json.loads(one.result()) for name, one in receipts.items()}, bill, whole, balance,
                       self.world())


@dataclass(frozen=True, slots=True)
class Account:
    """Receipts by session, oldest first; the statement; the reconciliation; the ledger; the world's own account."""

    receipts: Mapping[str, Mapping[str, Any]]
    bill: Mapping[str, Any]
    whole: Mapping[str, Any]
    balance: Mapping[str, Any]
    world: Mapping[str, Any]

    def billed(self, session: str) -> Mapping[str, Any]:
        """The statement of one session."""
        (found,) = [one for one in self.bill["sessions"] if one["session"] == session]
        assert isinstance(found, dict)
        return found

    @property
    def delta_wh(self) -> int:
        """How far the meter's register went."""
        return int(self.world["register_wh"]) - int(self.world["register_start_wh"])

    def device(self, device: str) -> Mapping[str, Any]:
        """The reconciliation of one charger."""
        (found,) = [one for one in self.whole["devices"] if one["device_id"] == device]
        assert isinstance(found, dict)
        return found


@contextmanager
def utility(folder: Path, mosquitto: str, database_url: str = "") -> Iterator[tuple[Utility, Ear]]:
    """A utility whose processes are gone at the end."""
    ear = Ear(lambda _: None)
    crew = TidyCrew(ear, folder, environment())
    with crew:
        yield Utility(folder, crew, ear, mosquitto, database_url), ear


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """What `make` returns for a folder; made once in a test run, however many workers of xdist ask for it."""
    folder = factory.getbasetemp()
    root = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = root / f"{name}.pickle"
        if not kept.exists():
            made = pickle.dumps(make(factory.mktemp(name)))
            kept.write_bytes(made)
        found: Made = pickle.loads(kept.read_bytes())
        return found
