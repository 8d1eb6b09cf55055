"""The gateway process: MQTT in, desk, MQTT out (P1-S1.10, P1-S3.1, P1-N1). A composition root: clock, chance, signals.

paho's thread only puts messages into a bounded queue; the main thread handles them one by one: transaction, commit,
answers, and only then the acknowledgement to the broker. Database away: the gateway leaves the broker, which keeps the
messages, and comes back when the database does. It must not decide anything.
"""

import contextlib
import logging
import os
import queue
import secrets
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from sqlalchemy import Engine, text

from cloud import logs
from cloud.config import CloudConfig, open_database
from cloud.db import DatabaseUnavailableError, create_schema, transaction
from cloud.desk import Answer, Desk, Handled, Tools
from cloud.errors import ConfigError
from cloud.pki import Pki, ServiceFiles
from cloud.rating.plans import load_plans
from cloud.rating.service import Catalogue
from esci import timescale, topics
from esci.reasons import Reason

QUEUE_MESSAGES = 1000
QUEUE_WAIT_S = 5.0
OUTGOING_MESSAGES = 10_000
KEEPALIVE_S = 30
CHANGES_EVERY_S = 2.0
RETRY_FIRST_S, RETRY_LAST_S = 0.2, 5.0
log = logging.getLogger("cloud.gateway")


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message from the broker, and the connection that it came over."""

    connection: int
    message: mqtt.MQTTMessage


class Gateway:
    """The main thread's work. `run` returns after `stop`."""

    def __init__(self, desk: Desk, engine: Engine, client: mqtt.Client, broker: tuple[str, int]) -> None:
        self._desk, self._engine, self._client, self._broker = desk, engine, client, broker
        self._inbox: queue.Queue[Incoming] = queue.Queue(QUEUE_MESSAGES)
        self._stopping = threading.Event()
        self._rejoin = threading.Event()
        self._connection = 0
        self._broker_gone = False
        self._changes_due_s = 0.0
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_connect_fail, client.on_message = self._on_connect_fail, self._on_message
        client.on_subscribe = self._on_subscribe

    def stop(self) -> None:
        """Let `run` return after the message in hand; safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Handle messages until `stop`."""
        self._await_database()
        self._join()
        while not self._stopping.is_set():
            if self._rejoin.is_set():
                self._leave()
                self._join()
            try:
                self._step()
            except DatabaseUnavailableError as error:
                self._leave()
                log.warning("the database is gone, messages stay at the broker", extra={"cause": str(error)})
                self._await_database()
                self._join()
        self._leave()
        log.info("stopped")

    def _step(self) -> None:
        """One message, if one comes within a moment; and now and then what has changed at the utility."""
        if self._client.is_connected() and time.monotonic() >= self._changes_due_s:
            changed = self._desk.changed()
            self._publish(changed)
            if changed:
                log.info("changed parameters sent", extra={"topics": [answer.topic for answer in changed]})
            self._changes_due_s = time.monotonic() + CHANGES_EVERY_S
        try:
            incoming = self._inbox.get(timeout=0.2)
        except queue.Empty:
            return
        if incoming.connection == self._connection:  # else the broker sends it again: it was not acknowledged
            self._take(incoming.message)

    def _take(self, message: mqtt.MQTTMessage) -> None:
        """Handle, publish the answers, acknowledge to the broker, log: in this order."""
        topic, payload = _topic(message), bytes(message.payload)
        try:
            handled = self._desk.handle(topic, payload)
        except DatabaseUnavailableError:
            raise
        except Exception as error:  # the outermost loop: one message that shows a bug must not stop the rest
            log.exception("a message could not be handled and is kept: report this", extra={"topic": topic})
            self._desk.keep(topic, payload, Reason.MALFORMED, f"internal: {type(error).__name__}")
            handled = Handled((), "", "", Reason.MALFORMED, {})
        self._publish(handled.answers)
        self._client.ack(message.mid, message.qos)
        _log_handled(handled, topic)

    def _publish(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            sent = self._client.publish(answer.topic, answer.payload, qos=1)
            if sent.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                log.warning("an answer was dropped, the queue is full; the device asks again",
                            extra={"topic": answer.topic})

    def _await_database(self) -> None:
        """Return when the database answers and its tables are there."""
        delay_s, told = RETRY_FIRST_S, False
        while not self._stopping.is_set():
            try:
                create_schema(self._engine)
                with transaction(self._engine) as session:
                    session.execute(text("SELECT 1"))
            except DatabaseUnavailableError as error:
                if not told:
                    log.warning("waiting for the database", extra={"cause": str(error)})
                    told = True
                self._stopping.wait(delay_s)
                delay_s = min(delay_s * 2, RETRY_LAST_S)
            else:
                log.info("the database is back" if told else "the database answers")
                return

    def _join(self) -> None:
        if not self._stopping.is_set():
            self._rejoin.clear()
            self._client.connect_async(*self._broker, keepalive=KEEPALIVE_S)
            self._client.loop_start()

    def _leave(self) -> None:
        """Leave the broker; what waits here was not acknowledged and comes again."""
        self._client.disconnect()
        self._client.loop_stop()
        while not self._inbox.empty():
            self._inbox.get_nowait()

    # ---- paho's thread ----

    def _on_connect(self, client: mqtt.Client, _data: Any, flags: mqtt.ConnectFlags, code: Any, _props: Any) -> None:
        if code.is_failure:
            log.error("the broker refused the connection", extra={"code": str(code)})
            return
        self._connection += 1
        client.subscribe(topics.ALL_UP, qos=1)
        fields = {"session_present": int(flags.session_present)}
        log.info("the broker is back" if self._broker_gone else "connected to the broker", extra=fields)
        self._broker_gone = False

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, codes: Any, _properties: Any) -> None:
        if any(code.is_failure for code in codes):
            log.error("the broker refused the subscription: see its access rules",
                      extra={"topics": topics.ALL_UP})
        else:
            log.info("ready", extra={"topics": topics.ALL_UP})

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure:
            self._tell_gone(str(code))

    def _on_connect_fail(self, _client: Any, _data: Any) -> None:
        self._tell_gone("no connection")

    def _tell_gone(self, cause: str) -> None:
        if not self._broker_gone:
            self._broker_gone = True
            host, port = self._broker
            fields = {"broker": f"{host}:{port}", "cause": cause}
            log.warning("the broker is gone, trying again", extra=fields)

    def _on_message(self, client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        """Queue it. A full queue holds the broker back a while; then the connection is made anew, nothing is lost."""
        until_s = time.monotonic() + QUEUE_WAIT_S
        incoming = Incoming(self._connection, message)
        while not (self._stopping.is_set() or self._rejoin.is_set()):
            try:
                self._inbox.put(incoming, timeout=0.2)
            except queue.Full:
                if time.monotonic() < until_s:
                    continue
                log.warning("the queue is full, the broker keeps the rest")
                self._rejoin.set()
                client.disconnect()
            return


def run(config: CloudConfig, name: str = "gateway") -> None:
    """Run the gateway under a service's name until SIGTERM or SIGINT.

    Raises ConfigError when configuration, keys or plans are missing or wrong.
    """
    logs.start()
    pki = Pki(config.pki)
    try:
        catalogue = Catalogue(load_plans())
    except ValueError as error:
        raise ConfigError(str(error)) from error
    engine = open_database(config)
    tools = Tools(pki.seal_signer(), world_clock(), lambda: secrets.token_hex(16), catalogue)
    client = new_client(name, pki.service(name))
    gateway = Gateway(Desk(engine, tools), engine, client, (config.broker.host, config.broker.port))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: gateway.stop())
    gateway.run()
    engine.dispose()


def new_client(name: str, files: ServiceFiles) -> mqtt.Client:
    """A client with mutual TLS whose session the broker keeps. Raises ConfigError for unusable certificates."""
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2, client_id=name, clean_session=False, protocol=mqtt.MQTTv311, manual_ack=True
    )
    try:
        context = ssl.create_default_context(cafile=str(files.authority))
        context.load_cert_chain(str(files.certificate), str(files.key))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{files.certificate} or its key cannot be used: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    client.tls_set_context(context)
    client.reconnect_delay_set(RETRY_FIRST_S, RETRY_LAST_S)  # type: ignore[arg-type]  # seconds, fractions work
    client.max_queued_messages_set(OUTGOING_MESSAGES)
    client.on_socket_open = _send_at_once
    return client


def _send_at_once(_client: mqtt.Client, _data: Any, opened: Any) -> None:
    """Small packets do not wait for the broker's TCP acknowledgement of the one before."""
    with contextlib.suppress(OSError):  # a socket that is dead already shows it at the next read
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def world_clock() -> Callable[[], datetime]:
    """UTC in whole seconds, by PLUGBIND_CLOCK where it is set. Raises ConfigError when it cannot be read."""
    said = os.environ.get(timescale.VARIABLE)
    if not said:
        return lambda: datetime.now(UTC).replace(microsecond=0)
    try:
        scale = timescale.TimeScale.parse(said)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return lambda: scale.utc(time.monotonic())


def _topic(message: mqtt.MQTTMessage) -> str:
    try:
        return str(message.topic)
    except UnicodeDecodeError:
        return "not UTF-8"


def _log_handled(handled: Handled, topic: str) -> None:
    fields: dict[str, object] = {"device": handled.device, "kind": handled.kind, **handled.fields}
    if handled.refused is not None:
        fields |= {"reason": handled.refused.value, "topic": topic[:100]}
        log.warning("refused", extra=fields)
        return
    log.info("handled", extra=fields | {"answers": [answer.kind for answer in handled.answers]})
