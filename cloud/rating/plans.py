"""Loads the tariff plans that come with the package, `plans/*.toml`, and refuses a bad one at start (P1-S1.3).

It must not rate or choose. A new plan or version is one more TOML file, its source cited in a comment.
"""

import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from types import MappingProxyType

from esci.tariff import TariffDocument, parse


def load_plans() -> Mapping[tuple[str, str], TariffDocument]:
    """Every packaged plan by (code, version). Raises ValueError that names the file and what to correct."""
    folder = files("cloud.rating") / "plans"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return read_plans((name, (folder / name).read_text(encoding="utf-8")) for name in names)


def read_plans(texts: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], TariffDocument]:
    """The plans of (file name, TOML text) pairs by (code, version). Raises ValueError as `load_plans` does."""
    plans: dict[tuple[str, str], TariffDocument] = {}
    for name, text in texts:
        try:
            document = TariffDocument.model_validate(tomllib.loads(text))
            parse(document)
        except ValueError as error:  # also what tomllib and pydantic raise
            raise ValueError(f"plan {name}: {error}") from error
        key = (document.code, document.version)
        if key in plans:
            raise ValueError(f"plan {name}: {key[0]} version {key[1]} is in another file too; give it a new version")
        plans[key] = document
    return MappingProxyType(plans)
