"""`./run trace` and the rules of tests/conftest.py: each is run on a small project of its own, by the real pytest."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import requirement_trace
from architecture.house import ROOT, call

OUTCOMES = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from(requirement_trace.WORST_FIRST))

GOOD = """
import pytest

@pytest.mark.req("P1-B1")
def test_passes(): pass

@pytest.mark.req("P1-B4")
@pytest.mark.parametrize("n", [1, 2])
def test_fails_once(n): assert n == 1

@pytest.mark.req("P1-B5", "P1-B6")
def test_skips(): pytest.skip("mosquitto is missing")

@pytest.mark.req("P1-B7")
def test_excused(): pytest.skip("shared data absent: set PLUGBIND_SHARED")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout of this project's test rules alone, with one test file."""
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "requirement_trace.py", "spec_ids.txt"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests" / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    (tmp_path / "tests" / "test_good.py").write_text(GOOD)
    return tmp_path


def _environment(**more: str) -> dict[str, str]:
    ours = ("CI", "PLUGBIND_", "PYTEST_", "HYPOTHESIS_")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)} | more


def _trace(project: Path, *args: str, **more: str) -> tuple[int, str]:
    done = call(sys.executable, "tests/requirement_trace.py", *args, cwd=project, env=_environment(**more))
    return done.returncode, done.stdout


def test_the_table_says_proven_failed_or_untested(project: Path) -> None:
    code, output = _trace(project, "--json")
    assert code == 1
    table = {row["id"]: row for row in json.loads(output[output.index("[\n") :])}
    assert set(table) == set(requirement_trace.known_ids())
    assert table["P1-B1"] == {"id": "P1-B1", "status": "proven", "tests": ["tests/test_good.py::test_passes"]}
    assert table["P1-B4"]["status"] == "failed"
    assert [table[id_]["status"] for id_ in ("P1-B5", "P1-B6", "P1-B7", "P1-N1")] == ["untested"] * 4
    assert _trace(project, "--last")[1].splitlines()[-1] == "107 requirements: 1 proven, 1 failed, 105 untested"


def test_an_unknown_id_is_an_error(project: Path) -> None:
    (project / "tests" / "test_wrong.py").write_text(GOOD.replace("P1-B1", "P1-B99"))
    code, output = _trace(project)
    assert code == 2
    assert "the spec has no requirement P1-B99" in output
    done = call(sys.executable, "-m", "pytest", "-p", "no:xdist", cwd=project, env=_environment())
    assert done.returncode == 2
    assert "the spec has no requirement P1-B99" in done.stdout


@pytest.mark.parametrize("switch", ["CI=true", "PLUGBIND_NO_SKIP=1"])
def test_in_ci_a_skip_is_a_failure(project: Path, switch: str) -> None:
    (project / "tests" / "test_whole.py").write_text("import pytest\npytest.skip('no server', allow_module_level=True)")
    argv = (sys.executable, "-m", "pytest", "-p", "no:xdist", "--continue-on-collection-errors")
    desk = call(*argv, cwd=project, env=_environment())
    assert "1 failed, 2 passed, 3 skipped" in desk.stdout
    name, _, value = switch.partition("=")
    done = call(*argv, cwd=project, env=_environment(**{name: value}))
    assert "2 failed, 2 passed, 1 skipped, 1 error" in done.stdout
    assert "skipped, which CI refuses: mosquitto is missing" in done.stdout
    assert "skipped, which CI refuses: no server" in done.stdout


def test_the_copy_of_the_ids_is_the_spec(shared: Path) -> None:
    lines = (ROOT / "tests" / "spec_ids.txt").read_text("utf-8").splitlines()
    assert lines[1:] == requirement_trace.ids_of_spec(shared / "spec")


@given(OUTCOMES)
def test_proven_means_that_every_test_passed(outcomes: dict[str, str]) -> None:
    (row,) = requirement_trace.rows(["P1-B1"], {"P1-B1": outcomes})
    assert (row.status == "proven") == (bool(outcomes) and set(outcomes.values()) == {"passed"})
    assert (row.status == "failed") == ("failed" in outcomes.values())


def test_a_requirement_that_the_spec_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="P9-Z9"):
        requirement_trace.rows(["P1-B1"], {"P9-Z9": {}})


def test_a_half_done_requirement_is_not_called_proven() -> None:
    passed = {"P1-B1": {"t": "passed"}, "P1-B4": {"t": "passed"}}
    table = requirement_trace.rows(["P1-B1", "P1-B4"], passed, {"P1-B4": "the web page is missing"})
    assert [row.status for row in table] == ["proven", "untested"]
    assert "P1-B4  untested: the web page is missing" in requirement_trace.as_text(table)


def test_what_is_lacking_names_only_requirements_of_the_spec() -> None:
    assert set(requirement_trace.half_done()) <= set(requirement_trace.known_ids())
    with pytest.raises(ValueError, match="P1-B99"):
        requirement_trace.rows(["P1-B1"], {}, {"P1-B99": "no such requirement"})
