"""Where the project's sources are, for the tests of its architecture. Must not import the project."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("esci", "agent", "cloud", "firmware_sim", "hil")
SCRIPTS = Path(sys.executable).parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def sources(*folders: str) -> list[Path]:
    """Every Python file under these folders of the checkout, and `run` when it is named."""
    found = [ROOT / "run"] if "run" in folders else []
    for folder in folders:
        found += sorted((ROOT / folder).rglob("*.py"))
    return found


def where(path: Path, node: ast.AST | None = None) -> str:
    """`path:line`, as an editor opens it."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text("utf-8")))


def call(
    *argv: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None, input_text: str = "", timeout_s: int = 240
) -> subprocess.CompletedProcess[str]:
    """Output (both streams) and exit code of one program, with the venv's scripts first on its PATH."""
    full = dict(os.environ) if env is None else env
    full["PATH"] = f"{SCRIPTS}{os.pathsep}{full.get('PATH', os.defpath)}"
    return subprocess.run(
        [str(arg) for arg in argv],
        cwd=cwd,
        env=full,
        input=input_text,
        text=True,
        timeout=timeout_s,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
