"""Commissioning against the real utility API, and against impostors that answer what they like."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agent.adapters import commissioning
from agent.adapters.commissioning import (
    Answers,
    Code,
    CodeError,
    CommissionError,
    EnrolmentRefusedError,
    UnreachableError,
    UntrustedError,
    commission,
)
from agent.adapters.keys import KeyFolder, load_public, load_signer
from agent.config import load
from stack.agent_certs import LOCAL, Authority

ANSWERS = Answers(circuit_max_ma=32_000, meter_model="eastron_sdm630", meter_port="/dev/ttyUSB0",
                  board_port="/dev/ttyUSB1")
PATIENCE_S = 30.0


def put(tmp_path: Path, code: str, answers: Answers = ANSWERS, device: str = "") -> commissioning.Outcome:
    return commission(code, answers, tmp_path / "state", tmp_path / "agent.toml", device)


# ---- the real utility ----


class Utility:
    """`evse-cloud` in processes of its own, with one enrolled premises."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (folder / "cloud.toml").write_text(f"[api]\nport = {port}\n", "utf-8")
        self.call("init")
        self.call("enrol", "account", "--id", "a1", "--holder", "Ada", "--email", "ada@example.org")
        self.call("enrol", "premises", "--id", "home", "--account", "a1", "--address", "1 Main St",
                  "--timezone", "America/Los_Angeles", "--default-plan", "SCE-TOU-D-4-9PM")
        self.api = subprocess.Popen(
            self._argv("api"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.api.stdout is not None
        said = []
        for line in self.api.stdout:
            said.append(line)
            if "api ready" in line:
                return
        raise AssertionError("".join(said))

    def _argv(self, *words: str) -> list[str]:
        return [str(Path(sys.executable).parent / "evse-cloud"), "--state", str(self.folder), *words]

    def call(self, *words: str) -> str:
        done = subprocess.run(self._argv(*words), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def code(self) -> str:
        return self.call("device", "token", "--premises", "home")

    def stop(self) -> None:
        assert self.api.stdout is not None
        self.api.terminate()
        self.api.wait(PATIENCE_S)
        self.api.stdout.close()


@pytest.fixture(scope="module")
def utility(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Utility]:
    pytest.importorskip("fastapi", reason="the utility needs the extra `cloud`")
    made = Utility(tmp_path_factory.mktemp("cloud") / "state")
    yield made
    made.stop()


def test_a_code_buys_keys_and_a_configuration_once(utility: Utility, tmp_path: Path) -> None:
    code = utility.code()
    outcome = put(tmp_path, code)
    config = load(tmp_path / "agent.toml")
    assert (config.device, config.premises, config.uplink.host, config.uplink.port) == (
        outcome.device, "home", outcome.host, outcome.port)
    assert (config.station.circuit_max_ma, config.meter.port, config.board.port) == (
        32_000, "/dev/ttyUSB0", "/dev/ttyUSB1")
    folder = KeyFolder.of(config.state_dir)
    assert stat.S_IMODE(folder.tls.key.stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificate(folder.tls.cert.read_bytes())
    assert certificate.subject.rfc4514_string() == f"CN={outcome.device}"
    load_public(folder.utility_seal)
    key = load_signer(folder.tls.key).kid
    assert code.split("#")[1] not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())

    (tmp_path / "agent.toml").unlink()  # the answer was lost: the same code works again, for the same key
    assert put(tmp_path, code) == outcome
    assert load_signer(folder.tls.key).kid == key
    with pytest.raises(EnrolmentRefusedError, match="token-used"):  # a thief of the code comes too late
        put(tmp_path / "thief", code)


def test_a_wished_name_is_kept(utility: Utility, tmp_path: Path) -> None:
    assert put(tmp_path, utility.code(), device="garage-left").device == "garage-left"


def test_an_unknown_token_is_refused_with_the_utilitys_reason(utility: Utility, tmp_path: Path) -> None:
    url, _, pin = utility.code().split("#")
    with pytest.raises(EnrolmentRefusedError, match="token-unknown.*is not known") as caught:
        put(tmp_path, f"{url}#never-made#{pin}")
    assert caught.value.reason == "token-unknown"
    assert not (tmp_path / "agent.toml").exists()


def test_a_wrong_pin_costs_no_token(utility: Utility, tmp_path: Path) -> None:
    code = utility.code()
    with pytest.raises(UntrustedError, match="shows another authority than the code names"):
        put(tmp_path, code[:-64] + "0" * 64)
    put(tmp_path, code)


def test_a_commissioned_device_is_not_overwritten(utility: Utility, tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("mine")
    with pytest.raises(CommissionError, match="is there already: move it away first"):
        put(tmp_path, utility.code())
    assert (tmp_path / "agent.toml").read_text() == "mine"


# ---- impostors ----

Answer = tuple[int, bytes]


class Impostor:
    """An HTTPS server that answers POST with what a test wants; its CA is real."""

    def __init__(self, ca: Authority, hosts: tuple[x509.GeneralName, ...] = LOCAL) -> None:
        self.post: Answer = (200, b"{}")
        self.get: Answer = (200, ca.file.read_bytes())
        impostor = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(impostor.get)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._say(impostor.post)

            def _say(self, answer: Answer) -> None:
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(answer[1])))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(answer[1])

            def log_message(self, *_: object) -> None:
                """Nothing: a test's output is its assertions."""

        files = ca.issue("server", *hosts)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.cert, files.key)
        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        pin = hashlib.sha256(ca.cert.public_bytes(serialization.Encoding.DER)).hexdigest()
        self.code = f"https://127.0.0.1:{self.server.server_port}#token#{pin}"

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def impostor_of(tmp_path: Path) -> Iterator[Callable[..., Impostor]]:
    made: list[Impostor] = []

    def _make(hosts: tuple[x509.GeneralName, ...] = LOCAL) -> Impostor:
        made.append(Impostor(Authority.make(tmp_path / "ca", "utility-ca"), hosts))
        return made[-1]

    yield _make
    for impostor in made:
        impostor.stop()


def enrolled(tmp_path: Path, **changed: object) -> bytes:
    """An answer of the agreed form; its certificate is for a key that is not ours."""
    ca = Authority.make(tmp_path / "other", "other-ca")
    pem = ca.issue("device-1").cert.read_text()
    public = ca.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return json.dumps({
        "device_id": "device-1", "premises": "home", "certificate_pem": pem, "utility_ca_pem": ca.file.read_text(),
        "pev_ca_pem": ca.file.read_text(), "utility_seal_public_pem": public.decode(),
        "broker": {"host": "localhost", "port": 8883}} | changed).encode()


@pytest.mark.parametrize(("changed", "sentence"), [
    ({}, "a certificate for another key than ours"),
    ({"certificate_pem": "x"}, "a certificate that is none"),
    ({"utility_seal_public_pem": "x"}, "not a public key in PEM"),
    ({"extra": 1}, "another form than agreed"),
    ({"device_id": "../../etc"}, "another form than agreed"),
    ({"broker": {"host": "localhost", "port": 0}}, "another form than agreed"),
    ({"broker": {"host": "localhost", "port": 1.5}}, "another form than agreed"),
])  # fmt: skip
def test_a_wrong_answer_is_refused_whole(
    changed: dict[str, object], sentence: str, impostor_of: Callable[..., Impostor], tmp_path: Path
) -> None:
    impostor = impostor_of()
    impostor.post = (200, enrolled(tmp_path, **changed))
    with pytest.raises(CommissionError, match=sentence):
        put(tmp_path, impostor.code)
    assert not (tmp_path / "agent.toml").exists()
    assert os.listdir(tmp_path / "state" / "keys") == ["device.key"]


@pytest.mark.parametrize(("answer", "kind", "sentence"), [
    ((403, b'{"reason":"token-used","sentence":"It was used."}'), EnrolmentRefusedError,
     r"\(token-used\): It was used\."),
    ((403, b'{"reason":"a\\u001b[2J","sentence":["x"]}'), EnrolmentRefusedError, r"\(a\?\[2J\)"),
    ((404, b"<html>"), EnrolmentRefusedError, r"\(status 404\)"),
    ((503, b'{"reason":"unavailable","sentence":"Later."}'), UnreachableError, "Later.*try again later"),
    ((200, b"x" * 200_000), UntrustedError, "more than 131072 bytes"),
    ((302, b""), EnrolmentRefusedError, "status 302"),
])  # fmt: skip
def test_each_refusal_is_a_sentence(
    answer: Answer, kind: type[CommissionError], sentence: str, impostor_of: Callable[..., Impostor], tmp_path: Path
) -> None:
    impostor = impostor_of()
    impostor.post = answer
    with pytest.raises(kind, match=sentence):
        put(tmp_path, impostor.code)


@pytest.mark.parametrize(("answer", "sentence"), [
    ((404, b""), r"has no /v1/ca \(status 404\)"),
    ((200, b"hello"), "/v1/ca is not a certificate"),
    ((200, b"x" * 200_000), "more than 131072 bytes"),
])  # fmt: skip
def test_a_server_that_is_no_utility_is_found(
    answer: Answer, sentence: str, impostor_of: Callable[..., Impostor], tmp_path: Path
) -> None:
    impostor = impostor_of()
    impostor.get = answer
    with pytest.raises(UntrustedError, match=sentence):
        put(tmp_path, impostor.code)


def test_a_man_in_between_who_shows_the_true_authority_gets_no_token(
    impostor_of: Callable[..., Impostor], tmp_path: Path
) -> None:
    impostor = impostor_of(hosts=(x509.DNSName("device-7"),))  # some other certificate of the utility's CA
    with pytest.raises(UntrustedError, match="is not certified by the authority in the code"):
        put(tmp_path, impostor.code)


def test_nobody_there_is_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UnreachableError, match="cannot be reached .*: look at the network"):
        put(tmp_path, f"https://127.0.0.1:{port}#t#{'0' * 64}")


# ---- codes and answers ----


@pytest.mark.parametrize("text", [
    "", "https://u.example", "http://u.example#t#" + "0" * 64, "https://u.example#secret#" + "0" * 63,
    "https://u.example#se cret#" + "0" * 64, "https://#secret#" + "0" * 64, "https://a:b@u.example#secret#" + "0" * 64,
    "https://u.example:99999#secret#" + "0" * 64, "https://u.example/?x=1#secret#" + "0" * 64,
])  # fmt: skip
def test_what_is_no_code_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(CodeError) as caught:
        Code.parse(text)
    assert "secret" not in str(caught.value)


def test_a_code_never_shows_its_token() -> None:
    code = Code.parse(f" https://[::1]:8443/utility/#secret#{'AB' * 32}\n")
    assert (code.url, code.token, code.ca_sha256) == ("https://[::1]:8443/utility", "secret", "ab" * 32)
    assert "secret" not in repr(code)


@pytest.mark.parametrize(("answers", "device", "sentence"), [
    (Answers(1, "m", "p", "b"), "", "station.circuit_max_ma cannot be 1: "),
    (Answers(32_000, "../x", "p", "b"), "", "meter.model cannot be '../x'"),
    (Answers(32_000, "m", "p", "b"), "a/b", "device cannot be 'a/b'"),
])  # fmt: skip
def test_wrong_answers_are_found_before_the_utility_is_asked(
    answers: Answers, device: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(CommissionError, match=sentence):
        put(tmp_path, f"https://127.0.0.1:1#t#{'0' * 64}", answers, device)
    assert not (tmp_path / "state").exists()
