"""The console script. `evse-agent run` takes the short way: it begins with the meter and loads no command line.

Every other command, and every other form of `run`, is `agent.cli`'s.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # a charger has none, and looking for them costs its start

from agent.errors import CONFIG, CONFIG_VARIABLE, guarded


def main() -> None:
    """`run` in its plain form, or the command line."""
    path = plain_run(sys.argv[1:])
    if path is None:
        from agent.cli import main as command_line

        command_line()
        return
    guarded(lambda: _run(path))


def plain_run(arguments: Sequence[str]) -> Path | None:
    """The configuration of `run`, `run -c FILE` and `run --config FILE`; None for anything else."""
    match list(arguments):
        case ["run"]:
            return Path(os.environ.get(CONFIG_VARIABLE) or CONFIG)
        case ["run", "-c" | "--config", file] if not file.startswith("-"):
            return Path(file)
        case _:
            return None


def _run(path: Path) -> None:
    from agent.begin import begin

    begun = begin(path)
    from agent.runtime import run

    run(path, begun)
