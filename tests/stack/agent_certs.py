"""Certificates for tests of the agent's links: two authorities, and whatever they sign. Made anew for each test run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.adapters.keys import TlsFiles

DAY = timedelta(days=1)
NOW = datetime.now(UTC)
LOCAL = (x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1")))


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA with its files in a folder."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    cert: x509.Certificate

    @classmethod
    def make(cls, folder: Path, name: str) -> Authority:
        """A new self-signed CA; its certificate is `name`.crt."""
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        cert = (
            x509.CertificateBuilder().subject_name(_name(name)).issuer_name(_name(name)).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(NOW - DAY).not_valid_after(NOW + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )  # fmt: skip
        made = cls(folder, key, cert)
        made.file.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        return made

    @property
    def file(self) -> Path:
        """The CA's certificate."""
        name = self.cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        return self.folder / f"{name!s}.crt"

    def issue(
        self, name: str, *alternatives: x509.GeneralName, expired: bool = False, ca: Path | None = None
    ) -> TlsFiles:
        """Key and certificate of `name`, beside the CA that its owner trusts (default: this one)."""
        key = ec.generate_private_key(ec.SECP256R1())
        begin, end = (NOW - 3 * DAY, NOW - 2 * DAY) if expired else (NOW - DAY, NOW + DAY)
        builder = (
            x509.CertificateBuilder().subject_name(_name(name)).issuer_name(self.cert.subject)
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(begin).not_valid_after(end)
        )  # fmt: skip
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        stem = f"{name}{'-expired' if expired else ''}"
        files = TlsFiles(self.folder / f"{stem}.key", self.folder / f"{stem}.pem", self.file if ca is None else ca)
        files.key.write_bytes(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        files.key.chmod(0o600)
        files.cert.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return files

    def revoke(self, files: TlsFiles) -> bytes:
        """A CRL (PEM) with that one certificate."""
        serial = x509.load_pem_x509_certificate(files.cert.read_bytes()).serial_number
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW).build()
        crl = (
            x509.CertificateRevocationListBuilder().issuer_name(self.cert.subject).last_update(NOW - DAY)
            .next_update(NOW + DAY).add_revoked_certificate(revoked).sign(self.key, hashes.SHA256())
        )  # fmt: skip
        return crl.public_bytes(serialization.Encoding.PEM)
