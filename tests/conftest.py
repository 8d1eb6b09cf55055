"""The rules that hold for every test: requirement marks, no silent skips in CI, one Hypothesis profile, real servers.

- A test names what it proves: `@pytest.mark.req("P1-S3.1")`. An id that the spec does not have fails the collection.
- With PLUGBIND_NO_SKIP=1 or CI=true a skip is a failure. Only data that a clone may lack is excused: a reason that
  names PLUGBIND_SHARED.
- With PLUGBIND_TRACE=path the outcome of each marked test is written there for requirement_trace.py.

Must not import the project.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import requirement_trace

NO_SKIP = os.environ.get("PLUGBIND_NO_SKIP") == "1" or os.environ.get("CI", "").lower() in ("1", "true")
EXCUSED = "PLUGBIND_SHARED"

settings.register_profile("desk", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("desk"), derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if NO_SKIP else "desk"))

_known_ids = frozenset(requirement_trace.known_ids())


# ---- requirement marks ----


def _required(item: pytest.Item) -> list[str]:
    return [str(id_) for mark in item.iter_markers("req") for id_ in mark.args]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module or class with a wrong mark, or skipped whole where skips are refused, is a collection error."""
    report = yield
    wrong = []
    for item in report.result if report.passed else []:
        if not isinstance(item, pytest.Item):
            continue
        unknown = sorted(set(_required(item)) - _known_ids)
        if unknown:
            wrong.append(f"{item.nodeid}: the spec has no requirement {', '.join(unknown)}")
        if any(not mark.args for mark in item.iter_markers("req")):
            wrong.append(f"{item.nodeid}: req needs at least one id")
    if report.skipped and NO_SKIP and EXCUSED not in _reason(report.longrepr):
        wrong.append(f"{collector.nodeid}: skipped, which CI refuses: {_reason(report.longrepr)}")
    if wrong:
        report.outcome, report.result, report.longrepr = "failed", [], "\n".join(wrong)
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its ids as properties: reports carry those, also from the workers of xdist."""
    for item in items:
        item.user_properties.extend(("req", id_) for id_ in _required(item))


# ---- no skips in CI ----


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        reason = _reason(report.longrepr)
        if EXCUSED not in reason:
            report.outcome, report.longrepr = "failed", f"skipped, which CI refuses: {reason}"
    return report


def _reason(longrepr: object) -> str:
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return str(text).removeprefix("Skipped: ")


# ---- the trace ----

_outcomes: dict[str, dict[str, str]] = {}
_not_collected: list[str] = []


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _not_collected.append(f"{report.nodeid}: {(report.longreprtext.strip().splitlines() or ['?'])[-1]}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.passed:
        return
    test = re.sub(r"\[.*\]$", "", report.nodeid, flags=re.DOTALL)
    for name, id_ in report.user_properties:
        if name == "req":
            tests = _outcomes.setdefault(str(id_), {})
            tests[test] = requirement_trace.worse(tests.get(test), report.outcome)


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get("PLUGBIND_TRACE")
    if path and not hasattr(session.config, "workerinput"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        kept = {"outcomes": _outcomes, "not_collected": sorted(set(_not_collected))}
        Path(path).write_text(json.dumps(kept, indent=1), "utf-8")


# ---- what the machine has ----


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of facts and data beside the checkout; skips where a clone has none."""
    folder = requirement_trace.shared_folder()
    if folder is None:
        pytest.skip("shared data absent: set PLUGBIND_SHARED to the folder to run this test")
    return folder


@pytest.fixture(scope="session")
def mosquitto_bin() -> str:
    """Path of Debian's mosquitto; skips where it is not installed."""
    path = shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip("mosquitto is missing: sudo apt-get install -y mosquitto")
    return path


@pytest.fixture(scope="session")
def postgres_bin() -> Path:
    """The folder with initdb and pg_ctl, of the newest version; skips where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        pytest.skip("postgresql is missing: sudo apt-get install -y postgresql")
    return Path(on_path).resolve().parent
