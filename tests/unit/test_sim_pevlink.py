"""The vehicle's end of the PEV link against a real TLS 1.3 server: first contact, resumption, refusal, storage."""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from firmware_sim.pevlink import LinkPlan, LinkSnapshot, PevLink

VIN = "1N4AZ0CPXDC400001"
DEVICE = "evse-0001"
WAIT_S = 8.0
CONFIRM = {
    "kind": "confirm",
    "binding": "0198c0de000070008000000000000001",
    "program": "EV-TOU",
    "tariff": {"code": "tou-d-prime", "version": "2025-06-01"},
    "valid_until": "2025-08-01T00:00:00Z",
    "ticket": "t" * 32,
    "ack": True,
}


Signed = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def issue(directory: Path, name: str, uri: str | None, signer: Signed | None) -> Signed:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime.now(UTC) - timedelta(days=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer[0].subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
    )
    if uri:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), False)
    certificate = builder.sign(signer[1] if signer else key, hashes.SHA256())
    (directory / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, key


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    ca = issue(directory, "ca", None, None)
    issue(directory, "leaf", f"urn:plugbind:pev:{VIN}", ca)
    issue(directory, "charger", f"urn:plugbind:device:{DEVICE}", ca)
    issue(directory, "stranger", "https://example.org/", ca)
    return directory


class Charger:
    """A tiny charger: one connection at a time, answers by a table of kinds."""

    def __init__(self, keys: Path, name: str, answers: dict[str, list[dict[str, object] | bytes]]) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_cert_chain(keys / f"{name}.crt", keys / f"{name}.key")
        self._context.load_verify_locations(keys / "ca.crt")
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self.port = self._listener.getsockname()[1]
        self.heard: list[dict[str, object]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                plain, _ = self._listener.accept()
                plain.settimeout(WAIT_S)
                with plain, self._context.wrap_socket(plain, server_side=True) as tls:
                    self._talk(tls)
            except OSError:
                continue

    def _talk(self, tls: ssl.SSLSocket) -> None:
        with tls.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                self.heard.append(message)
                for answer in self._answers.get(message["kind"], []):
                    tls.sendall(answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n")

    def close(self) -> None:
        self._stop.set()
        self._thread.join(WAIT_S)
        self._listener.close()


class Pair:
    """One vehicle and the chargers it meets."""

    def __init__(self, keys: Path, directory: Path) -> None:
        self._keys, self._directory = keys, directory
        self._changed = threading.Event()
        self._open: list[Callable[[], None]] = []

    def charger(self, answers: dict[str, list[dict[str, object] | bytes]], name: str = "charger") -> Charger:
        charger = Charger(self._keys, name, answers)
        self._open.append(charger.close)
        return charger

    def link(self, port: int) -> PevLink:
        keys = self._keys
        plan = LinkPlan(
            "leaf", VIN, "127.0.0.1", port, keys / "leaf.crt", keys / "leaf.key", keys / "ca.crt",
            self._directory / "pev.json",
        )  # fmt: skip
        link = PevLink(plan, lambda event, fields: self._changed.set())
        self._open.insert(0, link.close)
        return link

    def wait(self, link: PevLink, reached: Callable[[LinkSnapshot], bool]) -> LinkSnapshot:
        waiting = threading.Event()
        for _ in range(int(WAIT_S / 0.02)):
            if reached(link.snapshot):
                return link.snapshot
            waiting.wait(0.02)
        raise AssertionError(f"never reached: {link.snapshot}")

    def close(self) -> None:
        for close in self._open:
            close()


@pytest.fixture
def pair(keys: Path, tmp_path: Path) -> Iterator[Pair]:
    one = Pair(keys, tmp_path)
    yield one
    one.close()


OFFER: dict[str, object] = {"kind": "offer", "device": DEVICE, "premises": "premises-1", "protocol": 1}
FIRST: dict[str, list[dict[str, object] | bytes]] = {
    "discover": [OFFER],
    "identify": [{"kind": "wait"}, CONFIRM],
    "ack": [],
}


@pytest.mark.req("P1-S1.7", "P1-S1.8", "P1-S1.12", "P1-S1.13", "P1-F28", "P1-S2.2", "P1-S2.3")
def test_first_contact_then_resumption_without_discovery(pair: Pair, tmp_path: Path) -> None:
    charger = pair.charger(FIRST)
    link = pair.link(charger.port)
    link.plug()
    first = pair.wait(link, lambda shown: shown.bound)
    assert (first.state, first.tls_resumed, first.program) == ("bound", False, "EV-TOU")
    assert (first.messages_sent, first.messages_received) == (3, 3)
    stored = json.loads((tmp_path / "pev.json").read_text())
    assert stored == {name: value for name, value in CONFIRM.items() if name not in ("kind", "ack")}
    link.unplug()
    assert link.snapshot.state == "unplugged"
    link.plug()
    second = pair.wait(link, lambda shown: shown.bound)
    assert second.tls_resumed is True
    link.unplug()
    kinds = [message["kind"] for message in charger.heard]
    assert kinds[:3] == ["discover", "identify", "ack"]
    assert kinds[3] == "identify"
    assert charger.heard[1] == {"kind": "identify", "pev": VIN, "ticket": ""}
    assert charger.heard[3] == {"kind": "identify", "pev": VIN, "ticket": CONFIRM["ticket"]}


@pytest.mark.req("P1-S1.12")
def test_parameters_survive_a_power_cycle_of_the_vehicle(pair: Pair) -> None:
    charger = pair.charger(FIRST)
    link = pair.link(charger.port)
    link.plug()
    pair.wait(link, lambda shown: shown.bound)
    link.unplug()
    again = pair.link(charger.port)  # a new process would know no more than this
    again.plug()
    shown = pair.wait(again, lambda shown: shown.bound)
    assert shown.tls_resumed is False
    assert charger.heard[3]["kind"] == "identify"


@pytest.mark.req("P1-B4")
def test_a_rejection_is_shown_with_its_reason(pair: Pair) -> None:
    reject: dict[str, object] = {"kind": "reject", "reason": "unknown-pev", "sentence": "This vehicle is not enrolled."}
    charger = pair.charger({"discover": [OFFER], "identify": [reject]})
    link = pair.link(charger.port)
    link.plug()
    shown = pair.wait(link, lambda shown: shown.state == "rejected")
    assert (shown.bound, shown.last_reason) == (False, "unknown-pev")


@pytest.mark.req("P1-S1.7")
@pytest.mark.parametrize(
    ("name", "answers", "cause"),
    [
        ("stranger", {}, "names no charger"),
        ("charger", {"discover": [{**OFFER, "device": "evse-0002"}]}, "with the certificate of"),
        ("charger", {"discover": [b"not json\n"]}, "not a message"),
        ("charger", {"discover": [b"x" * 9000]}, "over 8 KiB"),
        ("charger", {"discover": [{"kind": "ack", "binding": "b"}]}, "not a message"),
    ],
)
def test_a_charger_that_is_not_one_is_left(
    pair: Pair, name: str, answers: dict[str, list[dict[str, object] | bytes]], cause: str
) -> None:
    charger = pair.charger(answers, name)
    link = pair.link(charger.port)
    link.plug()
    shown = pair.wait(link, lambda shown: shown.last_reason is not None)
    assert not shown.bound
    assert cause in (shown.last_reason or "")


@pytest.mark.req("P1-N2")
def test_nobody_there_is_lost_and_tried_again(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    link = pair.link(port)
    link.plug()
    assert pair.wait(link, lambda shown: shown.state == "lost").last_reason
    link.unplug()
    assert link.snapshot.state == "unplugged"
