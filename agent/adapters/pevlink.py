"""The PEV link's server: mutual TLS 1.3 with the vehicle, one JSON object a line (P1-S1.7, P1-S1.8, P1-S2.2, P1-S2.3).

It proves who the vehicle is and answers `discover`; every other answer is the station's, sent with `tell`. It must not
decide about a binding. Whatever a peer sends, the worst that happens is that its own connection ends. Each connection
has one thread, which alone reads and writes its socket: OpenSSL forbids two. Time limits are real time.
"""

import contextlib
import logging
import queue
import select
import socket
import ssl
import threading
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from agent.adapters.inbox import deliver
from agent.adapters.keys import TlsFiles
from agent.config import PevLinkConfig
from agent.core.events import PevAcknowledged, PevGone, PevIdentified
from agent.ports import Post
from esci.pevlink import FROM_PEV, LINE_LIMIT, PEV_URI, Acknowledge, Discover, FromPev, Identify, Offer, Reject, ToPev
from esci.reasons import SENTENCES, Reason
from esci.seal import SealError, load

CONNECTIONS_MAX: Final = 4  # at one more, the oldest that is not the present vehicle's is closed
HANDSHAKE_S: Final = 10.0
QUIET_S: Final = 10.0
MESSAGES_MAX: Final = 20  # without a pause of QUIET_S; a vehicle needs three
WRITE_S: Final = 5.0
OUTGOING_MAX: Final = 16
KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))

log = logging.getLogger(__name__)


class PevLinkError(Exception):
    """The PEV link cannot be opened; the text says what, where and what to do."""


class _RefusedError(Exception):
    """The connection must end; `reason` is told to the vehicle where it is not None."""

    def __init__(self, text: str, reason: Reason | None = None) -> None:
        super().__init__(text)
        self.reason = reason


class PevLinkServer:
    """See `agent.ports.PevPort`."""

    def __init__(
        self, config: PevLinkConfig, device: str, premises: str, tls: TlsFiles, pev_ca: Path, post: Post
    ) -> None:
        """Raises PevLinkError when the key files cannot be used."""
        self._config, self._post = config, post
        self._offer = Offer(device=device, premises=premises)
        self._context = _context(tls, pev_ca)
        self._listener: socket.socket | None = None
        self._thread = threading.Thread(target=self._accept, name="pevlink", daemon=True)
        self._stopping = threading.Event()
        self._order = threading.Lock()  # events reach the inbox in the order in which _current changed
        self._lock = threading.Lock()  # guards the two below
        self._connections: list[_Connection] = []  # oldest first
        self._current: _Connection | None = None  # the last one to identify itself

    @property
    def port(self) -> int:
        """The TCP port in use; 0 before `start`."""
        return int(self._listener.getsockname()[1]) if self._listener else 0

    def start(self) -> None:
        """Opens the port. Raises PevLinkError."""
        family = socket.AF_INET6 if ":" in self._config.host else socket.AF_INET
        try:
            self._listener = socket.create_server((self._config.host, self._config.port), family=family, backlog=8)
        except OSError as error:
            raise PevLinkError(f"port {self._config.port} on {self._config.host} cannot be opened ({error.strerror}):"
                               " correct [pevlink] or end the program that holds it") from error
        self._thread.start()

    def stop(self) -> None:
        """Ends every connection and closes the port. Posts nothing more."""
        self._stopping.set()
        if self._listener:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
            self._listener.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.close()
        for connection in connections:
            connection.join()

    def tell(self, message: ToPev) -> None:
        """Sends to the vehicle that identified itself last; without one the message is dropped. Never blocks."""
        with self._lock:
            current = self._current
        if current is None:
            log.info("no vehicle on the link, message dropped", extra={"kind": message.kind})
        else:
            current.send(message)

    # ---- what connections call, each from its own thread ----

    def handle(self, connection: "_Connection", message: FromPev) -> None:
        """Acts on one message of a proven vehicle. Raises _RefusedError."""
        match message:
            case Discover():
                connection.send(self._offer)
            case Identify():
                if message.pev != connection.pev:
                    raise _RefusedError("vehicle names another PEV I.D. than its certificate", Reason.PEV_MISMATCH)
                log.info("vehicle identified", extra={"pev": connection.pev, "resumed": connection.resumed})
                self._make_current(connection, message.ticket)
            case Acknowledge():
                with self._lock:
                    present = self._current is connection
                if not present:
                    raise _RefusedError("acknowledgement before identification", Reason.MALFORMED)
                self._deliver(PevAcknowledged(message.binding))

    def gone(self, connection: "_Connection") -> None:
        """The connection has ended."""
        with self._order:
            with self._lock:
                self._connections.remove(connection)
                present = self._current is connection
                if present:
                    self._current = None
            if present and not self._stopping.is_set():
                self._deliver(PevGone())

    def _make_current(self, connection: "_Connection", ticket: str) -> None:
        """The newest vehicle to identify itself has the link; the one before loses it."""
        with self._order:
            with self._lock:
                before, self._current = self._current, connection
            if before is not None and before is not connection:
                before.close()
            self._deliver(PevIdentified(connection.pev, ticket, connection.resumed))

    def _deliver(self, event: PevIdentified | PevAcknowledged | PevGone) -> None:
        deliver(self._post, event, self._stopping)

    # ---- accepting ----

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._stopping.is_set():
            try:
                plain, address = self._listener.accept()
            except OSError as error:  # out of file handles, or stopped
                if self._stopping.wait(1.0):
                    return
                log.warning("PEV link cannot accept", extra={"error": str(error)})
                continue
            with self._lock:
                surplus = self._surplus()
                connection = _Connection(self, self._context, plain, str(address[0]))
                self._connections.append(connection)
            if surplus is not None:
                log.warning("too many PEV links, the oldest is closed", extra={"peer": surplus.peer})
                surplus.close()
            connection.start()

    def _surplus(self) -> "_Connection | None":
        """The connection that makes room for one more; None while there is room. Closing ones are not counted."""
        alive = [connection for connection in self._connections if not connection.closing]
        if len(alive) < CONNECTIONS_MAX:
            return None
        return next(connection for connection in alive if connection is not self._current)


class _Connection:
    """One connection, its thread and what waits to be sent on it."""

    def __init__(self, server: PevLinkServer, context: ssl.SSLContext, plain: socket.socket, peer: str) -> None:
        self.peer = peer
        self.pev = ""  # proven by the certificate
        self.resumed = False
        self.closing = False
        self._server, self._context, self._socket = server, context, plain
        self._outgoing: queue.Queue[ToPev] = queue.Queue(OUTGOING_MAX)
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_w.setblocking(False)
        self._thread = threading.Thread(target=self._run, name=f"pevlink {peer}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def send(self, message: ToPev) -> None:
        """Queues a message; a vehicle that takes none loses its connection."""
        try:
            self._outgoing.put_nowait(message)
        except queue.Full:
            log.warning("vehicle takes no messages, its link is closed", extra={"peer": self.peer})
            self.closing = True
        self._wake()

    def close(self) -> None:
        """Asks the thread to end; what is queued is still sent if the vehicle takes it at once."""
        self.closing = True
        self._wake()
        if not self.pev:  # in the handshake the thread waits for the peer, not for us
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # below TLS, whose state is the thread's

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: it has ended
            self._wake_w.send(b"!")

    def _run(self) -> None:
        try:
            self._serve()
        except _RefusedError as refusal:
            log.warning("PEV link refused", extra={"peer": self.peer, "pev": self.pev, "cause": str(refusal)})
        except ssl.SSLError as error:
            log.warning("PEV link refused", extra={"peer": self.peer, "cause": f"TLS: {error.reason or error}"})
        except OSError as error:
            log.info("PEV link broke", extra={"peer": self.peer, "cause": str(error)})
        finally:
            self.closing = True
            self._socket.close()
            self._server.gone(self)
            self._wake_r.close()
            self._wake_w.close()

    def _serve(self) -> None:
        """From the handshake to the goodbye. Raises OSError and _RefusedError."""
        secure = self._handshake()
        try:
            self._talk(secure)
        except _RefusedError as refusal:
            if refusal.reason is not None:
                self._write(secure, Reject(reason=refusal.reason, sentence=SENTENCES[refusal.reason]))
            raise
        finally:
            _say_goodbye(secure)

    def _handshake(self) -> ssl.SSLSocket:
        """The secured socket of a vehicle whose certificate names it. Raises OSError and _RefusedError."""
        self._socket.settimeout(HANDSHAKE_S)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
        secure = self._context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        self._socket = secure
        secure.do_handshake()
        self.pev, self.resumed = _named(secure), bool(secure.session_reused)
        return secure

    def _talk(self, secure: ssl.SSLSocket) -> None:
        """Both ways until someone closes. Raises OSError and _RefusedError."""
        received = b""
        budget = MESSAGES_MAX
        while not self.closing:
            secure.setblocking(False)
            try:
                data = secure.recv(LINE_LIMIT)
                if not data:
                    return
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if not self._wait(secure):
                    budget = MESSAGES_MAX
            else:
                received += data
                *lines, received = received.split(b"\n")
                if any(len(line) >= LINE_LIMIT for line in (*lines, received)):
                    raise _RefusedError(f"a line of more than {LINE_LIMIT} bytes", Reason.MALFORMED)
                budget -= len(lines)
                if budget < 0:
                    raise _RefusedError(f"more than {MESSAGES_MAX} messages without a pause")
                for line in lines:
                    self._server.handle(self, _parsed(line))
            self._flush(secure)
        self._flush(secure)

    def _wait(self, secure: ssl.SSLSocket) -> bool:
        """False after QUIET_S in which neither side had anything to say."""
        ready, _, _ = select.select([secure, self._wake_r], [], [], QUIET_S)
        if self._wake_r in ready:
            self._wake_r.recv(OUTGOING_MAX)
        return bool(ready)

    def _flush(self, secure: ssl.SSLSocket) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._write(secure, self._outgoing.get_nowait())

    def _write(self, secure: ssl.SSLSocket, message: ToPev) -> None:
        secure.settimeout(WRITE_S)
        secure.sendall(message.model_dump_json().encode() + b"\n")


def _context(tls: TlsFiles, pev_ca: Path) -> ssl.SSLContext:
    """Mutual TLS 1.3; only the PEV CA is trusted. A CRL beside the CA (pev-ca.crl) is honoured when it is there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    revoked = pev_ca.with_suffix(".crl")
    try:
        context.load_cert_chain(tls.cert, tls.key)
        context.load_verify_locations(pev_ca)
        if revoked.exists():
            context.load_verify_locations(revoked)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (OSError, ValueError) as error:
        raise PevLinkError(f"{tls.cert}, {tls.key}, {pev_ca} or {revoked} cannot be used ({error}):"
                           " run `evse-agent commission`") from error
    return context


def _named(secure: ssl.SSLSocket) -> str:
    """The PEV I.D. in the peer's certificate. Raises _RefusedError unless there is exactly one."""
    names = (secure.getpeercert() or {}).get("subjectAltName", ())
    found = [str(entry[1]) for entry in names if entry[0] == "URI" and str(entry[1]).startswith(PEV_URI)]
    if len(found) != 1:
        raise _RefusedError(f"its certificate names {len(found)} vehicles, not one")
    return found[0].removeprefix(PEV_URI)


def _parsed(line: bytes) -> FromPev:
    """The message in a line. Raises _RefusedError."""
    try:
        load(line, LINE_LIMIT)  # refuses doubled members, floats and deep nesting, which pydantic would take
        return FROM_PEV.validate_json(line)
    except (SealError, ValidationError) as error:
        raise _RefusedError("a line that is not of the agreed form", Reason.MALFORMED) from error


def _say_goodbye(secure: ssl.SSLSocket) -> None:
    """Tells the peer that nothing more comes, without waiting for its answer."""
    secure.setblocking(False)
    with contextlib.suppress(OSError):
        secure.unwrap()
