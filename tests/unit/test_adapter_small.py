"""The small adapters: keys, status socket, log lines, systemd, and what the running agent must not import."""

from __future__ import annotations

import io
import json
import logging
import os
import queue
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from agent.adapters import keys
from agent.adapters.inbox import deliver
from agent.adapters.keys import KeyFileError, KeyFolder, load_public, load_signer, make_key, write_file
from agent.adapters.logs import LINE_LIMIT, setup
from agent.adapters.sdnotify import SystemdNotifier, watchdog_s
from agent.adapters.status import ANSWER_LIMIT, StatusError, StatusServer, ask
from agent.core.events import Event, PevGone
from esci.seal import key_id, seal, unseal

VIN = "1HGCM82633A004352"

# ---- keys ----


def test_a_key_made_here_seals_what_its_public_half_proves(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "device.key"
    made = make_key(path)
    signer = load_signer(path)
    assert signer.kid == made.kid
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["device.key"]
    key = keys.load_key(path)
    public = tmp_path / "device.pub"
    public.write_bytes(key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    loaded = load_public(public)
    assert key_id(loaded) == signer.kid
    assert unseal(seal({"a": 1}, signer), {signer.kid: loaded}.get) == {"a": 1}


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    kid = make_key(tmp_path / "device.key").kid
    with pytest.raises(KeyFileError, match="a key is there already"):
        make_key(tmp_path / "device.key")
    assert load_signer(tmp_path / "device.key").kid == kid


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o666, 0o610])
def test_a_key_that_others_can_open_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    make_key(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"can open this key \\(mode {mode:03o}\\): run `chmod 600"):
        load_signer(path)


def _pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def test_what_is_no_p256_key_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    for content, sentence in ((b"", "not a private key in PEM"), (b"\xff" * 100, "not a private key in PEM"),
                              (_pem(ec.generate_private_key(ec.SECP384R1())), "not a P-256 key"),
                              (_pem(rsa.generate_private_key(65537, 2048)), "not a P-256 key")):
        write_file(path, content, 0o600)
        with pytest.raises(KeyFileError, match=sentence):
            load_signer(path)
        with pytest.raises(KeyFileError, match="not a public key in PEM"):
            load_public(path)
    with pytest.raises(KeyFileError, match="no such file: run `evse-agent commission`"):
        load_signer(tmp_path / "none")
    with pytest.raises(KeyFileError, match="cannot be read"):
        load_public(tmp_path)


def test_a_file_is_replaced_whole_and_a_failed_write_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"old", 0o644)
    write_file(path, b"new", 0o600)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o600)
    (tmp_path / ".file.new").mkdir()
    with pytest.raises(KeyFileError, match="cannot be written"):
        write_file(path, b"newer", 0o600)
    assert path.read_bytes() == b"new"


def test_the_key_folder_has_its_names(tmp_path: Path) -> None:
    folder = KeyFolder.of(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in (
        folder.tls.key, folder.tls.cert, folder.tls.ca, folder.pev_ca, folder.utility_seal)} == {
        "keys/device.key", "keys/device.crt", "keys/utility-ca.crt", "keys/pev-ca.crt", "keys/utility-seal.pub"}


# ---- status ----


@pytest.fixture
def status(tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    states = ['{"at":"1"}']
    server = StatusServer(tmp_path / "status.sock", lambda: states[-1])
    server.start()
    yield tmp_path / "status.sock", states
    server.stop()


def test_whoever_asks_gets_the_latest_state(status: tuple[Path, list[str]]) -> None:
    path, states = status
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert ask(path) == '{"at":"1"}'
    states.append('{"at":"2","name":"é"}')
    assert ask(path) == '{"at":"2","name":"é"}'


def test_whoever_hangs_up_or_says_nothing_harms_nobody(status: tuple[Path, list[str]]) -> None:
    path, states = status
    states.append("x" * ANSWER_LIMIT)
    for _ in range(5):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as rude:
            rude.connect(str(path))
    with pytest.raises(StatusError, match="broke off"):
        ask(path)
    states.append("{}")
    assert ask(path) == "{}"


def test_no_agent_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    with pytest.raises(StatusError, match="the agent is not running: start it"):
        ask(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    with pytest.raises(StatusError, match="the agent is not running: start it"):
        ask(path)
    server = StatusServer(path, lambda: "{}")  # a socket that a killed agent left is no obstacle
    server.start()
    assert ask(path) == "{}"
    server.stop()
    assert not path.exists()


def test_a_status_socket_without_a_folder_is_a_sentence(tmp_path: Path) -> None:
    server = StatusServer(tmp_path / "none" / "status.sock", lambda: "{}")
    with pytest.raises(StatusError, match="cannot be opened .*: create its folder"):
        server.start()
    server.stop()


# ---- logs ----


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    for handler in before:  # basicConfig(force=True) would close pytest's own
        root.removeHandler(handler)
    setup(stream=stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def test_a_log_line_is_one_json_object_with_its_fields(lines: io.StringIO) -> None:
    logging.getLogger("agent.x").warning(
        "broker is gone", extra={"cause": "a\nb", "waiting": 3, "power_w": None, "event": "x"})
    line = json.loads(lines.getvalue())
    assert lines.getvalue().count("\n") == 1
    assert line.pop("at").endswith("Z")
    assert line == {"level": "WARNING", "from": "agent.x", "event": "broker is gone", "cause": "a\nb", "waiting": 3,
                    "power_w": None, "event_": "x"}


def test_no_log_line_holds_a_whole_vin(lines: io.StringIO) -> None:
    log = logging.getLogger("agent.x")
    log.info("vehicle %s identified", VIN, extra={"pev": VIN, "body": f'{{"pev":"{VIN}"}}', "session": "a" * 32})
    try:
        raise ValueError(f"urn:plugbind:pev:{VIN}")
    except ValueError:
        log.exception("bug")
    assert VIN not in lines.getvalue()
    assert lines.getvalue().count("…4352") == 4
    assert "a" * 32 in lines.getvalue()


def test_a_log_line_survives_what_it_is_given(lines: io.StringIO) -> None:
    logging.getLogger("agent.x").info("odd", extra={"path": Path("/x"), "text": "\ud800", "long": "y" * 10**6})
    line = json.loads(lines.getvalue())
    assert (line["path"], line["text"], len(line["long"])) == ("/x", "?", LINE_LIMIT)


# ---- systemd ----


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(abstract: bool, tmp_path: Path) -> None:
    name = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if abstract else name)
        systemd.settimeout(5)
        notifier = SystemdNotifier({"NOTIFY_SOCKET": name})
        notifier.ready()
        notifier.alive()
        notifier.status("two\nlines")
        notifier.stopping()
        assert [systemd.recv(100) for _ in range(4)] == [b"READY=1", b"WATCHDOG=1", b"STATUS=two lines", b"STOPPING=1"]


def test_without_systemd_nothing_happens_and_a_broken_one_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    SystemdNotifier({}).ready()
    broken = SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "none")})
    for _ in range(3):
        broken.alive()
    assert [record.message for record in caplog.records] == ["systemd cannot be told"]


@pytest.mark.parametrize(("text", "expected_s"), [("30000000", 15.0), ("", None), ("0", None), ("x", None)])
def test_the_watchdog_is_fed_twice_in_its_time(text: str, expected_s: float | None) -> None:
    assert watchdog_s({"WATCHDOG_USEC": text}) == expected_s


# ---- the inbox ----


def test_a_full_inbox_holds_its_sender_until_there_is_room_or_it_is_stopped() -> None:
    inbox: queue.Queue[Event] = queue.Queue(1)
    inbox.put(PevGone())
    stopping = threading.Event()
    outcomes: queue.Queue[bool] = queue.Queue()
    sender = threading.Thread(target=lambda: outcomes.put(deliver(inbox.put_nowait, PevGone(), stopping)))
    sender.start()
    inbox.get()
    assert outcomes.get(timeout=10) is True
    stopping.set()
    assert deliver(inbox.put_nowait, PevGone(), stopping) is False
    sender.join()


# ---- imports ----


def test_the_running_agents_adapters_load_no_command_line_and_no_asyncio() -> None:
    script = ("import sys\n"
              "from agent.adapters import journal, keys, logs, mqtt, pevlink, sdnotify, status\n"
              "print([name for name in ('rich', 'typer', 'sqlite_utils', 'asyncio') if name in sys.modules])\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
