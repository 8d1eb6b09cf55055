"""The broker connection (paho): sealed messages of the utility in, ours out (P1-S1.9, P1-S1.11, P1-S3.1).

It proves seal, form and address of what comes in and posts it. It must not decide anything about a message, and no
message, however bad, may end its thread. Redelivery and retry are in real time. Only this module imports paho.
"""

import logging
import socket
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import paho.mqtt.client as paho
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.enums import CallbackAPIVersion, LogLevel
from paho.mqtt.reasoncodes import ReasonCode
from pydantic import ValidationError

from agent.adapters.inbox import deliver
from agent.adapters.keys import TlsFiles
from agent.config import UplinkConfig
from agent.core.events import Received, UplinkLost, UplinkOpened
from agent.ports import Post
from esci import topics
from esci.messages import DOWN, Down, State
from esci.reasons import Reason
from esci.seal import SealError, canonical, key_id, unseal
from esci.units import format_utc

CONNECT_S: Final = 5.0
RETRY_S: Final = (1, 5)  # first and longest wait before the next attempt
INFLIGHT_MAX: Final = 8
QUEUED_MAX: Final = 16  # beyond it a message is dropped and counted: the station sends it again
LAST_WORD_S: Final = 2.0
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

log = logging.getLogger(__name__)


class UplinkError(Exception):
    """The uplink cannot be set up; the text says what, where and what to do."""


class _RefusedMessageError(Exception):
    """A message that is not the utility's word to us; `reason` says why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class MqttUplink:
    """See `agent.ports.Uplink`. Its state belongs to paho's thread, but for the counters."""

    def __init__(
        self,
        config: UplinkConfig,
        device: str,
        tls: TlsFiles,
        utility_public_key: ec.EllipticCurvePublicKey,
        post: Post,
        now_utc: Callable[[], datetime],
    ) -> None:
        """Raises UplinkError when the key files or the host name cannot be used. `now_utc`: world time."""
        self._config, self._device, self._post, self._now_utc = config, device, post, now_utc
        self._utility_key, self._utility_kid = utility_public_key, key_id(utility_public_key)
        self._broker = f"broker {config.host}:{config.port}"
        self._stopping = threading.Event()
        self._lost = False  # UplinkLost was posted and UplinkOpened not yet
        self._shaken = False  # the TLS handshake of this attempt is done
        self._welcome = False  # the broker took this connection
        self._cause = ""  # why the present attempt failed, as far as is known
        self.refused: Counter[Reason] = Counter()  # messages that were not posted
        self.dropped = 0  # messages that publish() did not send
        self._client = self._make_client(tls)

    def start(self) -> None:
        """Begins to connect, and keeps at it until `stop`."""
        self._client.loop_start()

    def stop(self) -> None:
        """Says that the device is offline, if connected, and ends the connection and its thread."""
        if self._client.is_connected():
            said = self._client.publish(topics.state(self._device), self._offline(), qos=1, retain=True)
            if said.rc == paho.MQTT_ERR_SUCCESS:
                said.wait_for_publish(LAST_WORD_S)
        self._stopping.set()
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Sends once the broker is there; otherwise drops and counts it, as the station asks again."""
        if self._client.is_connected():
            if self._client.publish(topic, payload, qos=1, retain=retain).rc == paho.MQTT_ERR_SUCCESS:
                return
            log.warning("message dropped, too many wait for the broker", extra={"topic": topic})
        self.dropped += 1

    # ---- connecting ----

    def _make_client(self, tls: TlsFiles) -> paho.Client:
        try:
            self._config.host.encode("idna")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(CIPHERS)
            context.load_verify_locations(tls.ca)
            context.load_cert_chain(tls.cert, tls.key)
        except UnicodeError as error:
            raise UplinkError(f"uplink.host = {self._config.host!r} is not a host name: correct it") from error
        except (OSError, ValueError) as error:
            raise UplinkError(f"{tls.cert}, {tls.key} or {tls.ca} cannot be used ({error}): run `evse-agent commission`"
                              ) from error
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=self._device, clean_session=False,
                             protocol=paho.MQTTv311, manual_ack=True)
        client.tls_set_context(context)
        client.connect_timeout = CONNECT_S
        client.reconnect_delay_set(*RETRY_S)
        client.max_inflight_messages_set(INFLIGHT_MAX)
        client.max_queued_messages_set(QUEUED_MAX)
        client.on_pre_connect = self._on_pre_connect
        client.on_socket_open = self._on_socket_open
        client.on_connect_fail = self._on_connect_fail
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_log = self._on_log
        client.connect_async(self._config.host, self._config.port, keepalive=self._config.keepalive_s)
        return client

    def _offline(self) -> bytes:
        """The retained state of a device that is away: everything but the time is unknown (P1-B6)."""
        state = State(
            device=self._device, at=format_utc(self._now_utc()), online=False, pilot="unknown", contactor="unknown",
            session="", binding="", reason="", power_w=None, register_wh=None, limit_ma=0, limit_source="unknown",
            journal_waiting=0, clock="unsynced", faults=[])
        return state.model_dump_json().encode()

    def _on_pre_connect(self, client: paho.Client, _: Any) -> None:
        self._shaken, self._welcome, self._cause = False, False, ""
        client.will_set(topics.state(self._device), self._offline(), qos=1, retain=True)

    def _on_socket_open(self, _: Any, __: Any, connection: Any) -> None:
        self._shaken = True
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # an answer must not wait for more to send

    def _on_connect_fail(self, *_: Any) -> None:
        self._say_lost(_why_unconnected(self._broker, sys.exc_info()[1]))

    def _on_connect(self, client: paho.Client, _: Any, __: Any, reason: ReasonCode, ___: Any) -> None:
        if reason.is_failure:
            self._cause = (f"{self._broker} refused us ({reason}): check that this device is not revoked there,"
                           " or commission again")
            return
        self._welcome = True
        client.subscribe(topics.all_down(self._device), qos=1)

    def _on_subscribe(self, _: Any, __: Any, ___: Any, reasons: list[ReasonCode], ____: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._cause = (f"{self._broker} does not let us hear {topics.all_down(self._device)}:"
                           " correct its access list")
            self._hang_up()
            return
        if self._lost:
            log.info("broker is back", extra={"broker": self._broker})
        self._lost = False
        deliver(self._post, UplinkOpened(), self._stopping)

    def _on_disconnect(self, _: Any, __: Any, ___: Any, reason: ReasonCode, ____: Any) -> None:
        if self._stopping.is_set():
            return
        if not self._cause and self._shaken and not self._welcome:
            self._cause = (f"{self._broker} hung up before it answered: it may have refused our certificate:"
                           " commission again or check that it is not revoked or expired")
        self._say_lost(self._cause or f"{self._broker} is away ({reason}): nothing to do, it is tried again")

    def _on_log(self, _: Any, __: Any, level: int, text: str) -> None:
        """paho tells only its log why a connection broke; under TLS 1.3 a refused certificate shows there."""
        if level == LogLevel.MQTT_LOG_ERR:
            if "ALERT" in text.upper() and not self._welcome:
                self._cause = _certificate_refused(self._broker)
            log.debug("paho", extra={"text": text})

    def _say_lost(self, cause: str) -> None:
        """One UplinkLost for each outage; a new cause inside it is logged only."""
        if not self._lost:
            self._lost = True
            log.warning("broker is gone", extra={"cause": cause})
            deliver(self._post, UplinkLost(cause), self._stopping)
        else:
            log.debug("broker is still gone", extra={"cause": cause})

    def _hang_up(self) -> None:
        """Breaks the connection; paho makes a new one after a while."""
        connection = self._client.socket()
        if isinstance(connection, socket.socket):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                log.debug("connection was broken already", extra={"error": str(error)})

    # ---- receiving ----

    def _on_message(self, client: paho.Client, _: Any, message: paho.MQTTMessage) -> None:
        """Posts, then acknowledges: what the inbox has not taken comes again after a restart."""
        try:
            event = Received(self._proven(message))
        except _RefusedMessageError as refusal:
            self.refused[refusal.reason] += 1
            number = self.refused[refusal.reason]
            if number & (number - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: a flood cannot fill the log
                log.warning("message refused", extra={"reason": refusal.reason.value, "detail": str(refusal),
                                                      "number": number})
        else:
            if not deliver(self._post, event, self._stopping):
                return
        client.ack(message.mid, message.qos)

    def _proven(self, message: paho.MQTTMessage) -> Down:
        """The message, its seal proven and its form and address checked. Raises _RefusedMessageError."""
        try:
            address = topics.parse(message.topic)
        except UnicodeDecodeError as error:
            raise _RefusedMessageError(Reason.WRONG_TOPIC, "the topic is not UTF-8") from error
        if address is None or address.device != self._device or address.direction != "down":
            raise _RefusedMessageError(Reason.WRONG_TOPIC, message.topic[:80])
        try:
            body = unseal(bytes(message.payload), self._key_for)
            found = DOWN.validate_json(canonical(body))
        except SealError as error:
            raise _RefusedMessageError(Reason.BAD_SEAL, str(error)) from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            detail = f"{address.kind}: {first['loc']}: {first['msg']}"[:200]
            raise _RefusedMessageError(Reason.MALFORMED, detail) from error
        if found.device != self._device or found.kind != address.kind:
            raise _RefusedMessageError(Reason.WRONG_TOPIC, f"{found.kind} for {found.device} on {message.topic[:80]}")
        return found

    def _key_for(self, kid: str) -> ec.EllipticCurvePublicKey | None:
        return self._utility_key if kid == self._utility_kid else None


def _certificate_refused(broker: str) -> str:
    return f"{broker} refused our certificate: commission again or check that it is not revoked or expired"


def _why_unconnected(broker: str, error: BaseException | None) -> str:
    """The sentence for a connection that did not come about."""
    match error:
        case ssl.SSLCertVerificationError():
            return (f"{broker} is not who the utility's CA vouches for ({error.verify_message}): correct uplink.host"
                    " or commission again")
        case ssl.SSLError() if "ALERT" in (error.reason or ""):
            return _certificate_refused(broker)
        case ssl.SSLError():
            return f"{broker} does not speak TLS as we do ({error.reason}): correct uplink.port or mend the broker"
        case socket.gaierror():
            return f"{broker} cannot be found ({error.strerror}): correct uplink.host or look at the name server"
        case _:
            return f"{broker} cannot be reached ({error}): look at the network; it is tried again"
