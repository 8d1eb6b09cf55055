"""How the demonstration is shown: plain lines, or a live terminal view (rich). Both are told the same things."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hil.processes import Heard

Facts = Callable[[], Mapping[str, str]]
QUIET = frozenset({"board state", "handled", "recorded", "sent", "received", "board changed"})


class Show(Protocol):
    """What the story tells."""

    def __enter__(self) -> "Show": ...
    def __exit__(self, *_: object) -> None: ...
    def chapter(self, title: str) -> None: ...
    def step(self, clause: str, text: str) -> None: ...
    def quote(self, text: str) -> None: ...
    def verdict(self, ok: bool, text: str) -> None: ...
    def heard(self, line: Heard) -> None: ...


class PlainShow:
    """One line for each thing, for logs and pipes."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()

    def __enter__(self) -> "PlainShow":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def chapter(self, title: str) -> None:
        """A new part of the story."""
        self._print(f"\n== {title}")

    def step(self, clause: str, text: str) -> None:
        """Something that was seen to happen; `clause` is its requirement or empty."""
        self._print(f"{time.monotonic() - self._begun_s:6.1f} s  {clause:8} {text}")

    def quote(self, text: str) -> None:
        """What a program printed."""
        self._print("\n".join(f"    | {line}" for line in text.rstrip().splitlines()))

    def verdict(self, ok: bool, text: str) -> None:
        """One line of the final statement."""
        self._print(f"  {'ok  ' if ok else 'FAIL'} {text}")

    def heard(self, line: Heard) -> None:
        """Log lines are kept in files; the plain view leaves them there."""

    def _print(self, text: str) -> None:
        print(text, flush=True)


class LiveShow:
    """The same, with a panel of live facts beside it while it runs; the steps stay on the screen afterwards."""

    def __init__(self, facts: Facts, console: Console | None = None) -> None:
        self._console = console or Console()
        self._facts = facts
        self._lines: deque[str] = deque(maxlen=5)
        self._chapter = "starting"
        self._begun_s = time.monotonic()
        self._lock = threading.Lock()
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> "LiveShow":
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def chapter(self, title: str) -> None:
        """See PlainShow."""
        self._chapter = title
        self._console.print(Text(f"\n{title}", style="bold cyan"))

    def step(self, clause: str, text: str) -> None:
        """See PlainShow."""
        line = Text(f"{time.monotonic() - self._begun_s:6.1f} s  ", style="dim")
        line.append("✓ ", style="green").append(f"{clause:8}", style="yellow").append(text, style="default")
        self._console.print(line)

    def quote(self, text: str) -> None:
        """See PlainShow."""
        self._console.print(Panel(Text(text.rstrip()), border_style="dim", expand=False))

    def verdict(self, ok: bool, text: str) -> None:
        """See PlainShow."""
        self._console.print(Text("  ✓ " if ok else "  ✗ ", style="green" if ok else "bold red").append(text, "default"))

    def heard(self, line: Heard) -> None:
        """Keep the last few log lines for the panel."""
        if line.event not in QUIET:
            with self._lock:
                self._lines.append(f"{line.source:8} {line.event}")

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column()
        for name, value in self._facts().items():
            table.add_row(name, value)
        with self._lock:
            log = Text("\n".join(self._lines), style="dim", no_wrap=True, overflow="ellipsis")
        title = f"{self._chapter}  {time.monotonic() - self._begun_s:.0f} s"
        return Panel(Group(table, Text(""), log), title=title, border_style="cyan")
