"""Sizes that keep a thing readable in one look (STYLE 8), one outermost `except` a process (STYLE 20), no odd rooms."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from architecture.house import PACKAGES, ROOT, nodes, sources, where

LONGEST_FUNCTION_LINES = 70
LONGEST_MODULE_LINES = 500
NO_ROOMS = {"utils", "util", "common", "helpers", "helper", "base", "manager", "data", "info", "misc"}
EVERYTHING = sources(*PACKAGES, "tests", "run")


def test_no_function_is_longer_than_70_lines() -> None:
    long = [
        f"{where(path, node)} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in EVERYTHING
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= LONGEST_FUNCTION_LINES
    ]
    assert long == []


def test_no_module_is_longer_than_500_lines() -> None:
    lengths = {where(path): len(path.read_text("utf-8").splitlines()) for path in EVERYTHING}
    assert {place: lines for place, lines in lengths.items() if lines > LONGEST_MODULE_LINES} == {}


def test_every_module_opens_with_its_job() -> None:
    texts = {path: path.read_text("utf-8") for path in EVERYTHING}
    silent = [path for path, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert [where(path) for path in silent] == []


def _is_broad(node: ast.AST) -> bool:
    """A handler that swallows everything; one that ends in a bare `raise` only tidies up."""
    if not isinstance(node, ast.ExceptHandler):
        return False
    last = node.body[-1]
    if isinstance(last, ast.Raise) and last.exc is None:
        return False
    named = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(
        name is None or (isinstance(name, ast.Name) and name.id in ("Exception", "BaseException")) for name in named
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_a_process_has_at_most_one_broad_except(package: str) -> None:
    """The cloud is several processes (api, gateway, broker, jobs): one in each module that is a process."""
    found = [(path, where(path, node)) for path in sources(package) for node in nodes(path) if _is_broad(node)]
    if package == "cloud":
        files = [path.name for path, _ in found]
        assert len(files) == len(set(files)), found
        assert set(files) <= {"main.py", "gateway.py", "broker.py", "jobs.py", "cli.py"}, found
    else:
        assert len(found) <= (0 if package == "esci" else 1), found


def test_no_room_is_called_utils() -> None:
    names = {path: set(path.relative_to(ROOT).with_suffix("").parts) for path in sources(*PACKAGES)}
    assert [where(path) for path, parts in names.items() if parts & NO_ROOMS] == []


def test_a_test_file_has_a_name_of_its_own() -> None:
    seen: dict[str, Path] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert path.name not in seen, f"{where(path)} and {where(seen[path.name])}"
        seen[path.name] = path
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_no_unfinished_words() -> None:
    words = re.compile(r"#.*\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3]) + r")\b")
    comments = {path: path.read_text("utf-8").splitlines() for path in EVERYTHING}
    assert [f"{where(path)}: {line}" for path, lines in comments.items() for line in lines if words.search(line)] == []
    unmade = [where(path) for path in sources(*PACKAGES) if "NotImplementedError" in path.read_text("utf-8")]
    assert unmade == []
