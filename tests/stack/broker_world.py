"""The world of the broker tests: keys, certificates, a running broker of either kind, clients that wait, not sleep."""

from __future__ import annotations

import queue
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from cloud import security
from cloud.pki import PEV, UTILITY, Pki

WAIT_S = 15
EVSE_CLOUD = (sys.executable, "-m", "cloud.cli")


@dataclass(frozen=True)
class Card:
    """A certificate with its key, as files."""

    certificate: Path
    key: Path
    serial: int


class World:
    """A state folder with keys, and the port that its broker will have."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.pki = Pki(state / "pki")
        self.port = free_port()
        state.mkdir(mode=0o700, exist_ok=True)
        (state / "cloud.toml").write_text(f"[broker]\nport = {self.port}\n")
        self.pki.create(("localhost", "127.0.0.1"), datetime.now(UTC))
        self.pki.make_client("observer", datetime.now(UTC))
        for name in ("D1", "D2"):
            self.card(name, security.device_leaf(name), UTILITY)

    def card(self, file: str, leaf: security.Leaf, issuer: str, days_ago: int = 0) -> Card:
        """Issue a certificate, as if some days ago; `issuer` is an authority of this folder or `foreign`."""
        now = datetime.now(UTC)
        authority = (
            security.make_authority("Plugbind utility CA", now)
            if issuer == "foreign"
            else self.pki._authority(issuer)
        )
        key = security.new_key()
        certificate = security.issue(authority, key.public_key(), leaf, now - timedelta(days=days_ago))
        card = Card(self.state / f"{file}.crt", self.state / f"{file}.key", certificate.serial_number)
        card.certificate.write_text(security.certificate_pem(certificate))
        card.key.write_bytes(security.key_pem(key))
        return card

    def known(self, name: str) -> Card:
        """The card of D1, D2 or a service."""
        if name in ("D1", "D2"):
            return Card(self.state / f"{name}.crt", self.state / f"{name}.key", 0)
        files = self.pki.service(name)
        return Card(files.certificate, files.key, 0)

    def vehicle(self) -> Card:
        """A vehicle's certificate."""
        return self.card("pev", security.pev_leaf("1HGCM82633A004352"), PEV)

    def cloud(self, *words: str) -> None:
        """Run `evse-cloud` to its end."""
        subprocess.run([*EVSE_CLOUD, "--state", str(self.state), *words], check=True, timeout=60, capture_output=True)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(words: list[str], ready: str) -> Iterator[subprocess.Popen[str]]:
    """A process from the moment it says `ready` until it is told to stop."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    watchdog = threading.Timer(WAIT_S, process.kill)
    watchdog.start()
    try:
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if ready in line:
                break
        else:
            raise AssertionError(f"{words} ended: {''.join(said)}")
        watchdog.cancel()
        yield process
    finally:
        watchdog.cancel()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAIT_S)


class Client:
    """A paho client whose events are queues."""

    def __init__(self, world: World, card: Card | None, client_id: str, *, clean: bool = True,
                 will: tuple[str, bytes] | None = None) -> None:
        self.connected: queue.Queue[str] = queue.Queue()
        self.gone: queue.Queue[bool] = queue.Queue()
        self.messages: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._granted: queue.Queue[list[bool]] = queue.Queue()
        self._mqtt = mqtt.Client(CallbackAPIVersion.VERSION2, client_id, clean, reconnect_on_failure=False)
        context = ssl.create_default_context(cafile=str(world.pki.utility_ca))
        if card is not None:
            context.load_cert_chain(card.certificate, card.key)
        self._mqtt.tls_set_context(context)
        self._mqtt.on_connect = lambda _c, _u, _f, code, _p: self.connected.put(
            "refused" if code.is_failure else "connected")
        self._mqtt.on_disconnect = self._on_disconnect
        self._mqtt.on_message = lambda _c, _u, message: self.messages.put((message.topic, bytes(message.payload)))
        self._mqtt.on_subscribe = lambda _c, _u, _m, codes, _p: self._granted.put([not one.is_failure for one in codes])
        if will is not None:
            self._mqtt.will_set(will[0], will[1], qos=1)
        self._port = world.port

    def _on_disconnect(self, *_: object) -> None:
        self.gone.put(True)
        self.connected.put("refused")

    def connect(self) -> str:
        """`connected` or `refused`."""
        try:
            self._mqtt.connect("localhost", self._port, keepalive=30)
        except (ssl.SSLError, OSError):
            self._close()
            return "refused"
        self._mqtt.loop_start()
        outcome = self.connected.get(timeout=WAIT_S)
        if outcome == "refused":
            self._close()
        return outcome

    def subscribe(self, topic: str) -> bool:
        """True when the broker granted it."""
        self._mqtt.subscribe(topic, qos=1)
        return self._granted.get(timeout=WAIT_S)[0]

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish with QoS 1 and wait for the broker's acknowledgement."""
        self._mqtt.publish(topic, payload, qos=1, retain=retain).wait_for_publish(WAIT_S)

    def post(self, topic: str, payload: bytes) -> None:
        """Publish and wait for nothing: the broker may hang up."""
        self._mqtt.publish(topic, payload, qos=1)

    def next(self) -> tuple[str, bytes]:
        """The next message."""
        return self.messages.get(timeout=WAIT_S)

    def drop(self) -> None:
        """Lose the connection without a word."""
        found = self._mqtt.socket()
        assert isinstance(found, socket.socket)
        found.shutdown(socket.SHUT_RDWR)
        self.gone.get(timeout=WAIT_S)
        self._close()

    def leave(self) -> None:
        """Say good-bye."""
        self._mqtt.disconnect()
        self._close()

    def _close(self) -> None:
        """End paho's thread and let go of its sockets: without our callbacks nothing holds it in a circle."""
        self._mqtt.loop_stop()
        self._mqtt.on_connect = self._mqtt.on_disconnect = self._mqtt.on_message = self._mqtt.on_subscribe = None


@contextmanager
def client(world: World, name: str, *, card: Card | None = None, clean: bool = True) -> Iterator[Client]:
    """A connected client with the card of that name."""
    made = Client(world, card or world.known(name), name, clean=clean)
    assert made.connect() == "connected"
    try:
        yield made
    finally:
        made.leave()
