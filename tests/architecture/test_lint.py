"""The tools of `./run lint` are part of the gate, and the banned clocks are really banned."""

from __future__ import annotations

from pathlib import Path

import pytest

from architecture.house import PROJECT, ROOT, SCRIPTS, call

COMPOSITION_ROOTS = {
    "agent/{runtime,clocks}.py", "cloud/{main,gateway,jobs,cli,broker}.py", "firmware_sim/cli.py", "hil/**",
    "tests/**", "run",
}  # fmt: skip


def test_ruff_has_nothing_to_say() -> None:
    done = call(SCRIPTS / "ruff", "check")
    assert done.returncode == 0, done.stdout


def test_mypy_strict_has_nothing_to_say() -> None:
    settings = PROJECT["tool"]["mypy"]
    assert settings["strict"] is True
    assert set(settings["files"]) == {"esci", "agent", "cloud", "firmware_sim", "hil", "tests", "run"}
    done = call(SCRIPTS / "mypy")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "line",
    ["time.time()", "time.monotonic()", "time.monotonic_ns()", "time.sleep(1)", "datetime.datetime.now()",
     "datetime.datetime.utcnow()", "random.random()"],
)  # fmt: skip
def test_a_clock_or_chance_in_a_core_is_refused(line: str, tmp_path: Path) -> None:
    """Both ways to import: ruff resolves the name, not the text."""
    module, function = line.removesuffix("()").removesuffix("(1)").rsplit(".", 1)
    for text in (f"import {module.split('.')[0]}\n\nx = {line}\n", f"from {module} import {function}\n"):
        if text.startswith("from") and module == "datetime.datetime":
            text = f"from datetime import datetime\n\nx = datetime.{function}()\n"
        done = call(SCRIPTS / "ruff", "check", "--stdin-filename", ROOT / "agent/core/clock.py", "-", input_text=text)
        assert "TID251" in done.stdout, f"{text!r} passed: {done.stdout}"


def test_only_composition_roots_may_read_a_clock() -> None:
    ignores = PROJECT["tool"]["ruff"]["lint"]["per-file-ignores"]
    assert {pattern for pattern, rules in ignores.items() if "TID251" in rules} == COMPOSITION_ROOTS


def test_nobody_slips_past_the_banned_clocks() -> None:
    """No `noqa` for them, and no `getattr(time, ...)`-like import of the whole C module."""
    found = call("grep", "-rnE", r"noqa: *[A-Z0-9, ]*TID251|import _(time|datetime|random)", "--include=*.py",
                 "esci", "agent", "cloud", "firmware_sim", "hil")  # fmt: skip
    assert found.stdout == ""
