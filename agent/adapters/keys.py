"""The device's keys and certificates as files, and a Signer over them (P1-S1.7, P1-S1.10).

A private key is made here, never leaves the device and is never logged. Must not talk to the network.
"""

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from esci.seal import KeySigner

DEVICE_KEY = "device.key"
DEVICE_CERT = "device.crt"
UTILITY_CA = "utility-ca.crt"
PEV_CA = "pev-ca.crt"
UTILITY_SEAL = "utility-seal.pub"
FILE_LIMIT = 65_536


class KeyFileError(Exception):
    """A key or certificate file cannot be used; the text says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What one end of a TLS connection shows (key, cert) and trusts (ca), as PEM files."""

    key: Path
    cert: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """The folder `keys` of the state directory and the names in it."""

    folder: Path

    @classmethod
    def of(cls, state_dir: str | Path) -> "KeyFolder":
        """The key folder of a state directory."""
        return cls(Path(state_dir) / "keys")

    @property
    def tls(self) -> TlsFiles:
        """Device key and certificate, and the utility's CA."""
        return TlsFiles(self.folder / DEVICE_KEY, self.folder / DEVICE_CERT, self.folder / UTILITY_CA)

    @property
    def pev_ca(self) -> Path:
        """The CA of the vehicles' certificates."""
        return self.folder / PEV_CA

    @property
    def utility_seal(self) -> Path:
        """The public key of the utility's seals."""
        return self.folder / UTILITY_SEAL


def make_key(path: Path) -> KeySigner:
    """The Signer over a new P-256 key, stored at `path` for its owner only. Raises KeyFileError if one is there."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    if path.exists():
        raise KeyFileError(f"{path}: a key is there already: move it away first if it is really to be replaced")
    write_file(path, pem, 0o600)
    return KeySigner(key)


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The P-256 key in a PEM file that only its owner can read. Raises KeyFileError."""
    data, mode = _read(path)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyFileError(f"{path}: others than its owner can open this key (mode {mode & 0o777:03o}):"
                           f" run `chmod 600 {path}`, and commission again if strangers had access")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path}: not a private key in PEM without password: commission again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeyFileError(f"{path}: not a P-256 key: commission again")
    return key


def load_signer(path: Path) -> KeySigner:
    """The Signer over a key file. Raises KeyFileError as `load_key`."""
    return KeySigner(load_key(path))


def load_public(path: Path) -> ec.EllipticCurvePublicKey:
    """The P-256 public key in a PEM file. Raises KeyFileError."""
    data, _ = _read(path)
    return parse_public(data, str(path))


def parse_public(pem: bytes, where: str) -> ec.EllipticCurvePublicKey:
    """The P-256 public key in a PEM text that came from `where`. Raises KeyFileError."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{where}: not a public key in PEM: commission again") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeyFileError(f"{where}: not a P-256 key: commission again")
    return key


def write_file(path: Path, data: bytes, mode: int) -> None:
    """The file holds exactly `data` with `mode`, also after a power loss: the old or the new content, never a part.

    Makes the folder (0700) when it is missing. Raises KeyFileError.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(data)
            file.flush()
            os.fsync(handle)
        fresh.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}: run this as root") from error


def _read(path: Path) -> tuple[bytes, int]:
    """Content and mode, from one open file so that they belong together."""
    try:
        with path.open("rb") as file:
            return file.read(FILE_LIMIT), os.fstat(file.fileno()).st_mode
    except FileNotFoundError as error:
        raise KeyFileError(f"{path}: no such file: run `evse-agent commission`") from error
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}: run this as the agent's user") from error
