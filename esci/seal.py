"""Seals: an ES256 signature over the canonical form of a message's body (RFC 8785; RFC 7518 section 3.4 for ES256).

Bodies hold objects, arrays, text, booleans, null and integers of at most 53 bits: canonical form needs no number rules.
Keys are used through a Signer; this module knows no file (P1-S1.10, P1-S1.11).
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

_LIMIT = 2**53 - 1
_ES256 = ec.ECDSA(hashes.SHA256())
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


class SealError(Exception):
    """The seal does not fit the body, or one of them is malformed."""


class Signer(Protocol):
    """Holds a P-256 key and signs with it: a file today, a TPM or secure element later."""

    @property
    def kid(self) -> str:
        """First 32 hex digits of the SHA-256 of the public key's SubjectPublicKeyInfo."""

    def sign(self, data: bytes) -> bytes:
        """ECDSA P-256 SHA-256 signature in DER."""


class KeySigner:
    """A Signer over a key in memory."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self._kid = key_id(key.public_key())

    @property
    def kid(self) -> str:
        """See Signer."""
        return self._kid

    def sign(self, data: bytes) -> bytes:
        """See Signer."""
        return self._key.sign(data, _ES256)


def key_id(public: ec.EllipticCurvePublicKey) -> str:
    """The kid of a public key."""
    spki = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()[:32]


def _check(value: object, depth: int = 0) -> None:
    if depth > 16:
        raise SealError("the body is nested too deeply")
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, int):
        if abs(value) > _LIMIT:
            raise SealError(f"{value} does not fit in 53 bits")
    elif isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str) or not name.isascii():
                raise SealError(f"{name!r} is not a member name")
            _check(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item, depth + 1)
    else:
        raise SealError(f"{type(value).__name__} cannot be sealed")


def canonical(body: Mapping[str, object]) -> bytes:
    """The RFC 8785 bytes of a body. Raises SealError for floats, big integers and lone surrogates."""
    found = dict(body)
    _check(found)
    try:
        return _encode(found).encode()
    except UnicodeEncodeError as error:
        raise SealError("the body holds a lone surrogate") from error


def seal(body: Mapping[str, object], signer: Signer) -> bytes:
    """`{"body": ..., "seal": {"alg","kid","sig"}}` as bytes for the wire."""
    return seal_canonical(canonical(body), signer)


def seal_canonical(data: bytes, signer: Signer) -> bytes:
    """As `seal`, for a body that is in canonical form already, as records are in the journal."""
    r, s = decode_dss_signature(signer.sign(data))
    sig = base64.urlsafe_b64encode(r.to_bytes(32, "big") + s.to_bytes(32, "big")).rstrip(b"=").decode()
    head = json.dumps({"alg": "ES256", "kid": signer.kid, "sig": sig}, separators=(",", ":")).encode()
    return b'{"body":' + data + b',"seal":' + head + b"}"


def no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Object hook: a member named twice could be read in two ways. Raises SealError."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise SealError("a member stands twice")
    return found


def _refuse_number(text: str) -> object:
    raise SealError(f"{text[:32]} is not an integer")


def load(payload: bytes, limit: int = 262_144) -> dict[str, object]:
    """The JSON object in a payload. Raises SealError for anything else, floats and doubled members among it."""
    if len(payload) > limit:
        raise SealError(f"{len(payload)} bytes are more than {limit}")
    try:
        found = json.loads(payload, object_pairs_hook=no_duplicates, parse_float=_refuse_number,
                           parse_constant=_refuse_number)
    except (ValueError, RecursionError) as error:
        raise SealError("not JSON") from error
    if not isinstance(found, dict):
        raise SealError("not an object")
    return found


def unseal(payload: bytes, public_for: Callable[[str], ec.EllipticCurvePublicKey | None]) -> dict[str, object]:
    """The body, once its seal is proven. `public_for(kid)` gives the key or None. Raises SealError otherwise."""
    message = load(payload)
    body, head = message.get("body"), message.get("seal")
    if not isinstance(body, dict) or not isinstance(head, dict) or set(message) != {"body", "seal"}:
        raise SealError("not a sealed message")
    kid, alg, sig = head.get("kid"), head.get("alg"), head.get("sig")
    if alg != "ES256" or not isinstance(kid, str) or not isinstance(sig, str):
        raise SealError("not an ES256 seal")
    public = public_for(kid)
    if public is None:
        raise SealError(f"unknown key {kid[:32]}")
    try:
        raw = base64.urlsafe_b64decode(sig.encode() + b"=" * (-len(sig) % 4))
    except (ValueError, UnicodeEncodeError) as error:
        raise SealError("the signature is not base64url") from error
    if len(raw) != 64:
        raise SealError("the signature is not 64 bytes")
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    try:
        public.verify(der, canonical(body), _ES256)
    except InvalidSignature as error:
        raise SealError("the signature does not fit the body") from error
    return body
