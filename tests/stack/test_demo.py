"""`evse-hil demo` as a person runs it: once to its end, and once stopped with Ctrl-C, after which nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

HERE = Path(sys.executable).parent
DEMO_S, STOP_S = 240, 60
STEPS = ("S1.1-4", "S1.5", "S1.6", "S1.7", "S1.8", "S1.9", "S1.10", "S1.11", "S1.12", "S1.13", "S1.14", "S1.15",
         "S1.16", "S2.1-3", "S2.4-6", "S2.7", "S3.1", "F28", "B4", "B6")


def children_of(folder: Path) -> list[str]:
    """The command lines of all processes that work in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:  # it ended meanwhile
            continue
        if str(folder) in words and str(os.getpid()) != path.parts[2]:
            found.append(words)
    return found


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([str(HERE / "evse-hil"), "demo", "--plain", "--keep", str(folder), *words], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                            env=os.environ | {"PYTHONUNBUFFERED": "1"})


@pytest.mark.req("P1-B4", "P1-B6", "P1-F17", "P1-F28", "P1-S3.1", "P1-S3.3")
def test_the_demonstration_shows_every_step_and_everything_holds(tmp_path: Path) -> None:
    with start(tmp_path, "--scale", "120") as demo:
        out, err = demo.communicate(timeout=DEMO_S)
    assert demo.returncode == 0, out[-3000:] + err[-3000:]
    lines = out.splitlines()
    shown = {word for line in lines for word in line.split()[:3]}
    assert [step for step in STEPS if step not in shown] == []
    assert lines[-1] == "Everything holds."
    assert children_of(tmp_path) == []


def test_ctrl_c_ends_the_demonstration_with_130_and_leaves_no_process(tmp_path: Path) -> None:
    with start(tmp_path, "--scale", "120") as demo:
        assert demo.stdout is not None
        watchdog = threading.Timer(STOP_S, demo.kill)
        watchdog.start()
        try:
            for line in demo.stdout:
                if "S1.6" in line:
                    break
            assert any("evse-agent" in words for words in children_of(tmp_path))
            demo.send_signal(signal.SIGINT)
            _, err = demo.communicate(timeout=STOP_S)
        finally:
            watchdog.cancel()
    assert demo.returncode == 130
    assert err.strip() == "evse-hil: stopped; no process is left behind."
    assert children_of(tmp_path) == []
