"""Child processes of a bench or demonstration: started, listened to, killed, and never left behind.

Each child gets its own session, dies with this process (prctl, Linux), and its log lines go to one `Ear`.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1
STOP_S = 8.0


class BenchError(Exception):
    """Something that the bench needs did not happen; the text says what, where and what to do next."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One log line. `event` is its constant message, `fields` the rest; `at_s` is real time on this machine's clock."""

    number: int
    source: str
    event: str
    fields: Mapping[str, object]
    at_s: float


class Ear:
    """Every log line of every child, in order of arrival. Safe in any thread."""

    def __init__(self, tell: Callable[[Heard], None]) -> None:
        self._tell = tell
        self._lines: list[Heard] = []
        self._changed = threading.Condition()

    @property
    def position(self) -> int:
        """How many lines were heard; `wait` looks from a position on."""
        with self._changed:
            return len(self._lines)

    def hear(self, source: str, text: str) -> None:
        """Take in one line; text that is not JSON is kept as it is."""
        fields: dict[str, object]
        try:
            found = json.loads(text)
            fields = found if isinstance(found, dict) else {"text": text}
        except ValueError:
            fields = {"text": text}
        event = str(fields.pop("event", fields.pop("message", fields.get("text", ""))))
        with self._changed:
            heard = Heard(len(self._lines), source, event, fields, time.monotonic())
            self._lines.append(heard)
            self._changed.notify_all()
        self._tell(heard)

    def wait(self, what: str, wanted: Callable[[Heard], bool], since: int, timeout_s: float,
             alive: Callable[[], None] = lambda: None) -> Heard:
        """The first wanted line from a position on. Raises BenchError when it does not come in time."""
        end_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                while since < len(self._lines):
                    if wanted(self._lines[since]):
                        return self._lines[since]
                    since += 1
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    raise BenchError(f"waited {timeout_s:g} s for: {what}; it did not happen")
                self._changed.wait(min(left_s, 0.5))
                alive()

    def poll(self, what: str, happened: Callable[[], bool], timeout_s: float, alive: Callable[[], None]) -> None:
        """Return once something has happened that no log line tells. Raises BenchError when it does not in time."""
        end_s = time.monotonic() + timeout_s
        while not happened():
            if time.monotonic() >= end_s:
                raise BenchError(f"waited {timeout_s:g} s for: {what}; it did not happen")
            alive()
            time.sleep(0.1)

    def since(self, position: int) -> list[Heard]:
        """All lines from a position on."""
        with self._changed:
            return self._lines[position:]


class Crew:
    """The children. A context manager: at its end none is left, whatever happened."""

    def __init__(self, ear: Ear, folder: Path, environment: Mapping[str, str]) -> None:
        self._ear, self._folder, self._environment = ear, folder, dict(environment)
        self._children: dict[str, subprocess.Popen[str]] = {}
        self._expected: set[str] = set()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._children)):
            self.stop(name)

    def start(self, name: str, command: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
        """Start a child; its standard error (and output) is heard line by line and kept in FOLDER/NAME.log."""
        self._expected.discard(name)
        self._let_go(name)
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=self._environment | dict(extra or {}), start_new_session=True, preexec_fn=_die_with_parent)
        self._children[name] = child
        assert child.stdout is not None
        threading.Thread(target=self._listen, args=(name, child.stdout), daemon=True).start()

    def tell(self, name: str, line: str) -> None:
        """Write a line to a child's standard input."""
        child = self._children[name]
        assert child.stdin is not None
        child.stdin.write(line + "\n")
        child.stdin.flush()

    def pid(self, name: str) -> int:
        """The child's process id."""
        return self._children[name].pid

    def kill(self, name: str) -> None:
        """kill -9."""
        self._expected.add(name)
        child = self._children[name]
        child.kill()
        child.wait()

    def stop(self, name: str) -> None:
        """SIGTERM, and SIGKILL when that is not enough."""
        self._expected.add(name)
        child = self._children[name]
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._let_go(name)

    def check(self) -> None:
        """Raises BenchError when a child ended that nobody stopped."""
        for name, child in self._children.items():
            code = child.poll()
            if code is not None and name not in self._expected:
                raise BenchError(f"{name} ended by itself with code {code}: see {self._folder / (name + '.log')}")

    def _let_go(self, name: str) -> None:
        """Close the pipe to a child that is gone."""
        old = self._children.get(name)
        if old is not None and old.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                old.stdin.close()

    def _listen(self, name: str, stream: IO[str]) -> None:
        with stream, (self._folder / f"{name}.log").open("a", encoding="utf-8") as kept:
            for line in stream:
                kept.write(line)
                kept.flush()
                self._ear.hear(name, line.rstrip("\n"))


def ask(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """The standard output of a command that ends by itself. Raises BenchError with its own words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=dict(environment), timeout=60, check=False)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise BenchError(f"`{Path(command[0]).name} {' '.join(command[1:3])}` ended with {done.returncode}: "
                         f"{words[-1] if words else 'no words'}")
    return done.stdout


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)
