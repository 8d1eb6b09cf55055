"""The far end of the benchmarks: a utility that only receives, and an ear for the baseline's readings.

The receiver proves seal and chain of each batch, keeps every record once, and answers as the contract says; it rates
and bills nothing. It keeps its books in memory: only the agent is killed (P1-S3.1).
"""

import json
import secrets
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.enums import CallbackAPIVersion

from esci import topics
from esci.messages import UP, Ack, Hello, RecordItem, Records
from esci.records import ORIGIN, digest
from esci.seal import KeySigner, SealError, seal, unseal


@dataclass(frozen=True, slots=True)
class Wire:
    """A broker and the identity to show there."""

    port: int
    name: str
    cert: Path
    key: Path
    ca: Path

    def client(self, *, clean: bool) -> mqtt.Client:
        """A client with mutual TLS that is not connected yet. `clean`: the broker keeps nothing for it."""
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=self.name, clean_session=clean)
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.cert, self.key)
        client.tls_set_context(context)
        client.reconnect_delay_set(1, 1)
        client.on_socket_open = _answer_at_once
        return client

    def forget(self, wait_s: float = 10.0) -> None:
        """Let the broker drop what it keeps for this identity, so that the next to use it begins with nothing."""
        welcome = threading.Event()
        client = self.client(clean=True)
        client.on_connect = lambda *_: welcome.set()
        client.connect("localhost", self.port)
        client.loop_start()
        welcome.wait(wait_s)
        client.disconnect()
        client.loop_stop()


def _answer_at_once(_: mqtt.Client, __: Any, link: Any) -> None:
    """A short answer does not wait for the other end's delayed acknowledgement (Nagle)."""
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@dataclass(slots=True)
class Epoch:
    """What was accepted of one journal."""

    tail: str = ORIGIN
    items: list[RecordItem] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    repeated: int = 0  # records that came again with the same content, and were not taken a second time
    conflicts: int = 0  # records that came again with another content, or did not fit the chain
    early: int = 0  # batches that left a hole and were not taken

    @property
    def seq(self) -> int:
        """The last accepted record."""
        return len(self.items)

    def take(self, message: Records) -> None:
        """Accept what is new and fits."""
        if message.first_seq > self.seq + 1:
            self.early += 1
            return
        prev = message.prev
        before = ORIGIN if message.first_seq == 1 else self.digests[message.first_seq - 2]
        if prev != before:
            self.conflicts += 1
            return
        for seq, item in enumerate(message.records, message.first_seq):
            prev = digest(prev, message.epoch, seq, item)
            if seq > self.seq:
                self.items.append(item)
                self.digests.append(prev)
            elif self.digests[seq - 1] == prev:
                self.repeated += 1
            else:
                self.conflicts += 1
                return
        self.tail = self.digests[-1]


class Receiver:
    """Acknowledges every record that it has taken, as `evse-cloud gateway` does after its commit."""

    def __init__(self, wire: Wire, device_key: ec.EllipticCurvePublicKey, signer: KeySigner,
                 at: Callable[[], str]) -> None:
        self._device_key, self._signer, self._at = device_key, signer, at
        self._changed = threading.Condition()
        self.epochs: dict[int, Epoch] = {}
        self.refused: list[str] = []
        self._ready = threading.Event()
        self._wire = wire
        self._client = wire.client(clean=False)  # the broker comes and goes
        self._client.on_connect = lambda client, *_: client.subscribe(topics.ALL_UP, qos=1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.connect_async("localhost", wire.port, keepalive=30)

    def start(self, wait_s: float = 20.0) -> None:
        """Connected and subscribed when it returns."""
        self._client.loop_start()
        if not self._ready.wait(wait_s):
            raise TimeoutError("the receiver cannot reach the broker")

    def stop(self) -> None:
        """Leaves the broker, which keeps nothing for it."""
        self._client.disconnect()
        self._client.loop_stop()
        self._wire.forget()

    def wait_for(self, enough: Callable[[dict[int, Epoch]], bool], wait_s: float) -> bool:
        """True once enough was accepted."""
        with self._changed:
            return self._changed.wait_for(lambda: enough(self.epochs), wait_s)

    def _on_message(self, client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
        try:
            body = UP.validate_python(unseal(bytes(message.payload), lambda _kid: self._device_key))
        except (SealError, ValueError) as error:
            self.refused.append(str(error)[:200])
            return
        if not isinstance(body, Hello | Records):
            return
        with self._changed:
            epoch = self.epochs.setdefault(body.epoch, Epoch())
            if isinstance(body, Records):
                epoch.take(body)
            ack = Ack(device=body.device, id=secrets.token_hex(16), at=self._at(), epoch=body.epoch, seq=epoch.seq)
            self._changed.notify_all()
        client.publish(topics.down(body.device, "ack"), seal(ack.model_dump(mode="json"), self._signer), qos=1)


class Ear:
    """Counts how often each of the baseline's readings arrives."""

    def __init__(self, wire: Wire, topic: str) -> None:
        self.heard: Counter[int] = Counter()
        self._ready = threading.Event()
        self._client = wire.client(clean=True)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.connect_async("localhost", wire.port, keepalive=30)

    def start(self, wait_s: float = 20.0) -> None:
        """Connected and subscribed when it returns."""
        self._client.loop_start()
        if not self._ready.wait(wait_s):
            raise TimeoutError("the ear cannot reach the broker")

    def stop(self) -> None:
        """Leaves the broker."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _: mqtt.Client, __: Any, message: mqtt.MQTTMessage) -> None:
        self.heard[int(json.loads(message.payload)["id"])] += 1
