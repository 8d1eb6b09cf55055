"""Who may say and hear what on the broker, and the same rules as a configuration for Debian's mosquitto (P1-S1.9).

One table of rules; the embedded broker asks it, mosquitto gets it as an ACL file. No network here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cloud.errors import ConfigError
from cloud.pki import ServiceFiles, is_service_name
from esci.ids import check_name
from esci.pevlink import DEVICE_URI, SERVICE_URI
from esci.topics import ROOT

PACKET_LIMIT_BYTES = 270_336  # the largest message of the contract (esci.seal.load) and its topic
_SPACES_AND_MORE = re.compile(r"[\x00-\x1f\x7f]")

Role = Literal["device", "service"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who stands at the other end, as its certificate says."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Rules:
    """Topic filters that an identity may publish within and subscribe within."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


NOTHING = Rules((), ())


def identity_of(certificate: Mapping[str, object] | None) -> Identity | None:
    """The identity in a certificate as `ssl` shows it; None when it names none of ours, or two different ones."""
    if not certificate:
        return None
    names = [value for part in _pairs(certificate.get("subject")) for key, value in _pairs(part) if key == "commonName"]
    uris = [value for key, value in _pairs(certificate.get("subjectAltName")) if key == "URI"]
    if len(names) != 1 or len(uris) != 1:
        return None
    name = str(names[0])
    try:
        check_name(name)
    except ValueError:
        return None
    if uris[0] == DEVICE_URI + name and not is_service_name(name):
        return Identity(name, "device")
    if uris[0] == SERVICE_URI + name and is_service_name(name):
        return Identity(name, "service")
    return None


def rules(identity: Identity) -> Rules:
    """What the identity may do: a charger speaks for itself only, a gateway with all, an observer listens."""
    name = identity.name
    if identity.role == "device":
        return Rules((f"{ROOT}/{name}/up/+", f"{ROOT}/{name}/state"), (f"{ROOT}/{name}/down/+",))
    if _kind(name) == "gateway":
        return Rules((f"{ROOT}/+/down/+",), (f"{ROOT}/+/up/+", f"{ROOT}/+/state"))
    if _kind(name) == "observer":
        return Rules((), ("esci/#",))
    return NOTHING


def may_publish(identity: Identity, topic: str) -> bool:
    """True when the identity may publish to the topic, which holds no wildcard."""
    plain = "+" not in topic and "#" not in topic
    return plain and any(_covers(allowed, topic) for allowed in rules(identity).publish)


def may_subscribe(identity: Identity, topic_filter: str) -> bool:
    """True when all that the filter (or topic) matches is the identity's to hear."""
    return any(_covers(allowed, topic_filter) for allowed in rules(identity).subscribe)


def mosquitto_acl(services: Iterable[str]) -> str:
    """The rules as mosquitto's ACL file, for chargers by pattern and for the services by name."""
    lines = ["# Made by `evse-cloud broker-config`. Chargers, by the name in their certificate:"]
    device = rules(Identity("%u", "device"))
    lines += [f"pattern write {topic}" for topic in device.publish]
    lines += [f"pattern read {topic}" for topic in device.subscribe]
    for name in services:
        allowed = rules(Identity(name, "service"))
        if allowed != NOTHING:
            lines += ["", f"user {name}"]
            lines += [f"topic write {topic}" for topic in allowed.publish]
            lines += [f"topic read {topic}" for topic in allowed.subscribe]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class MosquittoPlan:
    """What the configuration of a mosquitto names."""

    out: Path
    bind: str
    port: int
    files: ServiceFiles
    crl: Path
    user: str


def mosquitto_conf(plan: MosquittoPlan) -> str:
    """mosquitto.conf for 2.0: mutual TLS, the certificate's name is the user and the client id, sessions kept on disk.

    Sessions and messages are written within a second of each change; mosquitto acknowledges before, so only the
    application's acknowledgement counts. Raises ConfigError for a path that cannot stand in the file.
    """
    for path in (plan.out, plan.files.certificate, plan.files.key, plan.files.authority, plan.crl):
        if _SPACES_AND_MORE.search(str(path)):
            raise ConfigError(f"{path!s} holds a character that cannot stand in mosquitto.conf: choose another folder")
    return f"""\
# Made by `evse-cloud broker-config` for Debian's mosquitto 2.0. After a revocation: kill -HUP.
user {plan.user}
per_listener_settings false
allow_anonymous false
acl_file {plan.out}/acl
set_tcp_nodelay true

listener {plan.port} {plan.bind}
cafile {plan.files.authority}
certfile {plan.files.certificate}
keyfile {plan.files.key}
crlfile {plan.crl}
require_certificate true
use_identity_as_username true
use_username_as_clientid true
tls_version tlsv1.2
ciphers ECDHE+AESGCM:ECDHE+CHACHA20

persistence true
persistence_location {plan.out}/data/
autosave_on_changes true
autosave_interval 1
persistent_client_expiration 14d
max_queued_messages 100000
max_inflight_messages 100
max_packet_size {PACKET_LIMIT_BYTES}

log_dest stderr
log_type error
log_type warning
log_type notice
log_type information
"""


def _kind(name: str) -> str:
    return re.split(r"[-.]", name, maxsplit=1)[0]


def _pairs(value: object) -> tuple[tuple[object, object], ...]:
    """The tuples inside what `ssl` gives for a name; an empty tuple for any other thing."""
    return tuple(part for part in value if isinstance(part, tuple)) if isinstance(value, tuple) else ()


def _covers(allowed: str, asked: str) -> bool:
    """True when every topic that `asked` matches is matched by `allowed` (MQTT 3.1.1 section 4.7)."""
    want, have = asked.split("/"), allowed.split("/")
    for place, level in enumerate(have):
        if level == "#":
            return True
        if place >= len(want) or want[place] == "#":
            return False
        if level != want[place] and (level != "+" or "#" in want[place]):
            return False
    return len(want) == len(have)
