"""The vehicle's end of the PEV link: mutual TLS 1.3, the vehicle's stored parameters, one thread for each plug-in.

Opens after On-Plug whatever the pilot does (P1-S1.6, S1.7, P1-N2); identifies itself (S1.8); stores what a confirmation
brings so that it survives a power cycle (S1.12) and acknowledges it (S1.13). Later plug-ins resume the TLS session and
skip discovery (P1-F28). It must not invent parameters: what was not confirmed is not stored. No clock: waits are
events.
"""

import json
import os
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from esci import pevlink as wire

CONNECT_TIMEOUT_S = 5.0
READ_TICK_S = 0.1
RETRY_S = 1.0
RETRY_LIMIT_S = 5.0

Log = Callable[[str, dict[str, object]], None]


class LinkError(Exception):
    """The other end is not the charger it should be, or broke the protocol; the text is a sentence."""


class StoredParameters(BaseModel):
    """What the vehicle keeps of a confirmation."""

    model_config = ConfigDict(extra="forbid")
    binding: str
    program: str
    tariff: dict[str, object]
    valid_until: str
    ticket: str


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """Whom to call, and as whom."""

    vehicle: str
    vin: str
    host: str
    port: int
    cert: Path
    key: Path
    ca: Path
    params_file: Path


@dataclass(frozen=True, slots=True)
class LinkSnapshot:
    """Where the link stands. None: never happened yet."""

    state: str = "unplugged"
    bound: bool = False
    program: str | None = None
    last_reason: str | None = None
    tls_resumed: bool | None = None
    messages_sent: int = 0
    messages_received: int = 0


class _LinkThread(threading.Thread):
    """The thread of one plug-in. Once the vehicle was unplugged it changes nothing any more."""


class PevLink:
    """One vehicle's link. `plug` and `unplug` may be called from any thread."""

    def __init__(self, plan: LinkPlan, log: Log) -> None:
        self._plan = plan
        self._log = log
        self._lock = threading.Lock()
        self._shown = LinkSnapshot()
        self._stop = threading.Event()
        self._thread: _LinkThread | None = None
        self._ending: list[_LinkThread] = []
        self._context: ssl.SSLContext | None = None
        self._session: ssl.SSLSession | None = None

    @property
    def snapshot(self) -> LinkSnapshot:
        """The present state."""
        with self._lock:
            return self._shown

    def plug(self) -> None:
        """Begins calling the charger; no effect while already plugged."""
        if self._thread is not None:
            return
        self._stop = threading.Event()
        self._show(state="connecting", bound=False)
        self._thread = _LinkThread(
            target=self._run, args=(self._stop,), name=f"pevlink-{self._plan.vehicle}", daemon=True
        )
        self._thread.start()

    def unplug(self) -> None:
        """Drops the link; its thread ends by itself within READ_TICK_S."""
        self._stop.set()
        if self._thread is not None:
            self._ending = [thread for thread in self._ending if thread.is_alive()] + [self._thread]
            self._thread = None
        self._show(state="unplugged", bound=False)

    def close(self) -> None:
        """Unplugs and waits for every thread."""
        self.unplug()
        for thread in self._ending:
            thread.join(timeout=CONNECT_TIMEOUT_S + 1)

    def power_cycle(self) -> None:
        """Forgets the TLS session, which lived in memory; the stored parameters stay (P1-S1.12)."""
        self._session = None
        self._context = None

    def _show(self, *, state: str | None = None, **changes: object) -> None:
        if not self._may_speak():
            return
        with self._lock:
            if state is not None:
                changes["state"] = state
            self._shown = replace(self._shown, **changes)  # type: ignore[arg-type]  # checked by the tests

    def _count(self, *, sent: int = 0, received: int = 0) -> None:
        if not self._may_speak():
            return
        with self._lock:
            shown = self._shown
            self._shown = replace(
                shown,
                messages_sent=shown.messages_sent + sent,
                messages_received=shown.messages_received + received,
            )

    def _may_speak(self) -> bool:
        """False in the thread of an earlier plug-in."""
        current = threading.current_thread()
        return current is self._thread or not isinstance(current, _LinkThread)

    # the thread

    def _run(self, stop: threading.Event) -> None:
        retry_s = RETRY_S
        while not stop.is_set():
            try:
                self._talk(stop)
                retry_s = RETRY_S
            except (OSError, LinkError) as error:
                if stop.is_set():
                    return
                sentence = str(error).splitlines()[0]
                self._show(state="lost", bound=False, last_reason=sentence)
                self._log("pev link lost", {"vehicle": self._plan.vehicle, "cause": sentence})
                stop.wait(retry_s)
                retry_s = min(RETRY_LIMIT_S, retry_s * 2)

    def _tls_context(self) -> ssl.SSLContext:
        """One context for the vehicle's life: a TLS session can be resumed only in the context that made it."""
        if self._context is None:
            for path in (self._plan.ca, self._plan.cert, self._plan.key):
                if not path.is_file():
                    raise LinkError(f"{path} is missing; enrol the vehicle first")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.check_hostname = False  # chargers are named by URI, checked in _charger
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._plan.ca)
            context.load_cert_chain(self._plan.cert, self._plan.key)
            self._context = context
        return self._context

    def _talk(self, stop: threading.Event) -> None:
        """One connection from TCP to its end. Returns only when `stop` is set; raises when the link broke."""
        plan = self._plan
        self._show(state="connecting", bound=False)
        context = self._tls_context()
        with socket.create_connection((plan.host, plan.port), timeout=CONNECT_TIMEOUT_S) as plain:
            self._show(state="securing")
            with context.wrap_socket(plain, server_hostname=plan.host, session=self._session) as tls:
                resumed = bool(tls.session_reused)
                device = _charger(tls)
                self._show(state="secured", tls_resumed=resumed)
                self._log("pev link secured", {"vehicle": plan.vehicle, "device": device, "tls_resumed": resumed})
                tls.settimeout(READ_TICK_S)
                try:
                    self._converse(tls, device, stop)
                finally:
                    self._session = tls.session or self._session

    def _converse(self, tls: ssl.SSLSocket, device: str, stop: threading.Event) -> None:
        stored = self._load()
        if stored is None:
            self._show(state="discovering")
            self._send(tls, wire.Discover())
        else:
            self._show(state="identifying")
            self._send(tls, wire.Identify(pev=self._plan.vin, ticket=stored.ticket))
        buffer = b""
        while not stop.is_set():
            try:
                part = tls.recv(4096)
            except TimeoutError:
                continue
            if not part:
                raise LinkError("the charger closed the link")
            self._session = tls.session or self._session  # tickets come with the first data
            buffer += part
            while b"\n" in buffer:
                line, buffer = buffer.split(b"\n", 1)
                self._handle(tls, device, line)
            if len(buffer) > wire.LINE_LIMIT:
                raise LinkError("the charger sent a line over 8 KiB")

    def _handle(self, tls: ssl.SSLSocket, device: str, line: bytes) -> None:
        if len(line) >= wire.LINE_LIMIT:
            raise LinkError("the charger sent a line over 8 KiB")
        try:
            message = wire.TO_PEV.validate_json(line)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the line"
            raise LinkError(f"the charger sent what is not a message: {where}: {first['msg']}") from error
        self._count(received=1)
        self._log("pev link received", {"vehicle": self._plan.vehicle, "kind": message.kind})
        if isinstance(message, wire.Offer):
            if message.device != device:
                raise LinkError(f"the charger offers {message.device} with the certificate of {device}")
            self._show(state="identifying")
            self._send(tls, wire.Identify(pev=self._plan.vin, ticket=""))
        elif isinstance(message, wire.Confirm):
            self._store(message)
            if message.ack:
                self._send(tls, wire.Acknowledge(binding=message.binding))
            self._show(state="bound", bound=True, program=message.program, last_reason=None)
        elif isinstance(message, wire.Reject):
            self._show(state="rejected", bound=False, last_reason=str(message.reason.value))
        elif isinstance(message, wire.Wait):
            self._show(state="waiting")

    def _send(self, tls: ssl.SSLSocket, message: wire.Discover | wire.Identify | wire.Acknowledge) -> None:
        tls.sendall(message.model_dump_json().encode() + b"\n")
        self._count(sent=1)
        self._log("pev link sent", {"vehicle": self._plan.vehicle, "kind": message.kind})

    # what survives a power cycle

    def _load(self) -> StoredParameters | None:
        """The stored parameters, or None when there are none that can be read."""
        try:
            return StoredParameters.model_validate_json(self._plan.params_file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            self._log("stored parameters unreadable", {"vehicle": self._plan.vehicle})
            return None

    def _store(self, confirm: wire.Confirm) -> None:
        """Writes them whole or not at all."""
        kept = confirm.model_dump(mode="json", exclude={"kind", "ack"})
        path = self._plan.params_file
        draft = path.with_name(path.name + ".new")
        with draft.open("w", encoding="utf-8") as file:
            json.dump(kept, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


def _charger(tls: ssl.SSLSocket) -> str:
    """The device named by the charger's certificate. Raises LinkError when it names none."""
    certificate = tls.getpeercert() or {}
    for entry in certificate.get("subjectAltName", ()):
        kind, value = str(entry[0]), str(entry[1])
        if kind == "URI" and value.startswith(wire.DEVICE_URI):
            return value.removeprefix(wire.DEVICE_URI)
    raise LinkError("the other end's certificate names no charger")
