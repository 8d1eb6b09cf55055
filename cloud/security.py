"""Certificates of the utility: P-256 authorities, leaves, requests and revocation lists, in memory (P1-S1.7, P1-S1.9).

No file and no clock here: `cloud.pki` keeps the files and the callers give the time, which is always real time,
because the other end of a TLS connection looks at its own real clock.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud.errors import ConfigError, InputError
from esci.pevlink import DEVICE_URI, PEV_URI, SERVICE_URI

DEVICE_DAYS = 90
SERVICE_DAYS = 365
PEV_DAYS = 1095
AUTHORITY_DAYS = 3650
CSR_LIMIT = 8192
_BACKDATE = timedelta(minutes=5)  # a charger without a battery clock may be a little behind
_CLIENT, _SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # TLS 1.2, AEAD only; all suites of TLS 1.3 are


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority: its key and its own certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a certificate shall say."""

    name: str
    uri: str
    usages: tuple[x509.ObjectIdentifier, ...]
    days: int
    hosts: tuple[str, ...] = ()


def device_leaf(device_id: str) -> Leaf:
    """A charger: client of the broker, server of the PEV link."""
    return Leaf(device_id, DEVICE_URI + device_id, (_CLIENT, _SERVER), DEVICE_DAYS)


def pev_leaf(vin: str) -> Leaf:
    """A vehicle: client of the PEV link."""
    return Leaf(vin, PEV_URI + vin, (_CLIENT,), PEV_DAYS)


def server_leaf(name: str, hosts: tuple[str, ...]) -> Leaf:
    """A service that is connected to: broker, API."""
    return Leaf(name, SERVICE_URI + name, (_SERVER,), SERVICE_DAYS, hosts)


def client_leaf(name: str) -> Leaf:
    """A service that connects to the broker: gateway, observer."""
    return Leaf(name, SERVICE_URI + name, (_CLIENT,), SERVICE_DAYS)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private key as PKCS#8 PEM, not encrypted: whoever writes it sees to the file's mode."""
    pkcs8, open_text = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, pkcs8, open_text)


def public_pem(public: ec.EllipticCurvePublicKey) -> str:
    """The public key as SubjectPublicKeyInfo PEM."""
    return public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def certificate_pem(certificate: x509.Certificate) -> str:
    """The certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def load_key(data: bytes, where: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 private key in a PEM. Raises ConfigError that names `where`."""
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{where} is not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"{where} is not a P-256 key")
    return key


def make_authority(name: str, now: datetime) -> Authority:
    """A new root that may sign leaves and revocation lists, and no further authority."""
    key = new_key()
    subject = _name(name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return Authority(key, builder.sign(key, hashes.SHA256()))


def issue(authority: Authority, public: ec.EllipticCurvePublicKey, leaf: Leaf, now: datetime) -> x509.Certificate:
    """A certificate for the key that says what the leaf says, valid from five minutes before `now` (real time)."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(leaf.uri)]
    names += [_general_name(host) for host in leaf.hosts]
    issuer_ski = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(leaf.name))
        .issuer_name(authority.certificate.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=leaf.days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(leaf.usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_ski), critical=False)
    )
    return builder.sign(authority.key, hashes.SHA256())


def revocation_list(authority: Authority, serials: Iterable[int], now: datetime) -> bytes:
    """The revocation list as PEM. It is a local file, rewritten at each change, so it lasts as long as its issuer."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - _BACKDATE)
        .next_update(authority.certificate.not_valid_after_utc)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
    )
    for serial in sorted(serials):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def read_csr(pem: str) -> ec.EllipticCurvePublicKey:
    """The public key that a certificate request proves to hold; whatever name it asks for is ignored.

    Raises InputError when it is not one PKCS#10 request with a P-256 key and a signature that fits.
    """
    if len(pem) > CSR_LIMIT:
        raise InputError(f"the certificate request has more than {CSR_LIMIT} characters")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        public = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise InputError("the certificate request is not PKCS#10 in PEM with a P-256 key") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise InputError("the certificate request's key is not P-256")
    if not proven:
        raise InputError("the certificate request's signature does not fit its key")
    return public


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=authority, crl_sign=authority, encipher_only=False, decipher_only=False,
    )
