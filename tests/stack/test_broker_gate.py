"""The broker, embedded and Debian's mosquitto: who gets in, who may say and hear what, and what arrives (P1-S1.9)."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloud import security
from cloud.pki import UTILITY
from stack.broker_world import EVSE_CLOUD, WAIT_S, Client, World, client, running

pytestmark = pytest.mark.req("P1-S1.9")


@pytest.fixture(scope="module", params=["embedded", "mosquitto"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp(request.param))
    made.pki.write_crl([made.card("revoked", security.device_leaf("D3"), UTILITY).serial], datetime.now(UTC))
    if request.param == "embedded":
        words, ready = [*EVSE_CLOUD, "--state", str(made.state), "broker"], "broker ready"
    else:
        program = request.getfixturevalue("mosquitto_bin")
        made.cloud("broker-config", "--out", str(made.state / "mosquitto"))
        words, ready = [program, "-c", str(made.state / "mosquitto" / "mosquitto.conf")], "running"
    with running(words, ready):
        yield made


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[tuple[World, subprocess.Popen[str]]]:
    made = World(tmp_path / "state")
    with running([*EVSE_CLOUD, "--state", str(made.state), "broker"], "broker ready") as process:
        yield made, process


def test_a_client_without_certificate_is_refused(world: World) -> None:
    assert Client(world, None, "D1").connect() == "refused"


def test_a_vehicle_is_refused(world: World) -> None:
    assert Client(world, world.vehicle(), "1HGCM82633A004352").connect() == "refused"


def test_a_certificate_of_another_authority_is_refused(world: World) -> None:
    card = world.card("foreign", security.device_leaf("D1"), "foreign")
    assert Client(world, card, "D1").connect() == "refused"


def test_an_expired_certificate_is_refused(world: World) -> None:
    card = world.card("expired", security.device_leaf("D1"), UTILITY, days_ago=security.DEVICE_DAYS + 1)
    assert Client(world, card, "D1").connect() == "refused"


def test_a_revoked_certificate_is_refused(world: World) -> None:
    card = world.card("again", security.device_leaf("D3"), UTILITY)
    revoked = type(card)(world.state / "revoked.crt", world.state / "revoked.key", 0)
    assert Client(world, revoked, "D3").connect() == "refused"
    with client(world, "D3", card=card):
        pass


def test_a_server_certificate_is_refused(world: World) -> None:
    assert Client(world, world.known("broker"), "broker").connect() == "refused"


def test_what_a_charger_says_reaches_gateway_and_observer(world: World) -> None:
    with client(world, "gateway") as gateway, client(world, "observer") as observer, client(world, "D1") as d1:
        assert gateway.subscribe("esci/1/+/up/+")
        assert observer.subscribe("esci/#")
        d1.publish("esci/1/D1/up/bind.request", b"request")
        assert gateway.next() == ("esci/1/D1/up/bind.request", b"request")
        assert observer.next() == ("esci/1/D1/up/bind.request", b"request")


def test_nobody_speaks_for_another(world: World) -> None:
    with client(world, "gateway") as gateway, client(world, "D1") as d1:
        assert gateway.subscribe("esci/1/+/up/+")
        with client(world, "D2") as d2:
            d2.post("esci/1/D1/up/records", b"forged")
        with client(world, "D2") as d2:
            d2.post("esci/1/D2/down/ack", b"forged")
        with client(world, "observer") as observer:
            observer.post("esci/1/D1/up/records", b"forged")
        d1.publish("esci/1/D1/up/records", b"true")
        assert gateway.next() == ("esci/1/D1/up/records", b"true")
        assert gateway.messages.empty()


def test_nobody_hears_what_is_said_to_another(world: World) -> None:
    with client(world, "gateway") as gateway, client(world, "D1") as d1, client(world, "D2") as d2:
        assert d1.subscribe("esci/1/D1/down/+")
        for topic in ("esci/1/D1/down/+", "esci/1/+/down/+", "esci/#", "#", "esci/1/D2/down/+"):
            d2.subscribe(topic)
        gateway.publish("esci/1/D1/down/ack", b"for D1")
        gateway.publish("esci/1/D2/down/ack", b"for D2")
        assert d1.next() == ("esci/1/D1/down/ack", b"for D1")
        assert d2.next() == ("esci/1/D2/down/ack", b"for D2")


def test_a_retained_state_does_not_leak_to_another_charger(world: World) -> None:
    with client(world, "gateway") as gateway, client(world, "D1") as d1:
        assert gateway.subscribe("esci/1/+/state")
        d1.publish("esci/1/D1/state", b"state", retain=True)
        assert gateway.next() == ("esci/1/D1/state", b"state")
        with client(world, "D2") as d2:
            assert d2.subscribe("esci/1/D2/down/+")
            d2.subscribe("esci/1/D1/state")
            gateway.publish("esci/1/D2/down/ack", b"mark")
            assert d2.next() == ("esci/1/D2/down/ack", b"mark")
        d1.publish("esci/1/D1/state", b"", retain=True)


def test_a_last_will_reaches_the_gateway_but_never_on_a_foreign_topic(world: World) -> None:
    with client(world, "gateway") as gateway:
        assert gateway.subscribe("esci/1/+/state")
        assert gateway.subscribe("esci/1/+/up/+")
        thief = Client(world, world.known("D2"), "D2", will=("esci/1/D1/up/records", b"forged"))
        if thief.connect() == "connected":
            thief.drop()
        honest = Client(world, world.known("D1"), "D1", will=("esci/1/D1/state", b"offline"))
        assert honest.connect() == "connected"
        honest.drop()
        assert gateway.next() == ("esci/1/D1/state", b"offline")
        assert gateway.messages.empty()


@pytest.mark.parametrize("clean", [True, False])
def test_nobody_takes_over_another_client_id(world: World, clean: bool) -> None:
    with client(world, "gateway") as gateway, client(world, "D1", clean=False) as d1:
        assert d1.subscribe("esci/1/D1/down/+")
        thief = Client(world, world.known("D2"), "D1", clean=clean)
        if thief.connect() == "connected":  # mosquitto gives it its own name
            thief.subscribe("esci/1/D1/down/+")
        gateway.publish("esci/1/D1/down/ack", b"for D1")
        assert d1.next() == ("esci/1/D1/down/ack", b"for D1")
        assert thief.messages.empty()
        assert d1.gone.empty()
        thief.leave()


def test_what_was_said_while_the_gateway_was_away_arrives_when_it_returns(world: World) -> None:
    with client(world, "gateway", clean=False) as gateway:
        assert gateway.subscribe("esci/1/+/up/+")
    with client(world, "D1") as d1:
        for number in range(5):
            d1.publish("esci/1/D1/up/records", b"%d" % number)
    with client(world, "gateway", clean=False) as gateway:
        assert sorted(gateway.next()[1] for _ in range(5)) == [b"0", b"1", b"2", b"3", b"4"]
    with client(world, "gateway"):
        pass


def test_the_newer_connection_of_a_name_ends_the_older(world: World) -> None:
    with client(world, "gateway") as gateway:
        older = Client(world, world.known("D1"), "D1")
        assert older.connect() == "connected"
        with client(world, "D1", clean=False) as newer:
            assert older.gone.get(timeout=WAIT_S)
            assert newer.subscribe("esci/1/D1/down/+")
            gateway.publish("esci/1/D1/down/ack", b"for the newer")
            assert newer.next() == ("esci/1/D1/down/ack", b"for the newer")
        older.leave()


# ---- the embedded broker alone ----


def test_another_client_id_is_refused(embedded: tuple[World, subprocess.Popen[str]]) -> None:
    world, _ = embedded
    assert Client(world, world.known("D2"), "D1").connect() == "refused"
    assert Client(world, world.known("D2"), "gateway").connect() == "refused"


def test_a_revoked_charger_is_hung_up_on(embedded: tuple[World, subprocess.Popen[str]]) -> None:
    world, _ = embedded
    card = world.card("soon", security.device_leaf("D4"), UTILITY)
    found = Client(world, card, "D4")
    assert found.connect() == "connected"
    world.pki.write_crl([card.serial], datetime.now(UTC))
    assert found.gone.get(timeout=WAIT_S)
    assert Client(world, card, "D4").connect() == "refused"


@pytest.mark.parametrize("noise", [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x10\xff\xff\xff\x7f",
    b"\x10\xff\xff\xff\xff\xff",
    b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00",
    b"\x10\x04\x00\xff\xff\xff",
    b"\x00" * 64,
], ids=["http", "long", "endless", "nameless", "cut", "zeros"])
def test_a_hostile_first_packet_ends_only_its_own_connection(
    embedded: tuple[World, subprocess.Popen[str]], noise: bytes
) -> None:
    world, process = embedded
    with client(world, "D1") as d1, _tls(world) as raw:
        raw.sendall(noise)
        _until_end(raw)
        assert d1.subscribe("esci/1/D1/down/+")
    assert process.poll() is None


def test_a_packet_beyond_the_limit_ends_the_connection(embedded: tuple[World, subprocess.Popen[str]]) -> None:
    world, process = embedded
    with client(world, "D1") as d1:
        found = Client(world, world.known("D2"), "D2")
        assert found.connect() == "connected"
        found.post("esci/1/D2/up/records", b"x" * 300_000)
        assert found.gone.get(timeout=WAIT_S)
        assert d1.subscribe("esci/1/D1/down/+")
    assert process.poll() is None


def test_old_tls_is_refused(embedded: tuple[World, subprocess.Popen[str]]) -> None:
    world, _ = embedded
    context = _context(world)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("localhost", world.port)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="localhost")


def test_the_broker_leaves_cleanly(embedded: tuple[World, subprocess.Popen[str]]) -> None:
    world, process = embedded
    with client(world, "D1"):
        process.terminate()
        assert process.wait(timeout=WAIT_S) == 0


def test_a_port_in_use_is_one_sentence_and_exit_3(embedded: tuple[World, subprocess.Popen[str]]) -> None:
    world, _ = embedded
    done = subprocess.run([*EVSE_CLOUD, "--state", str(world.state), "broker"], capture_output=True, text=True,
                          timeout=WAIT_S, check=False)
    assert done.returncode == 3
    assert f"127.0.0.1:{world.port}" in done.stderr.splitlines()[-1]


def _context(world: World) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(world.pki.utility_ca))
    card = world.known("D2")
    context.load_cert_chain(card.certificate, card.key)
    return context


def _tls(world: World) -> ssl.SSLSocket:
    plain = socket.create_connection(("localhost", world.port), timeout=WAIT_S)
    return _context(world).wrap_socket(plain, server_hostname="localhost")


def _until_end(raw: ssl.SSLSocket) -> None:
    try:
        while raw.recv(4096):
            pass
    except (ConnectionError, ssl.SSLError):
        pass
