"""`evse-cloud` as a process: exit codes, one sentence on standard error, JSON; and the API behind pinned HTTPS."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cloud import security

VIN = "1HGCM82633A004352"
PREMISES = ("--account", "A1", "--address", "1 Main St", "--timezone", "America/Los_Angeles", "--default-plan",
            "SCE-TOU-D-4-9PM")


@dataclass(frozen=True)
class Desk:
    """A state folder and the command over it."""

    state: Path

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "cloud.cli", "--state", str(self.state), *words],
                              capture_output=True, text=True, timeout=60, check=False)

    def do(self, *words: str) -> str:
        done = self.ask(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    made = Desk(tmp_path_factory.mktemp("cli") / "state")
    made.do("init")
    made.do("enrol", "account", "--id", "A1", "--holder", "Ann Lee", "--email", "ann@example.com")
    made.do("enrol", "premises", "--id", "P1", *PREMISES)
    return made


def refused(done: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("evse-cloud: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.req("P1-S1.1", "P1-S1.2")
def test_a_vehicle_is_enrolled_and_given_its_certificate(desk: Desk, tmp_path: Path) -> None:
    slip = desk.ask("enrol", "pev", "--vin", VIN[:-1] + "3", "--account", "A1", "--program", "PRIME")
    refused(slip, 4, "position 9")
    words = ("enrol", "pev", "--vin", VIN, "--account", "A1", "--premises", "P1", "--program", "PRIME")
    found = json.loads(desk.do(*words, "--cert-dir", str(tmp_path), "--json"))
    assert found == {"pev_id": VIN, "account_id": "A1", "program": "PRIME", "plan": "SCE-TOU-D-PRIME",
                     "suspended": False}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.crt", "pev.crt", "pev.key"]
    refused(desk.ask(*words), 4, "already-enrolled")
    assert json.loads(desk.do("enrol", "pev", "--vin", VIN, "--suspend", "--json"))["suspended"] is True
    entries = json.loads(desk.do("audit", "--json"))
    outcomes = [entry["outcome"] for entry in entries if entry["subject"].startswith("1HG")]
    assert outcomes == ["bad-vin", "done", "already-enrolled", "done"]


@pytest.mark.req("P1-S1.4")
def test_parameters_of_premises_are_changed_one_by_one(desk: Desk) -> None:
    before = json.loads(desk.do("enrol", "premises", "--id", "P1", "--change", "--json"))
    after = json.loads(desk.do("enrol", "premises", "--id", "P1", "--change", "--no-guests", "--json"))
    assert after == before | {"guests_allowed": False}
    desk.do("enrol", "premises", "--id", "P1", "--change", "--guests")


def test_init_again_changes_nothing(desk: Desk) -> None:
    assert json.loads(desk.do("init", "--json"))["made"] == []


@pytest.mark.parametrize(("words", "code", "says"), [
    (("enrol", "premises", "--id", "P2"), 2, "--account"),
    (("enrol", "pev", "--vin", VIN), 2, "--account"),
    (("device", "token", "--premises", "P1", "--minutes", "0"), 2, "1 to 1440"),
    (("device", "token", "--premises", "nowhere"), 4, "unknown-premises"),
    (("device", "revoke", "nobody"), 4, "unknown-device"),
    (("certificate", "--service", "api", "--out", "/nowhere"), 2, "api"),
    (("bill", "--premises", "nowhere"), 4, "nowhere"),
    (("enrol", "account", "--id", "a b", "--holder", "x", "--email", "x@y"), 4, "account id"),
])
def test_a_failure_is_one_sentence_and_an_exit_code(desk: Desk, words: tuple[str, ...], code: int, says: str) -> None:
    refused(desk.ask(*words), code, says)


def test_a_wrong_command_line_is_exit_2(desk: Desk) -> None:
    done = desk.ask("enrol", "pev", "--frob")
    assert done.returncode == 2
    assert "--frob" in done.stderr


def test_what_was_not_set_up_says_so(tmp_path: Path) -> None:
    refused(Desk(tmp_path / "none").ask("device", "list"), 3, "evse-cloud init")
    (tmp_path / "cloud.db").touch()
    refused(Desk(tmp_path).ask("device", "list"), 2, "evse-cloud init")
    refused(Desk(tmp_path).ask("device", "token", "--premises", "P1"), 2, "evse-cloud init")
    refused(Desk(tmp_path).ask("broker"), 2, "evse-cloud init")


@pytest.mark.parametrize("url", ["nonsense", "oracle://x", "postgresql+nodriver://x"])
def test_a_wrong_database_url_is_exit_2(tmp_path: Path, url: str) -> None:
    (tmp_path / "cloud.toml").write_text(f'[database]\nurl = "{url}"\n')
    refused(Desk(tmp_path).ask("device", "list"), 2, "database.url")


def test_a_database_that_is_away_is_one_sentence_and_exit_3(tmp_path: Path) -> None:
    (tmp_path / "cloud.toml").write_text('[database]\nurl = "postgresql+psycopg://u:hunter2@127.0.0.1:1/d"\n')
    done = Desk(tmp_path).ask("device", "list")
    refused(done, 3, "database")
    assert "hunter2" not in done.stderr


@pytest.fixture
def own(tmp_path: Path) -> Desk:
    (tmp_path / "cloud.toml").write_text("[database]\nbusy_ms = 50\n")
    made = Desk(tmp_path)
    made.do("init")
    return made


ACCOUNT = ("enrol", "account", "--id", "A1", "--email", "a@b", "--holder")


def test_a_locked_database_is_one_sentence_and_exit_3(own: Desk) -> None:
    with sqlite3.connect(own.state / "cloud.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        refused(own.ask(*ACCOUNT, "Ann"), 3, "locked")
        other.execute("ROLLBACK")
    other.close()
    own.do(*ACCOUNT, "Ann")


def test_a_full_disk_is_one_sentence_and_exit_3(own: Desk) -> None:
    """The file-size limit of the process stands in for the disk: writes beyond it fail as on a full one."""
    words = " ".join([sys.executable, "-m", "cloud.cli", "--state", str(own.state), *ACCOUNT, "Ann"])
    done = subprocess.run(["bash", "-c", f"trap '' XFSZ; ulimit -f 1; exec {words}"], capture_output=True,
                          text=True, timeout=60, check=False)
    refused(done, 3, "database")
    own.do(*ACCOUNT, "Ann")


def test_a_file_that_is_no_database_is_one_sentence_and_exit_3(own: Desk) -> None:
    (own.state / "cloud.db").write_bytes(b"not a database, " * 1000)
    refused(own.ask("device", "list"), 3, "not a database")


# ---- the API ----


@pytest.fixture(scope="module")
def port(desk: Desk) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = int(probe.getsockname()[1])
    (desk.state / "cloud.toml").write_text(f"[api]\nport = {free}\n[broker]\nhost = 'localhost'\nport = 18883\n")
    process = subprocess.Popen([sys.executable, "-m", "cloud.cli", "--state", str(desk.state), "api"],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    line = process.stdout.readline()
    assert "api ready" in line, line
    yield free
    watchdog.cancel()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


def call(desk: Desk, port: int, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(desk.state / "pki" / "utility-ca.crt"))
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=30)
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    try:
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def csr(key: ec.EllipticCurvePrivateKey) -> str:
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.req("P1-S1.2")
def test_a_commissioning_code_buys_all_that_a_charger_needs(desk: Desk, port: int) -> None:
    url, token, pin = desk.do("device", "token", "--premises", "P1").strip().split("#")
    assert url == f"https://localhost:{port}"
    status, ca = call(desk, port, "GET", "/v1/ca")
    assert status == 200
    root = x509.load_pem_x509_certificate(ca)
    assert root.fingerprint(hashes.SHA256()).hex() == pin
    key = security.new_key()
    status, body = call(desk, port, "POST", "/v1/devices/enrol",
                        {"token": token, "csr_pem": csr(key), "device_id": "garage"})
    found = json.loads(body)
    assert status == 200, found
    assert (found["device_id"], found["premises"]) == ("garage", "P1")
    assert found["broker"] == {"host": "localhost", "port": 18883}
    assert found["utility_ca_pem"].encode() == ca
    certificate = x509.load_pem_x509_certificate(found["certificate_pem"].encode())
    certificate.verify_directly_issued_by(root)
    assert certificate.public_key() == key.public_key()
    assert serialization.load_pem_public_key(found["utility_seal_public_pem"].encode())
    assert x509.load_pem_x509_certificate(found["pev_ca_pem"].encode())
    status, body = call(desk, port, "POST", "/v1/devices/enrol", {"token": token, "csr_pem": csr(security.new_key())})
    assert (status, json.loads(body)["reason"]) == (403, "token-used")
    serial = certificate.serial_number
    desk.do("device", "revoke", "garage")
    crl = x509.load_pem_x509_crl((desk.state / "pki" / "utility.crl").read_bytes())
    assert crl.get_revoked_certificate_by_serial_number(serial) is not None


@pytest.mark.req("P1-S1.2")
@pytest.mark.parametrize(("body", "status", "reason"), [
    ({"token": "unknown", "csr_pem": csr(security.new_key())}, 403, "token-unknown"),
    ({"token": "x", "csr_pem": "y"}, 403, "malformed"),
    ({"token": "x", "csr_pem": csr(security.new_key()), "extra": 1}, 422, "malformed"),
    ({"token": 1, "csr_pem": "y"}, 422, "malformed"),
    ({"token": "\x00", "csr_pem": "y"}, 422, "malformed"),
    ({"token": "x", "csr_pem": "y", "device_id": "a/b"}, 422, "malformed"),
    ([], 422, "malformed"),
    (b"", 422, "malformed"),
    (b"{", 422, "malformed"),
    (b"\xff\xfe", 422, "malformed"),
    (b'{"token": "\\ud800", "csr_pem": "y"}', 422, "malformed"),
    (b"[" * 16_000, 400, "malformed"),
    (b"x" * 20_000, 413, "malformed"),
])
def test_a_bad_request_gets_a_reason_and_a_sentence(
    desk: Desk, port: int, body: object, status: int, reason: str
) -> None:
    found, answer = call(desk, port, "POST", "/v1/devices/enrol", body)
    problem = json.loads(answer)
    assert (found, problem["reason"]) == (status, reason)
    assert problem["sentence"].endswith(".")


def test_the_api_tells_nothing_about_customers(desk: Desk, port: int) -> None:
    status, answer = call(desk, port, "GET", "/openapi.json")
    assert status == 200
    assert sorted(json.loads(answer)["paths"]) == ["/healthz", "/v1/ca", "/v1/devices/enrol"]
