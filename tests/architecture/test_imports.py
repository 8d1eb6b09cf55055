"""The import rules of pyproject.toml hold, none that the tree needs is missing, and each can break (STYLE 7)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from architecture.house import PACKAGES, PROJECT, ROOT, SCRIPTS, call, sources

CONTRACTS: list[dict[str, Any]] = PROJECT["tool"]["importlinter"]["contracts"]
ONE_GATEWAY_EACH = ("paho", "pymodbus", "serial", "sqlite3", "sqlite_utils")


def _protected() -> dict[str, list[str]]:
    """Protected module -> who may import it."""
    return {
        module: contract["allowed_importers"]
        for contract in CONTRACTS
        if contract["type"] == "protected"
        for module in contract["protected_modules"]
    }


def test_every_contract_is_kept() -> None:
    done = call(SCRIPTS / "lint-imports", "--no-cache")
    assert done.returncode == 0, done.stdout
    kept = re.search(r"Contracts: (\d+) kept, 0 broken", done.stdout)
    assert kept is not None
    assert int(kept[1]) == len(CONTRACTS)


def test_every_store_of_a_cloud_domain_is_protected() -> None:
    """Rule 6: a domain is entered by its service, so its store has one importer: itself."""
    for store in sorted((ROOT / "cloud").glob("*/store.py")):
        domain = f"cloud.{store.parent.name}"
        assert _protected().get(f"{domain}.store") == [domain], f"{domain}.store needs its contract in pyproject.toml"


def test_each_device_library_has_its_contract() -> None:
    imported = {
        library
        for path in sources("agent")
        for library in ONE_GATEWAY_EACH
        if re.search(rf"^\s*(import|from) {library}\b", path.read_text("utf-8"), re.MULTILINE)
    }
    assert imported <= set(_protected())


def test_every_allowed_importer_exists() -> None:
    """A contract that allows a module which is gone protects less than it says."""
    for importers in _protected().values():
        for importer in importers:
            path = ROOT / importer.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").is_file(), f"{importer} is allowed but not there"


def test_every_core_is_under_the_rule_of_purity() -> None:
    pure = next(contract for contract in CONTRACTS if "pure" in contract["name"])
    for path in sorted((ROOT / "cloud").glob("*/core.py")):
        assert "cloud.**.core" in pure["source_modules"], path
    assert {"esci", "agent.core"} <= set(pure["source_modules"])


VIOLATIONS = [
    ("agent/core/clock.py", "import socket", "4 contract"),
    ("agent/core/clock.py", "import agent.drivers.rapi", "3 agent"),
    ("agent/core/clock.py", "import agent.adapters.journal", "3 agent"),
    ("agent/drivers/rapi.py", "import agent.adapters.journal", "3 agent"),
    ("agent/adapters/journal.py", "import agent.drivers.meter", "3b adapters"),
    ("agent/drivers/meter.py", "import agent.config", "3 agent"),
    ("agent/drivers/meter.py", "import pymodbus", "5b pymodbus"),
    ("agent/adapters/keys.py", "import paho.mqtt.client", "5a paho"),
    ("agent/drivers/rapi.py", "import serial", "5c serial"),
    ("agent/config.py", "import sqlite3", "5d SQLite"),
    ("agent/helpers.py", "", "3 agent"),
    ("esci/units.py", "import time", "4 contract"),
    ("esci/units.py", "import agent.ports", "1 deployables"),
    ("firmware_sim/world.py", "import agent.drivers.rapi", "1 deployables"),
    ("hil/__init__.py", "import agent.config", "2 benches"),
    ("cloud/billing/__init__.py", "import cloud.ledger.store", "6 ledger"),
    ("cloud/rating/core.py", "import cloud.billing", "8 cloud"),
    ("cloud/rating/core.py", "import sqlalchemy", "4 contract"),
    ("cloud/widgets.py", "", "8 cloud"),
]


@pytest.mark.parametrize(("path", "line", "rule"), VIOLATIONS)
def test_a_violation_breaks_the_rule_that_is_meant_for_it(path: str, line: str, rule: str, tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / path).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    done = call(SCRIPTS / "lint-imports", "--no-cache", cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(rf"^{rule}.* BROKEN", done.stdout, re.MULTILINE), done.stdout
