"""The uplink against a real mosquitto with mutual TLS: round trip, outages, refusals and bad messages."""

from __future__ import annotations

import getpass
import json
import logging
import queue
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.enums import CallbackAPIVersion

from agent.adapters.keys import TlsFiles
from agent.adapters.mqtt import QUEUED_MAX, MqttUplink, UplinkError
from agent.config import UplinkConfig
from agent.core.events import Event, Received, UplinkLost, UplinkOpened
from esci import topics
from esci.messages import Params, State, TariffRef
from esci.reasons import Reason
from esci.seal import KeySigner, Signer, seal
from stack.agent_certs import LOCAL, Authority

DEVICE = "device-1"
WORLD = datetime(2025, 7, 16, 3, 20, tzinfo=UTC)
PATIENCE_S = 20.0
PARAMS = Params(device=DEVICE, id="c" * 32, at="2025-07-16T03:20:00Z", premises="home", interval_s=900,
                default_tariff=TariffRef(code="D", version="1"), binding_wait_s=60, charge_without_binding=True)


# paho leaves the socket of a failed handshake to the garbage collector, which closes it at once, but with a warning.
PAHO_LEAVES_SOCKETS = pytest.mark.filterwarnings("ignore:Exception ignored in.*ssl.SSLSocket")


@dataclass(slots=True)
class Broker:
    """A mosquitto process on a port of its own, which it keeps over restarts."""

    binary: str
    folder: Path
    tls: TlsFiles
    extra: str = ""
    port: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        if self.port == 0:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
        config = self.folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\nuser {getpass.getuser()}\nlog_dest stderr\n"
            f"cafile {self.tls.ca}\ncertfile {self.tls.cert}\nkeyfile {self.tls.key}\n"
            f"require_certificate true\nallow_anonymous false\n{self.extra}\n", "utf-8")
        self.process = subprocess.Popen([self.binary, "-c", config], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if "running" in line:
                return
        self.kill()
        raise AssertionError("".join(said))

    def kill(self) -> None:
        if self.process is not None:
            assert self.process.stderr is not None
            self.process.kill()
            self.process.wait()
            self.process.stderr.close()
            self.process = None


@dataclass(slots=True)
class Inbox:
    """The station's inbox, which a test can make full."""

    events: queue.Queue[Event] = field(default_factory=lambda: queue.Queue(100))
    refusals: int = 0

    def post(self, event: Event) -> None:
        if self.refusals:
            self.refusals -= 1
            raise queue.Full
        self.events.put_nowait(event)

    def heard(self) -> Event:
        return self.events.get(timeout=PATIENCE_S)


@dataclass(frozen=True, slots=True)
class World:
    """Broker, authorities and the utility's key; uplinks are made on demand and stopped afterwards."""

    broker: Broker
    ca: Authority
    signer: KeySigner
    public: ec.EllipticCurvePublicKey
    inbox: Inbox
    uplinks: list[MqttUplink]

    def uplink(self, tls: TlsFiles | None = None, port: int = 0, host: str = "127.0.0.1") -> MqttUplink:
        config = UplinkConfig(host=host, port=port or self.broker.port, keepalive_s=5)
        files = self.ca.issue(DEVICE) if tls is None else tls
        made = MqttUplink(config, DEVICE, files, self.public, self.inbox.post, lambda: WORLD)
        self.uplinks.append(made)
        made.start()
        return made

    def lost(self) -> str:
        event = self.inbox.heard()
        assert isinstance(event, UplinkLost)
        return event.cause


class Utility:
    """The utility's end of the broker, in paho's plainest form."""

    def __init__(self, world: World) -> None:
        files = world.ca.issue("utility")
        self.heard: queue.Queue[paho.MQTTMessage] = queue.Queue()
        ready: queue.Queue[None] = queue.Queue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id="utility")
        self.client.tls_set(str(files.ca), str(files.cert), str(files.key))
        self.client.on_message = lambda _, __, message: self.heard.put(message)
        self.client.on_subscribe = lambda *_: ready.put(None)
        self.client.connect("127.0.0.1", world.broker.port)
        self.client.loop_start()
        self.client.subscribe([(topics.ALL_UP, 1), ("esci/1/+/state", 1)])
        ready.get(timeout=PATIENCE_S)

    def say(self, payload: bytes, topic: str = topics.down(DEVICE, "params")) -> None:
        self.client.publish(topic, payload, qos=1).wait_for_publish(PATIENCE_S)

    def state(self) -> State:
        message = self.heard.get(timeout=PATIENCE_S)
        assert message.topic == topics.state(DEVICE)
        return State.model_validate_json(bytes(message.payload))

    def leave(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("certs"), "utility-ca")


Begin = Callable[..., World]


@pytest.fixture
def begin(ca: Authority, mosquitto_bin: str, tmp_path: Path) -> Iterator[Begin]:
    """Begins a world with a running broker; its settings can be given."""
    worlds: list[World] = []

    def _begin(extra: str = "use_identity_as_username true", server: TlsFiles | None = None) -> World:
        key = ec.generate_private_key(ec.SECP256R1())
        broker = Broker(mosquitto_bin, tmp_path, server or ca.issue("broker", *LOCAL), extra)
        broker.start()
        worlds.append(World(broker, ca, KeySigner(key), key.public_key(), Inbox(), []))
        return worlds[-1]

    yield _begin
    for world in worlds:
        for uplink in world.uplinks:
            uplink.stop()
        world.broker.kill()


@pytest.fixture
def world(begin: Begin) -> World:
    return begin()


@pytest.fixture
def utility(world: World) -> Iterator[Utility]:
    made = Utility(world)
    yield made
    made.leave()


def sealed(message: Params, signer: Signer, **changed: object) -> bytes:
    return seal(json.loads(message.model_dump_json()) | changed, signer)


# ---- the honest ----


def test_both_ways_over_mutual_tls(world: World, utility: Utility) -> None:
    uplink = world.uplink()
    assert world.inbox.heard() == UplinkOpened()
    utility.say(sealed(PARAMS, world.signer))
    assert world.inbox.heard() == Received(PARAMS)
    uplink.publish(topics.up(DEVICE, "hello"), b"payload")
    message = utility.heard.get(timeout=PATIENCE_S)
    assert (message.topic, message.payload, message.qos) == (topics.up(DEVICE, "hello"), b"payload", 1)


def test_the_broker_dies_and_returns_and_each_is_told_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "agent.adapters.mqtt")
    uplink = world.uplink()
    assert world.inbox.heard() == UplinkOpened()
    world.broker.kill()
    assert "is away" in world.lost()
    uplink.publish(topics.up(DEVICE, "hello"), b"lost")
    assert uplink.dropped == 1
    world.broker.start()
    assert world.inbox.heard() == UplinkOpened()
    assert world.inbox.events.empty()
    assert [record.message for record in caplog.records if record.levelno >= logging.INFO] == [
        "broker is gone", "broker is back"]


def test_what_the_utility_said_while_we_were_away_arrives(world: World, utility: Utility) -> None:
    uplink = world.uplink()
    assert world.inbox.heard() == UplinkOpened()
    uplink.stop()
    utility.say(sealed(PARAMS, world.signer))
    world.uplink()
    assert {type(world.inbox.heard()), type(world.inbox.heard())} == {UplinkOpened, Received}


def test_a_full_inbox_loses_no_message(world: World, utility: Utility) -> None:
    world.uplink()
    assert world.inbox.heard() == UplinkOpened()
    world.inbox.refusals = 3
    utility.say(sealed(PARAMS, world.signer))
    assert world.inbox.heard() == Received(PARAMS)


def test_an_agent_that_dies_is_shown_offline_with_everything_unknown(world: World, utility: Utility) -> None:
    uplink = world.uplink()
    assert world.inbox.heard() == UplinkOpened()
    uplink._hang_up()  # as a cut cable or kill -9 would: the broker hears no goodbye
    state = utility.state()
    assert (state.online, state.pilot, state.contactor, state.power_w) == (False, "unknown", "unknown", None)


def test_an_agent_that_stops_is_shown_offline(world: World, utility: Utility) -> None:
    uplink = world.uplink()
    assert world.inbox.heard() == UplinkOpened()
    uplink.stop()
    assert utility.state().online is False
    assert world.inbox.events.empty()


def test_too_many_waiting_messages_are_dropped_and_counted(world: World) -> None:
    uplink = world.uplink()
    assert world.inbox.heard() == UplinkOpened()
    assert world.broker.process is not None
    world.broker.process.send_signal(19)  # SIGSTOP: the broker is there and says nothing
    for _ in range(100):
        uplink.publish(topics.up(DEVICE, "hello"), b"x" * 1000)
    assert uplink.dropped >= 100 - 2 * QUEUED_MAX
    world.broker.kill()


# ---- refusals by the broker ----


@pytest.mark.parametrize("who", ["another CA", "expired", "revoked"])
def test_a_refused_certificate_is_a_sentence(who: str, begin: Begin, ca: Authority, tmp_path: Path) -> None:
    files = {
        "another CA": lambda: Authority.make(tmp_path / "other", "utility-ca").issue(DEVICE, ca=ca.file),
        "expired": lambda: ca.issue(DEVICE, expired=True),
        "revoked": lambda: ca.issue(DEVICE),
    }[who]()
    crl = tmp_path / "utility.crl"
    crl.write_bytes(ca.revoke(files))
    world = begin(f"use_identity_as_username true\ncrlfile {crl}")
    world.uplink(files)
    cause = world.lost()
    assert f"broker 127.0.0.1:{world.broker.port} " in cause
    assert "refused our certificate: commission again or check that it is not revoked or expired" in cause


def test_a_broker_that_refuses_us_by_name_is_a_sentence(begin: Begin) -> None:
    world = begin("")  # nobody is let in without a password
    world.uplink()
    assert "refused us (Not authorized): check that this device is not revoked" in world.lost()


@PAHO_LEAVES_SOCKETS
def test_an_impostor_of_a_broker_is_not_talked_to(begin: Begin, tmp_path: Path, ca: Authority) -> None:
    world = begin()
    stranger = Authority.make(tmp_path / "other", "other-ca")
    world.uplink(ca.issue(DEVICE, ca=stranger.file))
    assert "is not who the utility's CA vouches for" in world.lost()


@PAHO_LEAVES_SOCKETS
def test_a_device_that_poses_as_the_broker_is_not_talked_to(begin: Begin, ca: Authority) -> None:
    """Any enrolled device holds a certificate of the utility's CA; only the name tells it from the broker."""
    world = begin(server=ca.issue("device-2"))
    world.uplink()
    assert "is not who the utility's CA vouches for" in world.lost()


def test_no_broker_is_a_sentence(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world.uplink(port=port)
    assert f"broker 127.0.0.1:{port} cannot be reached" in world.lost()


def test_an_unknown_host_is_a_sentence(world: World) -> None:
    world.uplink(host="broker.invalid")
    assert "broker broker.invalid:" in (cause := world.lost())
    assert "cannot be found" in cause


@PAHO_LEAVES_SOCKETS
def test_a_port_that_speaks_no_tls_is_a_sentence(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        world.uplink(port=listener.getsockname()[1])
        connection, _ = listener.accept()
        connection.sendall(b"220 mail.example.org ESMTP\r\n")
        assert "does not speak TLS as we do" in world.lost()
        connection.close()


def test_unusable_keys_and_hosts_are_sentences(world: World, tmp_path: Path) -> None:
    files = world.ca.issue(DEVICE)
    with pytest.raises(UplinkError, match="cannot be used .*: run `evse-agent commission`"):
        world.uplink(TlsFiles(tmp_path / "none", files.cert, files.ca))
    with pytest.raises(UplinkError, match=r"uplink\.host = 'a\.\.b' is not a host name"):
        world.uplink(host="a..b")


# ---- bad messages ----


def _bad(signer: KeySigner) -> dict[str, tuple[str, bytes, Reason]]:
    params, tariff = topics.down(DEVICE, "params"), topics.down(DEVICE, "tariff")
    stranger = KeySigner(ec.generate_private_key(ec.SECP256R1()))
    good = sealed(PARAMS, signer)
    return {
        "unknown kind": (f"esci/1/{DEVICE}/down/selfdestruct", good, Reason.WRONG_TOPIC),
        "kind of another topic": (tariff, good, Reason.WRONG_TOPIC),
        "another device": (params, sealed(PARAMS, signer, device="device-2"), Reason.WRONG_TOPIC),
        "stranger's seal": (params, sealed(PARAMS, stranger), Reason.BAD_SEAL),
        "tampered": (params, good.replace(b'"interval_s":900', b'"interval_s":300'), Reason.BAD_SEAL),
        "not JSON": (params, b"\xff\xfe", Reason.BAD_SEAL),
        "empty": (params, b"", Reason.BAD_SEAL),
        "nested": (params, b"[" * 100_000, Reason.BAD_SEAL),
        "huge": (params, b" " * 300_000, Reason.BAD_SEAL),
        "unknown member": (params, sealed(PARAMS, signer, extra=1), Reason.MALFORMED),
        "out of bounds": (params, sealed(PARAMS, signer, interval_s=7), Reason.MALFORMED),
        "kind not yet known": (topics.down(DEVICE, "dsm"), sealed(PARAMS, signer, kind="dsm"), Reason.MALFORMED),
    }


@pytest.mark.req("P1-S1.11")
def test_bad_messages_are_counted_and_change_nothing(world: World, utility: Utility) -> None:
    uplink = world.uplink()
    assert world.inbox.heard() == UplinkOpened()
    bad = _bad(world.signer)
    for topic, payload, _ in bad.values():
        utility.say(payload, topic)
    utility.say(sealed(PARAMS, world.signer))
    assert world.inbox.heard() == Received(PARAMS)
    assert uplink.refused == {reason: sum(1 for _, _, why in bad.values() if why is reason)
                              for reason in (Reason.WRONG_TOPIC, Reason.BAD_SEAL, Reason.MALFORMED)}


def test_a_flood_of_bad_messages_does_not_flood_the_log(
    world: World, utility: Utility, caplog: pytest.LogCaptureFixture
) -> None:
    uplink = world.uplink()
    assert world.inbox.heard() == UplinkOpened()
    for _ in range(100):
        utility.client.publish(topics.down(DEVICE, "params"), b"x", qos=1)
    utility.say(sealed(PARAMS, world.signer))
    assert world.inbox.heard() == Received(PARAMS)
    assert uplink.refused[Reason.BAD_SEAL] == 100
    assert len([record for record in caplog.records if record.message == "message refused"]) == 7
