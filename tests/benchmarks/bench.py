"""`./run bench`: the agent beside a baseline of sixty lines, in the same call on the same machine; ratios are printed.

Never a timed test: pytest does not collect it. Exit code 0 when all is within what is wanted, 1 when something is over,
2 when the benchmark could not run. `--quick` is for a first look, its figures are rough.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import figures
from benchmarks.figures import FULL, QUICK, Size, Survived
from benchmarks.stage import Stage, StageError

MIB = 2**20
GROUPS = ("start", "steady", "backlog", "kill")


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `wanted`: the largest ratio, or the largest own value where `ratio` is None for good."""

    name: str
    unit: str
    ours: float | None
    baseline: float | None
    wanted: float | None
    is_ratio: bool = True

    @property
    def ratio(self) -> float | None:
        """Ours to the baseline's; None: it cannot be said."""
        if not self.is_ratio or self.ours is None or not self.baseline:
            return None
        return self.ours / self.baseline

    @property
    def is_over(self) -> bool:
        """Whether it misses what is wanted; an unknown value does."""
        if self.wanted is None:
            return False
        judged = self.ratio if self.is_ratio else self.ours
        return judged is None or judged > self.wanted

    @property
    def verdict(self) -> str:
        """The last column."""
        return "" if self.wanted is None else "OVER" if self.is_over else "ok"


def tell(text: str) -> None:
    """One line of progress."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(prog="./run bench", description="The agent beside a baseline of sixty lines.")
    parser.add_argument("--quick", action="store_true", help="a short run (two minutes); rough figures")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--only", choices=GROUPS, action="append", help="only this group of figures; may be repeated")
    asked = parser.parse_args()
    mosquitto = shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if mosquitto is None:
        tell("mosquitto is missing, nothing was measured: sudo apt-get install -y mosquitto")
        return 0
    size = QUICK if asked.quick else FULL
    folder = Path(tempfile.mkdtemp(prefix="plugbind-bench-", dir="/var/tmp"))  # on disk, where /tmp may be memory
    notes: list[str] = []
    measured: list[Figure] = []
    stopped = None
    try:
        with Stage(mosquitto, folder) as stage:
            tell("founding a utility, commissioning a charger, starting mosquitto with mutual TLS ...")
            stage.build()
            for group in measure(stage, size, asked.only or GROUPS, notes):
                measured += group
    except (StageError, TimeoutError) as error:
        stopped = str(error)
    missed = [figure.name for figure in measured if figure.is_over]
    print(as_json(measured, notes, size) if asked.json else as_table(measured, notes))
    if stopped is not None:
        tell(f"could not go on: {stopped}")
        return 2
    if missed:
        tell(f"over what is wanted: {', '.join(missed)}")
    return 1 if missed else 0


def measure(stage: Stage, size: Size, groups: Collection[str], notes: list[str]) -> Iterator[list[Figure]]:
    """The figures of each group, in a fixed order, as they are taken."""
    steps: dict[str, Callable[[Stage, Size, list[str]], list[Figure]]] = {
        "start": measure_start, "steady": measure_steady, "backlog": measure_backlog, "kill": measure_kills}
    for name in GROUPS:
        if name in groups:
            yield steps[name](stage, size, notes)


def measure_start(stage: Stage, size: Size, _: list[str]) -> list[Figure]:
    """Start to first reading."""
    tell(f"start to first reading, {size.starts} starts each ...")
    meter = stage.meter()
    ours = figures.start_seconds(stage.agent(stage.state_dir("start-agent"), meter), meter, size.starts)
    rival = figures.start_seconds(stage.baseline(stage.folder / "start-baseline.db", meter), meter, size.starts)
    return [Figure("start to first reading", "s", ours, rival, 1.5)]


def measure_steady(stage: Stage, size: Size, notes: list[str]) -> list[Figure]:
    """Memory, CPU and bytes at 10 Hz."""
    tell(f"both at 10 Hz side by side, {size.warm_up_s} + {size.steady_s} s ...")
    receiver = stage.receiver()
    meters = stage.meter(), stage.meter()
    ours, rival = figures.steady([
        (stage.agent(stage.state_dir("steady-agent"), meters[0]), meters[0]),
        (stage.baseline(stage.folder / "steady-baseline.db", meters[1]), meters[1])], size)
    receiver.stop()
    notes.append(f"steady state: {ours.readings} and {rival.readings} readings; private memory "
                 f"{ours.uss_bytes / MIB:.1f} and {rival.uss_bytes / MIB:.1f} MiB; given to all write calls "
                 f"{ours.written_bytes / ours.readings:.0f} and {rival.written_bytes / rival.readings:.0f} B a reading")
    return [
        Figure("memory (RSS)", "MiB", ours.rss_bytes / MIB, rival.rss_bytes / MIB, 1.6),
        Figure("CPU per 1,000 readings at 10 Hz", "s", ours.cpu_s_per_1000, rival.cpu_s_per_1000, 1.0),
        Figure("bytes to disk per reading", "B", ours.disk_bytes_per_reading, rival.disk_bytes_per_reading, 0.1)]


def measure_backlog(stage: Stage, size: Size, notes: list[str]) -> list[Figure]:
    """The drain of a backlog."""
    count = f"{size.backlog:,}"
    tell(f"a backlog of {count} records, {size.drains} times each, once to evse-cloud gateway ...")
    rivals, own = [], []
    for _ in range(size.drains):  # in turn, so that a busy moment of the machine meets both
        rivals.append(figures.drain_baseline(stage, size))
        own.append(figures.drain_agent(stage, size, real_gateway=False))
    rival, alone = (sorted(runs, key=lambda one: one.seconds)[len(runs) // 2] for runs in (rivals, own))
    whole = figures.drain_agent(stage, size, real_gateway=True)
    notes.append(f"backlog: CPU of the agent {alone.cpu_s:.2f} s, of the baseline {rival.cpu_s:.2f} s; a reading "
                 "of the baseline is done with the broker's PUBACK, a record of ours with the utility's own word ("
                 "the gateway rates, posts and commits it first)")
    return [Figure(f"{count} records to a receiver", "s", alone.seconds, rival.seconds, 0.6),
            Figure(f"{count} records to evse-cloud gateway", "s", whole.seconds, rival.seconds, None)]


def measure_kills(stage: Stage, size: Size, notes: list[str]) -> list[Figure]:
    """kill -9 at random moments."""
    tell(f"{size.kills} times kill -9 at ten records a second, first the baseline, then the agent ...")
    rival = figures.kill_baseline(stage, size, tell)
    ours = figures.kill_agent(stage, size, tell)
    notes.append(f"kills: {ours.records} records of the agent, {rival.records} readings of the baseline")
    notes += [f"kills: {note}" for note in ours.notes]
    return [_counted(f"{size.kills} kill -9: lost", ours, rival, lambda one: one.lost),
            _counted(f"{size.kills} kill -9: doubled", ours, rival, lambda one: one.doubled)]


def _counted(name: str, ours: Survived, rival: Survived, of: Callable[[Survived], int]) -> Figure:
    return Figure(name, "", of(ours), of(rival), 0, is_ratio=False)


def as_table(measured: list[Figure], notes: list[str]) -> str:
    """The table for people."""
    lines = [f"{'figure':40}{'ours':>10}{'baseline':>10}{'ratio':>8}{'wanted':>9}"]
    for figure in measured:
        name = f"{figure.name} [{figure.unit}]" if figure.unit else figure.name
        wanted = "" if figure.wanted is None else f"<= {figure.wanted:g}{'x' if figure.is_ratio else ''}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}x"
        numbers = f"{_number(figure.ours):>10}{_number(figure.baseline):>10}"
        lines.append(f"{name:40}{numbers}{ratio:>8}{wanted:>9}  {figure.verdict}")
    return "\n".join([*lines, "", *notes, f"machine: {_machine()}"])


def as_json(measured: list[Figure], notes: list[str], size: Size) -> str:
    """The same for machines."""
    rows = [asdict(figure) | {"ratio": figure.ratio, "verdict": figure.verdict} for figure in measured]
    return json.dumps({"figures": rows, "notes": notes, "size": asdict(size), "machine": _machine(),
                       "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}, indent=1)


def _number(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _machine() -> str:
    return (f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}, "
            f"Python {platform.python_version()}")


if __name__ == "__main__":
    sys.exit(main())
