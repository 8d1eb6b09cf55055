"""The agent's configuration: one strict model of /etc/plugbind/agent.toml. Unknown keys are refused.

Units are in the names. Secrets are paths, never values.
"""

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ConfigError(Exception):
    """The configuration cannot be used; the text says what, where and what to do."""


class Section(BaseModel):
    """What every section shares."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StationConfig(Section):
    """[station]"""

    circuit_max_ma: int = Field(ge=6_000, le=80_000, description="what the circuit's breaker allows continuously, mA")
    phases: Literal[1, 3] = Field(default=1, description="phases of the circuit")
    binding_wait_s: int = Field(default=60, ge=0, le=3600, description="wait for a binding until the utility's word, s")
    charge_without_binding: bool = Field(default=True, description="until the utility's word (P1-F10)")
    interval_s: Literal[60, 300, 900, 1800, 3600] = Field(default=900, description="until the utility's word, s")


_METER_PORT = r"^(/[^\s]+|[A-Za-z0-9._-]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5})$"


class MeterConfig(Section):
    """[meter]"""

    model: str = Field(pattern=r"^[a-z0-9_]{1,40}$", description="file name in agent/meters, without .toml")
    port: str = Field(pattern=_METER_PORT, description="serial device /dev/..., or host:port for Modbus TCP")
    unit_id: int = Field(default=1, ge=1, le=247, description="Modbus unit")
    poll_ms: int = Field(default=1000, ge=50, le=3_600_000, description="world time between polls, ms")
    baud: Literal[1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200] | None = Field(
        default=None, description="line speed; none: as the model's file says")


class BoardConfig(Section):
    """[board]"""

    kind: Literal["openevse"] = "openevse"
    port: str = Field(min_length=1, description="serial device")
    poll_ms: int = Field(default=1000, ge=50, le=3_600_000, description="world time between polls, ms")
    heartbeat_s: int = Field(default=20, ge=5, le=60, description="board falls back when silent longer; world time, s")
    fallback_ma: int = Field(default=6_000, ge=6_000, le=80_000, description="pilot current of that fallback, mA")


class UplinkConfig(Section):
    """[uplink]"""

    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    keepalive_s: int = Field(default=30, ge=5, le=600, description="real time, s")
    retry_s: int = Field(default=10, ge=1, le=3600, description="wait before a message is sent again; world time, s")


class PevLinkConfig(Section):
    """[pevlink]"""

    host: str = "0.0.0.0"
    port: int = Field(default=7443, ge=0, le=65535, description="0 takes a free port")


class AgentConfig(Section):
    """agent.toml as a whole."""

    device: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    premises: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    state_dir: str = Field(default="/var/lib/plugbind", description="journal, keys, status socket")
    station: StationConfig
    meter: MeterConfig
    board: BoardConfig
    uplink: UplinkConfig
    pevlink: PevLinkConfig = PevLinkConfig()


def load(path: Path) -> AgentConfig:
    """The configuration in a file. Raises ConfigError with one sentence for each thing that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file: run `evse-agent commission` or name another with --config") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        return AgentConfig.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(path, problem) for problem in error.errors())) from error


def _sentence(path: Path, problem: object) -> str:
    assert isinstance(problem, dict)
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown key {where}: remove it or mend its spelling"
    if problem["type"] == "missing":
        return f"{path}: {where} is missing: add it"
    return f"{path}: {where} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
