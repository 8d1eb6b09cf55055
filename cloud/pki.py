"""The folder `STATE/pki`: two authorities, the utility's seal key and the certificates of its services (P1-S1.7).

The folder is 0700 and every key 0600. Each file is written whole or not at all. Private keys never leave this module
except as an `Authority` or a `Signer`. Certificates are always dated in real time.

    utility-ca   signs chargers, broker, API, gateways, observer     pev-ca       signs vehicles
    utility-seal signs the messages to chargers (ES256)              utility.crl  chargers that were revoked
    services/    key and certificate of each service
"""

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cloud import security
from cloud.errors import ConfigError, InputError
from esci.seal import KeySigner

SERVICE_NAME = re.compile(r"(gateway|observer|broker|api)([-.][A-Za-z0-9_.-]{1,40})?")
SERVERS = ("broker", "api")
UTILITY, PEV = "utility-ca", "pev-ca"
_SEAL = "utility-seal.key"


@dataclass(frozen=True, slots=True)
class ServiceFiles:
    """Where a TLS library finds a service's identity and the authority that it trusts."""

    certificate: Path
    key: Path
    authority: Path


def is_service_name(name: str) -> bool:
    """True for a name that only a service of the utility may bear; a charger may not."""
    return SERVICE_NAME.fullmatch(name) is not None


class Pki:
    """The keys and certificates of one utility."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, hosts: tuple[str, ...], now: datetime) -> list[str]:
        """Make what is missing and renew service certificates past two thirds of their life or with other host names.

        Returns the names of what was made; an empty list when all was there.
        """
        with self._locked():
            made = [name for name, title in ((UTILITY, "Plugbind utility CA"), (PEV, "Plugbind PEV CA"))
                    if self._make_authority(name, title, now)]
            if not (self.folder / _SEAL).exists():
                _write(self.folder / _SEAL, security.key_pem(security.new_key()))
                made.append("utility-seal")
            if not self.crl.exists():
                self._write_crl((), now)
            for name in (*SERVERS, "gateway"):
                if self._stale(name, hosts, now):
                    self._make_service(name, hosts, now)
                    made.append(name)
        return made

    @property
    def utility_ca(self) -> Path:
        """The utility authority's certificate, PEM."""
        return self.folder / f"{UTILITY}.crt"

    @property
    def pev_ca(self) -> Path:
        """The vehicle authority's certificate, PEM."""
        return self.folder / f"{PEV}.crt"

    @property
    def crl(self) -> Path:
        """The utility authority's revocation list, PEM."""
        return self.folder / "utility.crl"

    def utility_ca_sha256(self) -> str:
        """SHA-256 (hex) of the utility authority's certificate in DER: what a commissioning code pins."""
        der = self._certificate(self.utility_ca).public_bytes(serialization.Encoding.DER)
        return hashlib.sha256(der).hexdigest()

    def seal_signer(self) -> KeySigner:
        """The signer of the utility's messages to chargers."""
        return KeySigner(self._key(_SEAL))

    def seal_public_pem(self) -> str:
        """The public part of the seal key, given to each charger at enrolment."""
        return security.public_pem(self._key(_SEAL).public_key())

    def service(self, name: str) -> ServiceFiles:
        """The files of a service that has a certificate. Raises ConfigError when it has none."""
        files = self._service_files(name)
        for path in (files.certificate, files.key, files.authority):
            if not path.is_file():
                raise ConfigError(f"{path} is missing: run `evse-cloud init`, or `evse-cloud certificate` for {name}")
        return files

    def services(self) -> list[str]:
        """Names of the services that have a certificate, sorted."""
        names = [path.stem for path in (self.folder / "services").glob("*.crt")]
        return sorted(name for name in names if is_service_name(name))

    def make_client(self, name: str, now: datetime) -> ServiceFiles:
        """Files of a fresh client certificate for a service. Raises InputError for a name that no client may bear."""
        if not is_service_name(name) or name.partition("-")[0].partition(".")[0] in SERVERS:
            raise InputError(f"{name!r} cannot be a client service: gateway, observer, or one of these with -SUFFIX")
        with self._locked():
            self._make_service(name, (), now)
        return self.service(name)

    def device_certifier(self, now: datetime) -> Callable[[str, ec.EllipticCurvePublicKey], x509.Certificate]:
        """A function that signs a charger's key under an id."""
        authority = self._authority(UTILITY)
        return lambda device_id, public: security.issue(authority, public, security.device_leaf(device_id), now)

    def make_vehicle(self, vin: str, target: Path, now: datetime) -> None:
        """Write `pev.key`, `pev.crt` and `ca.crt` (what the vehicle trusts: the utility's authority) to the folder."""
        key = security.new_key()
        certificate = security.issue(self._authority(PEV), key.public_key(), security.pev_leaf(vin), now)
        export(target, {
            "pev.key": security.key_pem(key),
            "pev.crt": security.certificate_pem(certificate).encode(),
            "ca.crt": _read(self.utility_ca),
        })

    def write_crl(self, serials: Iterable[int], now: datetime) -> None:
        """Replace the revocation list by one with these serials."""
        with self._locked():
            self._write_crl(serials, now)

    def _write_crl(self, serials: Iterable[int], now: datetime) -> None:
        _write(self.crl, security.revocation_list(self._authority(UTILITY), serials, now))

    def _make_authority(self, name: str, title: str, now: datetime) -> bool:
        key, certificate = self.folder / f"{name}.key", self.folder / f"{name}.crt"
        if key.exists() and certificate.exists():
            return False
        if certificate.exists():
            raise ConfigError(f"{key} is missing but {certificate} is there: put it back, or remove both to start anew")
        authority = security.make_authority(title, now)
        _write(key, security.key_pem(authority.key))
        _write(certificate, security.certificate_pem(authority.certificate).encode())
        return True

    def _make_service(self, name: str, hosts: tuple[str, ...], now: datetime) -> None:
        leaf = security.server_leaf(name, hosts) if name in SERVERS else security.client_leaf(name)
        key = security.new_key()
        certificate = security.issue(self._authority(UTILITY), key.public_key(), leaf, now)
        files = self._service_files(name)
        _folder(files.key.parent)
        _write(files.key, security.key_pem(key))
        _write(files.certificate, security.certificate_pem(certificate).encode())

    def _stale(self, name: str, hosts: tuple[str, ...], now: datetime) -> bool:
        files = self._service_files(name)
        if not files.certificate.exists() or not files.key.exists():
            return True
        found = self._certificate(files.certificate)
        life = found.not_valid_after_utc - found.not_valid_before_utc
        if now > found.not_valid_before_utc + life * 2 / 3:
            return True
        if found.public_key() != self._key(f"services/{name}.key").public_key():
            return True  # an interrupted renewal left the new key beside the old certificate
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        present = {*names.get_values_for_type(x509.DNSName),
                   *(str(address) for address in names.get_values_for_type(x509.IPAddress))}
        return name in SERVERS and present != set(hosts)

    def _service_files(self, name: str) -> ServiceFiles:
        if not is_service_name(name):
            raise InputError(f"{name!r} is not a service: gateway, observer, broker or api, with or without -SUFFIX")
        folder = self.folder / "services"
        return ServiceFiles(folder / f"{name}.crt", folder / f"{name}.key", self.utility_ca)

    def _authority(self, name: str) -> security.Authority:
        return security.Authority(self._key(f"{name}.key"), self._certificate(self.folder / f"{name}.crt"))

    def _key(self, name: str) -> ec.EllipticCurvePrivateKey:
        path = self.folder / name
        return security.load_key(_read(path), str(path))

    def _certificate(self, path: Path) -> x509.Certificate:
        try:
            return x509.load_pem_x509_certificate(_read(path))
        except ValueError as error:
            raise ConfigError(f"{path} is not a PEM certificate") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time changes the folder; the lock goes with the process."""
        _folder(self.folder)
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def export(target: Path, files: dict[str, bytes]) -> None:
    """Write files for someone else into a folder, 0600 each. Raises ConfigError when the folder cannot be written."""
    _folder(target)
    for name, data in files.items():
        _write(target / name, data)


def _folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be made: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing: run `evse-cloud init` first") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    """The file holds the data, whole, mode 0600, and stays so after a power loss."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
