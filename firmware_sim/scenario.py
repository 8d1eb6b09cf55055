"""Scenario files: what stands in the simulated world and what happens in it, checked before anything starts.

The border is strict: unknown keys, wrong types and impossible values are refused with one sentence. No I/O but reading
the file.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from firmware_sim.faults import DEEDS

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
MilliAmps = Annotated[int, Field(ge=6000, le=80_000)]
PortNumber = Annotated[int, Field(ge=0, le=65535)]


class ScenarioError(ValueError):
    """The scenario cannot be used; the text is a sentence for the person who wrote it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WorldPart(_Strict):
    """`[world]`. The seed is overruled by --seed."""

    seed: int = 1


class BoardPart(_Strict):
    """`[board]`. What a person would have set on a new board."""

    stored_max_a: Annotated[int, Field(ge=6, le=32)] = 32
    powered: bool = True


class MeterPart(_Strict):
    """`[meter]`. `link = "tcp"` serves Modbus TCP instead of a pseudo-terminal."""

    register_start_kwh: Annotated[float, Field(ge=0, lt=100_000_000)] = 0.0
    link: Literal["pty", "tcp"] = "pty"
    port: PortNumber = 0
    map: str | None = None
    serial_number: Annotated[int, Field(ge=0, le=0xFFFFFFFF)] = 19_630_001


class VehiclePart(_Strict):
    """`[[vehicle]]`. Paths are relative to the state directory; without `pevlink` it never calls."""

    name: Name
    vin: Annotated[str, Field(pattern=r"^[A-HJ-NPR-Z0-9]{17}$")]
    capacity_wh: Annotated[int, Field(ge=1000, le=1_000_000)]
    soc_percent: Annotated[int, Field(ge=0, le=100)] = 50
    phases: Literal[1, 3] = 1
    max_current_ma: MilliAmps = 32_000
    cert: str | None = None
    key: str | None = None
    ca: str | None = None
    pevlink: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+:[0-9]{1,5}$")] | None = None
    params_file: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> "VehiclePart":
        if self.pevlink is not None and None in (self.cert, self.key, self.ca):
            raise ValueError(f"vehicle {self.name} has pevlink but not all of cert, key and ca")
        return self


class EventPart(BaseModel):
    """`[[event]]`. Further keys are the deed's arguments; the deed itself checks them."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    at_s: Annotated[int, Field(ge=0)]
    do: str

    @field_validator("do")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in DEEDS:
            raise ValueError(f"unknown deed {name!r}; known are {', '.join(sorted(DEEDS))}")
        return name

    @property
    def arguments(self) -> dict[str, object]:
        """The deed's arguments."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _arguments_known(self) -> "EventPart":
        unknown = sorted(set(self.model_extra or {}) - {"vehicle", "percent", "on", "wh", "fault", "celsius"})
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}")
        return self


class Scenario(_Strict):
    """A whole scenario."""

    world: WorldPart = WorldPart()
    board: BoardPart = BoardPart()
    meter: MeterPart = MeterPart()
    vehicle: tuple[VehiclePart, ...] = ()
    event: tuple[EventPart, ...] = ()

    @model_validator(mode="after")
    def _names(self) -> "Scenario":
        names = [part.name for part in self.vehicle]
        if len(set(names)) != len(names):
            raise ValueError("two vehicles have the same name")
        for part in self.event:
            wanted = part.arguments.get("vehicle")
            if wanted is not None and wanted not in names:
                raise ValueError(f"the event at {part.at_s} s names vehicle {wanted!r}, which is not there")
        return self


def read_scenario(path: Path) -> Scenario:
    """The scenario in the file. Raises ScenarioError with a sentence."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"Scenario {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"Scenario {path} is not TOML: {error}.") from error
    for key in ("vehicle", "event"):
        if isinstance(raw.get(key), list):
            raw[key] = tuple(raw[key])
    try:
        return Scenario.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ScenarioError(f"Scenario {path}: {where}: {first['msg']}. Correct it and start again.") from error
