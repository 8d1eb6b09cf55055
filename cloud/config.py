"""The configuration of the utility's programs: `cloud.toml` in the state folder, one strict model (STYLE 29).

Must not read a clock. Secrets are never values here: keys are files under `STATE/pki` (`cloud.pki`).
"""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from sqlalchemy import Engine, event
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from cloud.db import BUSY_TIMEOUT_MS, engine_for
from cloud.errors import ConfigError

STATE_VARIABLE = "PLUGBIND_CLOUD_STATE"
STATE_DEFAULT = Path("/var/lib/plugbind-cloud")
FILE_NAME = "cloud.toml"

_HOST = r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?$"
Host = Annotated[str, StringConstraints(pattern=_HOST)]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Section(BaseModel):
    """What every table of the file shares: strict, frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DatabaseSection(_Section):
    """[database] of cloud.toml."""

    url: str = Field(default="", description="SQLAlchemy URL; empty: sqlite file cloud.db in the state folder")
    busy_ms: int = Field(default=BUSY_TIMEOUT_MS, ge=1, le=60_000, description="wait for SQLite's write lock, ms")


class BrokerSection(_Section):
    """[broker] of cloud.toml. `host` is what devices and services connect to, `bind` where the broker listens."""

    host: Host = "localhost"
    port: Port = 8883
    bind: Host = "127.0.0.1"


class ApiSection(_Section):
    """[api] of cloud.toml. `host` is what stands in commissioning codes, `bind` where the API listens."""

    host: Host = "localhost"
    port: Port = 8443
    bind: Host = "127.0.0.1"


class CertificatesSection(_Section):
    """[certificates] of cloud.toml: further host names or addresses of this machine, for broker and API."""

    names: Annotated[list[Host], Field(max_length=32)] = Field(default_factory=list)


class CloudConfig(_Section):
    """Everything that cloud.toml may say, and the folder that it lies in."""

    state: Path
    database: DatabaseSection = Field(default_factory=DatabaseSection)
    broker: BrokerSection = Field(default_factory=BrokerSection)
    api: ApiSection = Field(default_factory=ApiSection)
    certificates: CertificatesSection = Field(default_factory=CertificatesSection)

    @property
    def pki(self) -> Path:
        """The folder of keys and certificates (`cloud.pki.Pki`)."""
        return self.state / "pki"

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database.url or f"sqlite:///{self.state / 'cloud.db'}"

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """Host names and addresses for the certificates of broker and API, without doubles."""
        names = ["localhost", "127.0.0.1", self.broker.host, self.api.host, *self.certificates.names]
        return tuple(dict.fromkeys(names))

    @property
    def api_url(self) -> str:
        """Where a charger enrols."""
        host = f"[{self.api.host}]" if ":" in self.api.host else self.api.host
        return f"https://{host}:{self.api.port}"


def load(state: Path) -> CloudConfig:
    """The configuration of a state folder; the defaults where it has no cloud.toml.

    Raises ConfigError that names the file and the key.
    """
    path = state / FILE_NAME
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        found = {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    if "state" in found:
        raise ConfigError(f"{path}: state: the folder is given by --state or {STATE_VARIABLE}, not in the file")
    try:
        return CloudConfig.model_validate({**found, "state": state.absolute()})
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, as `table.key: what`; the value itself may be a secret and is left out."""
    wrong = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in wrong['loc'])}: {wrong['msg']}"


def open_database(config: CloudConfig) -> Engine:
    """An engine for the configured database. Raises ConfigError when the URL is none; nothing is connected yet."""
    try:
        engine = engine_for(config.database_url)
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        raise ConfigError("database.url is not a usable SQLAlchemy URL: sqlite:///FILE or postgresql+psycopg://...") \
            from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda connection, _record: _set_busy(connection, config.database.busy_ms))
    return engine


def _set_busy(connection: object, busy_ms: int) -> None:
    connection.execute(f"PRAGMA busy_timeout={busy_ms}").close()  # type: ignore[attr-defined]  # a DB-API connection
