"""The wheel of a plain install is the edge agent, whole and alone (STYLE 8)."""

from __future__ import annotations

import os
import re
import shutil
import sys
import venv
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest

from architecture.house import PACKAGES, PROJECT, ROOT, call


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


INSTALLED: dict[str, Distribution] = {_key(found.metadata["Name"]): found for found in distributions()}
CLOUD_ONLY = ("fastapi", "uvicorn", "sqlalchemy", "psycopg", "amqtt")


def test_no_dependency_ships_a_package_with_a_name_of_ours() -> None:
    for name, found in INSTALLED.items():
        if name == "plugbind":
            continue
        tops = {file.parts[0] for file in found.files or [] if len(file.parts) > 1}
        assert tops.isdisjoint(PACKAGES), f"{name} ships {tops & set(PACKAGES)}"


def test_the_plain_dependencies_are_the_agents() -> None:
    plain = " ".join(PROJECT["project"]["dependencies"])
    assert [name for name in CLOUD_ONLY if re.search(rf"\b{name}\b", plain)] == []
    assert set(PROJECT["project"]["optional-dependencies"]) == {"cloud", "sim", "hil", "dev"}


def _needs(requirements: list[str]) -> set[str]:
    """The installed distributions that these requirements bring, extras not asked for left out."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        text = waiting.pop()
        name = _key(re.split(r"[\s<>=!~;\[(]", text, maxsplit=1)[0])
        if "extra ==" in text or name in found or name not in INSTALLED:
            continue
        found.add(name)
        waiting += INSTALLED[name].requires or []
    return found


def _link(name: str, site: Path) -> None:
    """Make one installed distribution importable in another environment, and nothing beside it."""
    found = INSTALLED[name]
    for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(found.locate_file(top))))


@pytest.fixture(scope="module")
def plain_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a clean environment with the wheel and exactly its plain dependencies, in the locked versions.

    The wheel is unpacked by pip; the dependencies are linked from this environment, so that no index is asked.
    """
    folder = tmp_path_factory.mktemp("plain")
    uv = shutil.which("uv")
    if uv is not None and call(uv, "--version").returncode == 0:
        built = call(uv, "build", "--wheel", "--out-dir", folder, ROOT)
    else:
        built = call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    assert built.returncode == 0, built.stdout
    (wheel,) = folder.glob("plugbind-*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    installed = call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    assert installed.returncode == 0, installed.stdout
    site = next((folder / "venv" / "lib").glob("python3.*/site-packages"))
    for name in _needs(PROJECT["project"]["dependencies"]):
        _link(name, site)
    return python


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}


def test_a_plain_install_runs_the_agent_from_another_directory(plain_python: Path, tmp_path: Path) -> None:
    done = call(plain_python.parent / "evse-agent", "version", cwd=tmp_path, env=_environment())
    assert done.returncode == 0, done.stdout
    assert PROJECT["project"]["version"] in done.stdout


def test_a_plain_install_has_the_meter_models_and_no_cloud(plain_python: Path, tmp_path: Path) -> None:
    program = """
import importlib.util, importlib.resources
maps = [entry.name for entry in importlib.resources.files("agent.meters").iterdir() if entry.name.endswith(".toml")]
assert maps, "no meter model in the wheel"
for name in ("agent", "cloud", "esci", "firmware_sim", "hil"):
    assert "site-packages" in importlib.util.find_spec(name).origin, name
for name in {extras!r}:
    assert importlib.util.find_spec(name) is None, name
assert importlib.util.find_spec("tests") is None
"""
    done = call(plain_python, "-c", program.format(extras=(*CLOUD_ONLY, "pytest")), cwd=tmp_path, env=_environment())
    assert done.returncode == 0, done.stdout
