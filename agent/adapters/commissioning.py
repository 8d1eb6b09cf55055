"""Commissioning: a one-time code buys this device its certificate, over HTTPS pinned to the utility's CA.

The device key is made here and never leaves; only a certificate request does. The token is never logged or stored.
Files are written whole, agent.toml last, so an attempt that broke off is simply made again with the same code and key.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import ssl
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from agent.adapters.keys import KeyFileError, KeyFolder, load_key, make_key, parse_public, write_file
from agent.config import AgentConfig
from esci.ids import DeviceId, PremisesId
from esci.reasons import sentence
from esci.seal import SealError, key_id, load

ANSWER_LIMIT: Final = 131_072
PATIENCE_S: Final = 10.0
_CODE: Final = re.compile(r"(https://[^#\s]{1,200})#([A-Za-z0-9_-]{1,64})#([0-9a-fA-F]{64})")
Pem = Annotated[str, StringConstraints(min_length=1, max_length=32_768)]


class CommissionError(Exception):
    """The device was not commissioned; the text says why and what to do."""


class CodeError(CommissionError):
    """The commissioning code is not one."""


class UnreachableError(CommissionError):
    """The utility did not answer."""


class UntrustedError(CommissionError):
    """Whoever answered is not the utility of the code."""


class EnrolmentRefusedError(CommissionError):
    """The utility said no; `reason` is its code (`esci.reasons`)."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"the utility refused ({reason}): {text} Ask it for a new code if that does not help.")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Code:
    """What a commissioning code says. The token is a secret: it has no part in repr."""

    url: str
    token: str
    ca_sha256: str

    def __repr__(self) -> str:
        return f"Code(url={self.url!r})"

    @classmethod
    def parse(cls, text: str) -> "Code":
        """The code in a text `https://HOST:PORT#TOKEN#CAHASH`. Raises CodeError, which does not repeat the text."""
        found = _CODE.fullmatch(text.strip())
        if found is None:
            raise CodeError("that is not a commissioning code such as https://utility.example:8443#TOKEN#HASH:"
                            " copy it whole, as the utility showed it")
        url = found[1].rstrip("/")
        try:
            parts = urlsplit(url)
            if not parts.hostname or parts.port == 0 or parts.username is not None or parts.query:
                raise ValueError
        except ValueError as error:
            raise CodeError(f"the code's address {url} cannot be used: copy the code whole") from error
        return cls(url, found[2], found[3].lower())


@dataclass(frozen=True, slots=True)
class Answers:
    """What the installer answers. `meter_unit_id` is the Modbus unit."""

    circuit_max_ma: int
    meter_model: str
    meter_port: str
    board_port: str
    phases: int = 1
    meter_unit_id: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """Who this device now is, and the broker that it will speak to."""

    device: str
    premises: str
    host: str
    port: int


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BrokerAddress(_Wire):
    """Where the broker is."""

    host: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    port: Annotated[int, Field(ge=1, le=65535)]


class Enrolled(_Wire):
    """The utility's answer."""

    device_id: DeviceId
    premises: PremisesId
    certificate_pem: Pem
    utility_ca_pem: Pem
    pev_ca_pem: Pem
    utility_seal_public_pem: Pem
    broker: BrokerAddress


def commission(code_text: str, answers: Answers, state_dir: Path, config_path: Path, device: str = "") -> Outcome:
    """Who this device now is. Its agent.toml is at config_path, its key files are in state_dir/keys.

    `device`: the wished name; "": the utility chooses. Raises CommissionError and its kinds; the device is then as it
    was, but for a fresh key.
    """
    code = Code.parse(code_text)
    if config_path.exists():
        raise CommissionError(f"{config_path} is there already: move it away first to commission this device anew")
    trial = BrokerAddress(host="trial", port=1)  # wrong answers must not cost the token
    _config_text(answers, state_dir, device or "trial", "trial", trial)
    folder = KeyFolder.of(state_dir)
    try:
        if not folder.tls.key.exists():
            make_key(folder.tls.key)
        enrolled = enrol(code, load_key(folder.tls.key), device or None)
        _write_keys(folder, enrolled)
        text = _config_text(answers, state_dir, enrolled.device_id, enrolled.premises, enrolled.broker)
        _give_to_owner(state_dir, folder)
        write_file(config_path, text.encode(), 0o644)
    except KeyFileError as error:
        raise CommissionError(str(error)) from error
    return Outcome(enrolled.device_id, enrolled.premises, enrolled.broker.host, enrolled.broker.port)


def enrol(code: Code, key: ec.EllipticCurvePrivateKey, device_id: str | None) -> Enrolled:
    """The utility's answer for this key, checked against code and key. Raises CommissionError and its kinds."""
    ca = fetch_ca(code)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca.public_bytes(serialization.Encoding.PEM).decode())
    asked = {"token": code.token, "csr_pem": _request_pem(key, device_id)}
    if device_id is not None:
        asked["device_id"] = device_id
    status, answer = _exchange(code.url, "POST", "/v1/devices/enrol", context, json.dumps(asked).encode())
    if status != 200:
        raise _refusal(code.url, status, answer)
    try:
        load(answer)  # refuses doubled members and floats
        enrolled = Enrolled.model_validate_json(answer)
    except (SealError, ValidationError) as error:
        raise UntrustedError(f"{code.url} answered in another form than agreed: its software may be of another version:"
                             " tell the utility") from error
    _check_answer(code, key, enrolled)
    return enrolled


def fetch_ca(code: Code) -> x509.Certificate:
    """The CA certificate whose SHA-256 stands in the code. Raises UnreachableError and UntrustedError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the hash in the code is what proves the answer, not the connection
    status, answer = _exchange(code.url, "GET", "/v1/ca", context)
    if status != 200:
        raise UntrustedError(f"{code.url} has no /v1/ca (status {status}): check that the code is the utility's")
    try:
        ca = x509.load_pem_x509_certificate(answer)
    except ValueError as error:
        raise UntrustedError(f"{code.url}/v1/ca is not a certificate: check that the code is the utility's") from error
    if _fingerprint(ca) != code.ca_sha256:
        raise UntrustedError(f"{code.url} shows another authority than the code names: someone may be in between,"
                             " or the code is old: ask the utility for a new one")
    return ca


def _exchange(
    url: str, method: str, path: str, context: ssl.SSLContext, body: bytes | None = None
) -> tuple[int, bytes]:
    """Status and bounded body of one request. Raises UnreachableError and UntrustedError."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPSConnection(parts.hostname, parts.port, context=context, timeout=PATIENCE_S)
    try:
        headers = {"Accept": "*/*", "Connection": "close"} | ({"Content-Type": "application/json"} if body else {})
        connection.request(method, parts.path + path, body, headers)
        response = connection.getresponse()
        answer = response.read(ANSWER_LIMIT + 1)
    except ssl.SSLCertVerificationError as error:
        raise UntrustedError(f"{url} is not certified by the authority in the code ({error.verify_message}):"
                             " check address and code with the utility") from error
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        raise UnreachableError(f"{url} cannot be reached ({error or type(error).__name__}): look at the network and"
                               " try again with the same code") from error
    finally:
        connection.close()
    if len(answer) > ANSWER_LIMIT:
        raise UntrustedError(f"{url}{path} answered with more than {ANSWER_LIMIT} bytes: check that the code is"
                             " the utility's")
    return response.status, answer


def _refusal(url: str, status: int, answer: bytes) -> CommissionError:
    """What a status other than 200 means; its text is shown only in printable ASCII and shortened."""
    try:
        body = load(answer)
    except SealError:
        body = {}
    reason, text = _printable(body.get("reason")), _printable(body.get("sentence"))
    if status >= 500:
        return UnreachableError(f"{url} cannot serve now (status {status}{', ' + text if text else ''}): try again"
                                " later with the same code")
    return EnrolmentRefusedError(reason or f"status {status}", text or sentence(reason or "malformed"))


def _printable(value: object) -> str:
    return re.sub(r"[^ -~]", "?", value)[:200] if isinstance(value, str) else ""


def _request_pem(key: ec.EllipticCurvePrivateKey, device_id: str | None) -> str:
    """The certificate request; the utility takes the key from it and gives the name itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id or "device")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def _check_answer(code: Code, key: ec.EllipticCurvePrivateKey, enrolled: Enrolled) -> None:
    """Nothing of the answer is kept unless it fits the code and our key. Raises UntrustedError and KeyFileError."""
    try:
        certificate = x509.load_pem_x509_certificate(enrolled.certificate_pem.encode())
        utility = x509.load_pem_x509_certificate(enrolled.utility_ca_pem.encode())
        x509.load_pem_x509_certificate(enrolled.pev_ca_pem.encode())
    except ValueError as error:
        raise UntrustedError(f"{code.url} sent a certificate that is none: tell the utility") from error
    parse_public(enrolled.utility_seal_public_pem.encode(), f"the seal key from {code.url}")
    public = certificate.public_key()
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if not isinstance(public, ec.EllipticCurvePublicKey) or key_id(public) != key_id(key.public_key()):
        raise UntrustedError(f"{code.url} sent a certificate for another key than ours: tell the utility")
    if [name.value for name in names] != [enrolled.device_id]:
        raise UntrustedError(f"{code.url} sent a certificate for another device than {enrolled.device_id}: tell the"
                             " utility")
    if _fingerprint(utility) != code.ca_sha256:
        raise UntrustedError(f"{code.url} sent another authority than the code names: ask the utility for a new code")


def _fingerprint(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def _write_keys(folder: KeyFolder, enrolled: Enrolled) -> None:
    write_file(folder.tls.ca, enrolled.utility_ca_pem.encode(), 0o644)
    write_file(folder.pev_ca, enrolled.pev_ca_pem.encode(), 0o644)
    write_file(folder.utility_seal, enrolled.utility_seal_public_pem.encode(), 0o644)
    write_file(folder.tls.cert, enrolled.certificate_pem.encode(), 0o644)


def _give_to_owner(state_dir: Path, folder: KeyFolder) -> None:
    """The agent's user owns the state directory; what root wrote in it becomes that user's too."""
    if os.geteuid() != 0:
        return
    owner = state_dir.stat()
    files = (folder.tls.key, folder.tls.cert, folder.tls.ca, folder.pev_ca, folder.utility_seal)
    with contextlib.suppress(OSError):  # a disk that knows no owners lets everybody read already
        for path in (folder.folder, *files):
            os.chown(path, owner.st_uid, owner.st_gid)


def _config_text(answers: Answers, state_dir: Path, device: str, premises: str, broker: BrokerAddress) -> str:
    """The text of agent.toml. Raises CommissionError with one sentence for each wrong answer."""
    sections: dict[str, dict[str, str | int]] = {
        "": {"device": device, "premises": premises, "state_dir": str(state_dir)},
        "station": {"circuit_max_ma": answers.circuit_max_ma, "phases": answers.phases},
        "meter": {"model": answers.meter_model, "port": answers.meter_port, "unit_id": answers.meter_unit_id},
        "board": {"port": answers.board_port},
        "uplink": {"host": broker.host, "port": broker.port},
    }
    lines = ["# Written by `evse-agent commission`. `evse-agent check` shows what is in force.", ""]
    for name, values in sections.items():
        lines += [f"[{name}]"] if name else []
        lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
        lines.append("")
    text = "\n".join(lines)
    try:
        AgentConfig.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise CommissionError(f"an answer cannot be written to agent.toml ({error}): use plain letters") from error
    except ValidationError as error:
        wrong: list[Any] = error.errors(include_url=False)
        raise CommissionError("; ".join(
            f"{'.'.join(map(str, found['loc']))} cannot be {found['input']!r}: {found['msg'].lower()}"
            for found in wrong)) from error
    return text


def _toml(value: str | int) -> str:
    """A TOML integer or basic string; JSON's escapes are a part of TOML's."""
    return str(value) if isinstance(value, int) else json.dumps(value)
