"""What the agent does before it is whole: reads the meter, so that no reading waits for the rest to be loaded.

The meter's section is taken as it stands in agent.toml; a moment later the strict model judges the whole file, and ends
the agent if it is wrong. Must import nothing heavy but the meter's own driver.
"""

import os
import queue
import tomllib
from dataclasses import dataclass
from pathlib import Path

from agent.clocks import Clocks
from agent.core.events import Event
from agent.drivers.meter import UnknownModelError, open_poller
from agent.ports import MeterDriver
from esci.timescale import VARIABLE

INBOX_SIZE = 1000


@dataclass(frozen=True, slots=True)
class MeterWish:
    """[meter] as it stands in the file, types checked, bounds not."""

    model: str
    port: str
    unit_id: int = 1
    poll_ms: int = 1000
    baud: int | None = None


@dataclass(slots=True)
class Begun:
    """What runs before the agent does. `meter` None: its section could not be used so far."""

    clocks: Clocks
    inbox: "queue.Queue[Event]"
    meter: MeterDriver | None


def begin(path: Path) -> Begun:
    """Start to read the meter, if its section allows. Raises ClockVariableError."""
    clocks = Clocks(os.environ.get(VARIABLE, ""))
    begun = Begun(clocks, queue.Queue(INBOX_SIZE), None)
    wish = read_wish(path)
    if wish is not None:
        try:
            begun.meter = open_poller(wish, begun.inbox.put_nowait, clocks.now, clocks.pace)
        except (UnknownModelError, ValueError):
            return begun  # the strict model, or the runtime, says it better
        begun.meter.start()
    return begun


def read_wish(path: Path) -> MeterWish | None:
    """The meter's section; None when it is missing or odd: then the strict model has the word."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("meter")
    except (OSError, ValueError):
        return None
    kinds = {"model": str, "port": str, "unit_id": int, "poll_ms": int, "baud": int}
    if not isinstance(table, dict) or not {"model", "port"} <= set(table) <= set(kinds):
        return None
    if any(type(value) is not kinds[name] for name, value in table.items()):
        return None
    wish = MeterWish(**table)
    return wish if 1 <= wish.unit_id <= 247 and wish.poll_ms >= 50 else None
