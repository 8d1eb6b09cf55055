"""The gateway as a process, with the embedded broker and a charger over real mutual TLS."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from sqlalchemy.orm import Session

from cloud import security
from cloud.billing import service as billing
from cloud.db import engine_for
from cloud.metering import service as metering
from cloud.pki import Pki
from desk_world import DEVICE, PREMISES, START, VIN, Journal, Utility, interval, key, private_key
from esci import topics
from esci.messages import DOWN, Ack, BindConfirm, Down
from esci.seal import canonical, load, seal
from esci.units import format_utc

WAIT_S = 20


class Process:
    """A program of the utility, its log lines read as they come."""

    def __init__(self, state: Path, command: str) -> None:
        program = "from cloud.cli import main; main()"
        environment = os.environ | {"PLUGBIND_CLOCK": f"1,{time.monotonic()},{format_utc(START)}"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, "--state", str(state), command], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=environment,
        )

    def await_line(self, message: str) -> dict[str, object]:
        """The first line from now on with that message; fails when the program ends before."""
        assert self._process.stdout is not None
        seen = []
        for line in self._process.stdout:
            seen.append(line)
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if found.get("message") == message:
                    return dict(found)
        raise AssertionError(f"ended without {message!r}: {seen}")

    def kill(self) -> None:
        """As a power cut would."""
        self._process.kill()
        self._process.wait(WAIT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def stop(self) -> int:
        """The exit code after SIGTERM."""
        self._process.send_signal(signal.SIGTERM)
        output, _ = self._process.communicate(timeout=WAIT_S)
        assert "VIN" not in output
        return self._process.returncode


class Charger:
    """A charger's MQTT client."""

    def __init__(self, pki: Pki, folder: Path, port: int) -> None:
        certificate = pki.device_certifier(datetime.now(UTC))(DEVICE, private_key("device").public_key())
        (folder / "device.crt").write_text(security.certificate_pem(certificate))
        (folder / "device.key").write_bytes(security.key_pem(private_key("device")))
        context = ssl.create_default_context(cafile=str(pki.utility_ca))
        context.load_cert_chain(folder / "device.crt", folder / "device.key")
        self._heard: queue.Queue[Down] = queue.Queue()
        ready = queue.Queue[bool]()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=DEVICE, clean_session=False)
        self.client.tls_set_context(context)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda client, *_: client.subscribe(topics.all_down(DEVICE), qos=1) and None
        self.client.on_subscribe = lambda *_: ready.put(True)
        self.client.on_message = self._on_message
        self.client.connect("localhost", port, keepalive=10)
        self.client.loop_start()
        ready.get(timeout=WAIT_S)

    def _on_message(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        body = load(bytes(message.payload))["body"]
        assert isinstance(body, dict)
        self._heard.put(DOWN.validate_json(canonical(body)))

    def say(self, message: dict[str, object]) -> None:
        """Publish the message, sealed, and return when the broker has it."""
        topic = topics.up(DEVICE, str(message["kind"]))
        self.client.publish(topic, seal(message, key("device")), qos=1).wait_for_publish(WAIT_S)

    def hear(self, kind: str) -> Down:
        """The next message of that kind."""
        while True:
            found = self._heard.get(timeout=WAIT_S)
            if found.kind == kind:
                return found

    def close(self) -> None:
        """Leave."""
        self.client.disconnect()
        self.client.loop_stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder with keys, a database and the enrolled house of desk_world."""
    (tmp_path / "cloud.toml").write_text(f"[broker]\nport = {free_port()}\n")
    Pki(tmp_path / "pki").create(("localhost", "127.0.0.1"), datetime.now(UTC))
    Utility(f"sqlite:///{tmp_path / 'cloud.db'}").engine.dispose()
    return tmp_path


@pytest.fixture
def broker(state: Path) -> Iterator[Process]:
    """The embedded broker, ready."""
    process = Process(state, "broker")
    process.await_line("broker ready")
    yield process
    process.kill()


def port_of(state: Path) -> int:
    return int((state / "cloud.toml").read_text().split()[3])


@pytest.mark.req("P1-S1.9", "P1-S1.11", "P1-S3.1", "P1-S3.3")
def test_a_charger_is_answered_and_its_energy_billed_once_though_the_gateway_is_killed(
    state: Path, broker: Process
) -> None:
    world = Utility()  # only for ids and bodies
    start = world.now - timedelta(minutes=15)
    journal = Journal()
    journal.add("interval", interval(start, 0, 500), start)
    journal.add("interval", interval(start, 900, 500), start)
    gateway = Process(state, "gateway")
    gateway.await_line("ready")
    charger = Charger(Pki(state / "pki"), state, port_of(state))
    try:
        request = world.bind_request()
        charger.say(request)
        answer = charger.hear("bind.confirm")
        assert isinstance(answer, BindConfirm)
        assert answer.request == request["id"]
        gateway.kill()
        charger.say(world.message(**journal.batch(1, 2)))  # waits at the broker
        gateway = Process(state, "gateway")
        gateway.await_line("ready")
        charger.say(world.message(**journal.batch(1, 2)))
        first, second = charger.hear("ack"), charger.hear("ack")
        assert isinstance(first, Ack)
        assert isinstance(second, Ack)
        assert (first.seq, second.seq) == (2, 2)
    finally:
        charger.close()
    assert gateway.stop() == 0
    engine = engine_for(f"sqlite:///{state / 'cloud.db'}")
    with Session(engine) as session:
        found = billing.reconciliation(session)
    engine.dispose()
    assert found.whole
    assert (found.metered_wh, found.posted_wh) == (900, 900)


@pytest.mark.req("P1-S1.10")
def test_what_is_refused_is_kept_and_the_next_message_is_answered(state: Path, broker: Process) -> None:
    world = Utility()
    gateway = Process(state, "gateway")
    gateway.await_line("ready")
    charger = Charger(Pki(state / "pki"), state, port_of(state))
    try:
        charger.client.publish(topics.up(DEVICE, "hello"), b"\x00 not JSON", qos=1).wait_for_publish(WAIT_S)
        charger.say(world.message(
            kind="hello", premises=PREMISES, software="1.0", epoch=1, last_seq=0, acked_seq=0, clock="synced",
            tariffs=[],
        ))
        assert isinstance(charger.hear("ack"), Ack)
    finally:
        charger.close()
    assert gateway.stop() == 0
    engine = engine_for(f"sqlite:///{state / 'cloud.db'}")
    with Session(engine) as session:
        (refused,) = metering.refused_messages(session)
    engine.dispose()
    assert (refused.reason, refused.times) == ("bad-seal", 1)


@pytest.mark.req("P1-S3.1")
def test_while_the_database_is_locked_messages_wait_at_the_broker(state: Path, broker: Process) -> None:
    with (state / "cloud.toml").open("a") as file:
        file.write("[database]\nbusy_ms = 100\n")
    world, journal = Utility(), Journal()
    journal.add("interval", interval(START, 100, 0), START)
    gateway = Process(state, "gateway")
    gateway.await_line("ready")
    charger = Charger(Pki(state / "pki"), state, port_of(state))
    engine = engine_for(f"sqlite:///{state / 'cloud.db'}")
    try:
        with engine.begin() as connection:  # takes the write lock at once
            charger.say(world.message(**journal.batch(1, 1)))
            gateway.await_line("the database is gone, messages stay at the broker")
            gateway.await_line("waiting for the database")
            connection.rollback()
        gateway.await_line("the database is back")
        ack = charger.hear("ack")
        assert isinstance(ack, Ack)
        assert ack.seq == 1
    finally:
        charger.close()
        code = gateway.stop()
    assert code == 0
    with Session(engine) as session:
        assert billing.reconciliation(session).posted_wh == 100
    engine.dispose()


def test_a_gateway_waits_for_its_broker_and_stops_cleanly(state: Path) -> None:
    gateway = Process(state, "gateway")
    gateway.await_line("the broker is gone, trying again")
    broker = Process(state, "broker")
    try:
        broker.await_line("broker ready")
        gateway.await_line("the broker is back")
        gateway.await_line("ready")
        assert gateway.stop() == 0
    finally:
        broker.kill()


def test_the_log_names_no_whole_vin(state: Path, broker: Process) -> None:
    world = Utility()
    gateway = Process(state, "gateway")
    gateway.await_line("ready")
    charger = Charger(Pki(state / "pki"), state, port_of(state))
    try:
        charger.say(world.bind_request())
        line = gateway.await_line("handled")
    finally:
        charger.close()
        gateway.stop()
    assert VIN not in json.dumps(line)
    assert line["pev"] == f"...{VIN[-4:]}"
