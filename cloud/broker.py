"""The embedded broker: amqtt 0.12 (MQTT 3.1.1) behind a gate of our own (P1-S1.7, P1-S1.9).

amqtt looks up a client's session before it knows who the client is, gives a returning client the TLS object of its
forerunner, sends last wills past the topic rules, and asks for a certificate only "optionally". So the gate reads the
first packet itself: no certificate of the utility, another client id than the certificate's name, or a last will on a
foreign topic, and the connection ends before amqtt sees it. Sessions live as long as this process; what must not be
lost is acknowledged by the application.
"""

import asyncio
import contextlib
import logging
import signal
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amqtt.adapters import BufferReader, ReaderAdapter, StreamWriterAdapter, WriterAdapter
from amqtt.broker import Broker, RetainedApplicationMessage
from amqtt.contexts import Action, BrokerConfig, ListenerConfig
from amqtt.errors import AMQTTError, BrokerError, NoDataError
from amqtt.mqtt.connect import ConnectPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import OutgoingApplicationMessage, Session
from cryptography import x509

from cloud.brokerconf import PACKET_LIMIT_BYTES, Identity, identity_of, may_publish, may_subscribe
from cloud.config import CloudConfig
from cloud.errors import UnavailableError
from cloud.pki import Pki
from cloud.security import CIPHERS

log = logging.getLogger("cloud.broker")

CONNECT_LIMIT_BYTES = 16_384
CONNECT_WAIT_S = 10
CONNECTIONS_LIMIT = 2_000
OFFLINE_LIMIT_MESSAGES = 1_000
REVOCATION_POLL_S = 1
SESSION_LIFE_S = 14 * 86_400
_IDENTITY = "plugbind.identity"
_NOT_AUTHORISED = bytes((0x20, 0x02, 0x00, 0x05))
_OWN_KEEP_ALIVE_S = 7 * 86_400  # amqtt's timer loses bytes when it fires; ours (GateReader) comes first


class RefusedClientError(Exception):
    """The gate does not let this client in; the text says why."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A connection that the gate let in."""

    identity: Identity
    serial: int
    ends_at_s: float
    hang_up: Callable[[], None]
    gone: asyncio.Event


class GateReader(ReaderAdapter):
    """Gives back the first packet, then the stream: bounded in size, and at its end when the client falls silent."""

    def __init__(self, first: bytes, reader: asyncio.StreamReader, keep_alive_s: int) -> None:
        self._first = first
        self._reader = reader
        self._silence_s = keep_alive_s * 1.5 if keep_alive_s else None  # MQTT-3.1.2-24
        self._ended = False

    async def read(self, n: int = -1) -> bytes:
        """Exactly n bytes. Raises NoDataError, and ever after, for too much, a silence or the stream's end."""
        if self._ended or not 0 <= n <= PACKET_LIMIT_BYTES:
            self._ended = True
            raise NoDataError("the packet is too long")
        if self._first:
            data, self._first = self._first[:n], self._first[n:]
            return data
        try:
            async with asyncio.timeout(self._silence_s):
                return await self._reader.readexactly(n)
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            self._ended = True
            raise NoDataError("the client fell silent") from error

    def feed_eof(self) -> None:
        """Nothing more is read."""
        self._ended = True


class CertificateAuth(BaseAuthPlugin):
    """Second look, inside amqtt: the certificate's name is the client id."""

    async def authenticate(self, *, session: Session) -> bool | None:
        """True for a client whose certificate names it; the identity is kept with the session for the topic rules."""
        identity = identity_of(session.ssl_object.getpeercert()) if session.ssl_object is not None else None
        if identity is None or identity.name != session.client_id:
            return False
        session.attributes[_IDENTITY] = identity
        return True


class TopicRules(BaseTopicPlugin):
    """The rules of `brokerconf` on every publication, subscription and delivery."""

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool | None:
        """True only where a rule allows it."""
        identity = session.attributes.get(_IDENTITY) if session is not None else None
        if not isinstance(identity, Identity) or not topic:
            return False
        allowed = may_publish(identity, topic) if action == Action.PUBLISH else may_subscribe(identity, topic)
        if not allowed:
            log.warning("topic refused", extra={"client": identity.name, "topic": topic[:200], "action": str(action)})
        return allowed


class Revocations:
    """Serial numbers in the revocation list, read anew when the file changes. An unreadable list lets nobody in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._serials: frozenset[int] | None = None

    def holds(self, serial: int) -> bool:
        """True when the certificate is revoked, or when nobody can tell."""
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp != self._stamp:
                listed = x509.load_pem_x509_crl(self._path.read_bytes())
                self._serials, self._stamp = frozenset(entry.serial_number for entry in listed), stamp
        except (OSError, ValueError):
            log.exception("the revocation list cannot be read", extra={"path": str(self._path)})
            self._serials = self._stamp = None
        return self._serials is None or serial in self._serials


class UtilityBroker(Broker):
    """amqtt's broker behind the gate."""

    def __init__(self, config: BrokerConfig, context: ssl.SSLContext, revocations: Revocations) -> None:
        super().__init__(config)
        self._context = context
        self._revocations = revocations
        self._guests: set[Guest] = set()

    def _create_ssl_context(  # type: ignore[override]  # amqtt has a static method; it calls it through self
        self, listener: ListenerConfig
    ) -> ssl.SSLContext:
        return self._context

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """One client from its first byte to its last; nothing that it sends ends more than its own connection."""
        guest: Guest | None = None
        try:
            if len(self._guests) >= CONNECTIONS_LIMIT:
                raise RefusedClientError(f"there are {CONNECTIONS_LIMIT} connections already")
            async with asyncio.timeout(CONNECT_WAIT_S):
                first = await _first_packet(reader)
                connect = await ConnectPacket.from_stream(BufferReader(first))
            admitted = self._admit(connect, writer)
            await self._end_forerunner(admitted.identity.name)
            guest = admitted
            self._guests.add(guest)
            log.info("connected", extra={"client": guest.identity.name})
            gated = GateReader(first, reader, connect.keep_alive)
            await self._client_connected(listener_name, gated, StreamWriterAdapter(writer))
        except RefusedClientError as refused:
            log.warning("client refused", extra={"cause": str(refused), "peer": _peer(writer)})
            with contextlib.suppress(OSError):
                writer.write(_NOT_AUTHORISED)
        except Exception as error:  # noqa: BLE001 - outermost for a connection: a hostile client must not end the broker
            log.warning("connection ended", extra={"cause": repr(error)[:200], "peer": _peer(writer)})
        finally:
            if guest is not None:
                self._guests.discard(guest)
                guest.gone.set()
                log.info("disconnected", extra={"client": guest.identity.name})
            writer.close()

    def _admit(self, connect: ConnectPacket, writer: asyncio.StreamWriter) -> Guest:
        """The guest. Raises RefusedClientError with the cause."""
        tls = writer.get_extra_info("ssl_object")
        certificate = tls.getpeercert() if tls is not None else None
        identity = identity_of(certificate)
        if identity is None or certificate is None:
            raise RefusedClientError("no certificate that names a charger or a service")
        if connect.client_id != identity.name:
            raise RefusedClientError(f"{identity.name} asked for a client id that is not its own")
        if connect.will_flag and not may_publish(identity, connect.will_topic or ""):
            raise RefusedClientError(f"{identity.name} asked for a last will on a topic that is not its own")
        guest = Guest(identity, int(certificate["serialNumber"], 16), ssl.cert_time_to_seconds(certificate["notAfter"]),
                      writer.transport.abort, asyncio.Event())
        if self._unwelcome(guest):
            raise RefusedClientError(f"{identity.name} bears a revoked certificate")
        return guest

    async def _end_forerunner(self, name: str) -> None:
        """The name's older connection is over (MQTT-3.1.4-2), and so is its session if that was a clean one.

        Left to itself amqtt keeps both connections, and makes a persistent session of a clean one's remains.
        """
        async with asyncio.timeout(CONNECT_WAIT_S):
            while old := next((guest for guest in self._guests if guest.identity.name == name), None):
                old.hang_up()
                await old.gone.wait()
        session, _ = self._sessions.get(name, (None, None))
        if session is not None and session.clean_session:
            await self._delete_session(name)

    def _unwelcome(self, guest: Guest) -> bool:
        return self._revocations.holds(guest.serial) or guest.ends_at_s < time.time()

    async def watch(self) -> None:
        """Hang up on everyone whose certificate was revoked or has expired, within seconds of it; runs for ever."""
        while True:
            await asyncio.sleep(REVOCATION_POLL_S)
            for guest in [found for found in self._guests if self._unwelcome(found)]:
                log.warning("hung up: certificate revoked or expired", extra={"client": guest.identity.name})
                guest.hang_up()

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, remote_address: str, remote_port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        """A returning client brings its own TLS object, not the one of its last connection."""
        handler, session = await super()._initialize_client_session(reader, writer, remote_address, remote_port)
        session.ssl_object = writer.get_ssl_info()
        publish = handler.mqtt_publish

        async def publish_or_keep(
            topic: str, data: bytes | bytearray, qos: int | None, retain: bool, ack_timeout: int | None = None
        ) -> OutgoingApplicationMessage:
            try:
                return await publish(topic, data, qos, retain, ack_timeout)
            except (asyncio.CancelledError, TimeoutError, AMQTTError, OSError):
                await self._keep(session, handler, RetainedApplicationMessage(None, topic, data, qos))
                raise

        handler.mqtt_publish = publish_or_keep  # type: ignore[method-assign]  # amqtt names the handler's class itself
        return handler, session

    async def _keep(
        self, session: Session, handler: BrokerProtocolHandler, message: RetainedApplicationMessage
    ) -> None:
        """A message that was under way when the connection ended goes over the next one; amqtt forgets it."""
        if not message.qos or session.clean_session:
            return
        now = self._get_handler(session)
        if now is not None and now is not handler and session.transitions.state == "connected":
            await now.mqtt_publish(message.topic, message.data, message.qos, retain=False)
        elif session.retained_messages.qsize() < OFFLINE_LIMIT_MESSAGES:
            session.retained_messages.put_nowait(message)
        else:
            log.warning("dropped for an absent client: its queue is full", extra={"client": session.client_id})

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        """Retained messages go to a session for its own subscriptions; amqtt gives it everybody's at a reconnection."""
        subscribers = self._subscriptions.get(subscription[0], [])
        if any(subscriber.client_id == session.client_id for subscriber, _ in subscribers):
            await super()._publish_retained_messages_for_subscription(subscription, session)

    async def _retain_broadcast_message(self, broadcast: dict[str, Any], qos: int, target_session: Session) -> None:
        """Keep for an absent client, up to the bound; what is dropped beyond it is sent again by the application."""
        if target_session.retained_messages.qsize() >= OFFLINE_LIMIT_MESSAGES:
            log.warning("dropped for an absent client: its queue is full", extra={"client": target_session.client_id})
            return
        await super()._retain_broadcast_message(broadcast, qos, target_session)


async def _first_packet(reader: asyncio.StreamReader) -> bytes:
    """The bytes of a CONNECT. Raises RefusedClientError for any other first packet or one that is too long."""
    head = await reader.readexactly(2)
    if head[0] != 0x10:
        raise RefusedClientError("the first packet is not CONNECT")
    while head[-1] & 0x80 and len(head) < 5:
        head += await reader.readexactly(1)
    length = sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(head[1:]))
    if head[-1] & 0x80 or length > CONNECT_LIMIT_BYTES:
        raise RefusedClientError("CONNECT is too long")
    return head + await reader.readexactly(length)


def _peer(writer: asyncio.StreamWriter) -> str:
    return str(writer.get_extra_info("peername"))


def tls_context(pki: Pki) -> ssl.SSLContext:
    """TLS 1.2 or later, AEAD only; every client shows a certificate of the utility's authority."""
    files = pki.service("broker")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # each connection shows its certificate anew
    return context


def run(config: CloudConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises UnavailableError when the port cannot be had."""
    pki = Pki(config.pki)
    asyncio.run(_serve(config, tls_context(pki), Revocations(pki.crl)))


async def _serve(config: CloudConfig, context: ssl.SSLContext, revocations: Revocations) -> None:
    section = config.broker
    bind = f"[{section.bind}]:{section.port}" if ":" in section.bind else f"{section.bind}:{section.port}"
    broker = UtilityBroker(
        BrokerConfig(
            listeners={"default": ListenerConfig(bind=bind, ssl=True)},
            timeout_disconnect_delay=_OWN_KEEP_ALIVE_S,
            session_expiry_interval=SESSION_LIFE_S,
            plugins={"cloud.broker.CertificateAuth": {}, "cloud.broker.TopicRules": {}},
        ),
        context,
        revocations,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    try:
        await broker.start()
    except BrokerError as error:
        raise UnavailableError(f"the broker cannot listen on {bind}: {error.__cause__ or error}") from error
    watch = asyncio.create_task(broker.watch())
    log.info("broker ready", extra={"bind": bind})
    await stop.wait()
    watch.cancel()
    await broker.shutdown()
    log.info("broker stopped")
