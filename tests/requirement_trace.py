"""Says which requirement is proven by which test: the ids, the table and `./run trace`.

Two halves meet in a JSON file: conftest.py writes the outcome of each marked test there (only when asked, through
PLUGBIND_TRACE), and this module turns it into the table. A requirement is *proven* when it has tests and all passed,
*failed* when one failed, *untested* otherwise: a skipped test proves nothing, and neither do tests of a requirement
that spec_open.toml says is only half done. Must not import the project.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY_OF_IDS = ROOT / "tests" / "spec_ids.txt"
OPEN = ROOT / "tests" / "spec_open.toml"
LAST_RUN = ROOT / ".run" / "trace.json"
WORST_FIRST = ("failed", "skipped", "passed")


@dataclass(frozen=True, slots=True)
class Row:
    """One requirement, the outcome (passed, skipped, failed) of each test that names it, and what its proof lacks."""

    id: str
    outcomes: Mapping[str, str]
    lacks: str = ""

    @property
    def status(self) -> str:
        found = set(self.outcomes.values())
        if "failed" in found:
            return "failed"
        return "proven" if found == {"passed"} and not self.lacks else "untested"


def shared_folder() -> Path | None:
    """The folder of facts, data and spec beside the checkout (PLUGBIND_SHARED moves it). None: it is not here."""
    folder = Path(os.environ.get("PLUGBIND_SHARED") or ROOT.parent / "shared")
    return folder if folder.is_dir() else None


def ids_of_spec(spec: Path) -> list[str]:
    """Every requirement id of the folder's TOML files, file by file, in their order."""
    return [row["id"] for path in sorted(spec.glob("*.toml")) for row in tomllib.loads(path.read_text("utf-8"))["req"]]


def known_ids() -> list[str]:
    """The ids that a test may name: of shared/spec, or of the project's copy where that is absent."""
    shared = shared_folder()
    if shared is not None and (shared / "spec").is_dir():
        return ids_of_spec(shared / "spec")
    return [line for line in COPY_OF_IDS.read_text("utf-8").splitlines() if line and not line.startswith("#")]


def half_done() -> dict[str, str]:
    """What the proof of a requirement still lacks, by id. Raises ValueError when the file cannot be read."""
    return {id_: str(lacks) for id_, lacks in tomllib.loads(OPEN.read_text("utf-8")).items()} if OPEN.exists() else {}


def rows(
    ids: Iterable[str], outcomes: Mapping[str, Mapping[str, str]], lacking: Mapping[str, str] | None = None
) -> list[Row]:
    """One row for each id, in order. `outcomes` is id -> test -> outcome, as conftest.py writes it.

    Raises ValueError when the outcomes, or what is lacking, name an id that is not in the list.
    """
    ordered, lacks = list(ids), lacking or {}
    unknown = sorted((set(outcomes) | set(lacks)) - set(ordered))
    if unknown:
        raise ValueError(f"tests name requirements that the spec does not have: {', '.join(unknown)}")
    return [Row(id_, dict(sorted(outcomes.get(id_, {}).items())), lacks.get(id_, "")) for id_ in ordered]


def worse(first: str | None, second: str) -> str:
    """The outcome that counts when one test ran with several parameters."""
    return second if first is None else min(first, second, key=WORST_FIRST.index)


def as_json(table: Iterable[Row]) -> str:
    return json.dumps([{"id": row.id, "status": row.status, "tests": list(row.outcomes)} for row in table], indent=1)


def as_text(table: list[Row]) -> str:
    """The table for people, and the count of each status in its last line."""
    width = max(len(row.id) for row in table)
    lines = []
    for row in table:
        lines.append(f"{row.id:<{width}}  {row.status}" + (f": {row.lacks}" if row.lacks else ""))
        lines += [f"{'':<{width}}    {outcome}  {test}" for test, outcome in row.outcomes.items()]
    counts = [f"{sum(row.status == status for row in table)} {status}" for status in ("proven", "failed", "untested")]
    return "\n".join([*lines, f"{len(table)} requirements: {', '.join(counts)}"])


def run_marked_tests() -> None:
    """Run each test that names a requirement; conftest.py writes LAST_RUN, pytest's own words go to trace.log."""
    LAST_RUN.parent.mkdir(exist_ok=True)
    LAST_RUN.unlink(missing_ok=True)
    workers = str(min(len(os.sched_getaffinity(0)), 4))
    argv = [sys.executable, "-m", "pytest", "-m", "req", "-q", "-n", workers, "--dist", "worksteal"]
    env = os.environ | {"PLUGBIND_TRACE": str(LAST_RUN)}
    with LAST_RUN.with_suffix(".log").open("w", encoding="utf-8") as log:
        subprocess.call(argv, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)


def table_of_last_run() -> list[Row]:
    """Raises ValueError with a sentence when there is no run, or one in which not every test could be read."""
    try:
        kept = json.loads(LAST_RUN.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError("no run is kept: see .run/trace.log, or type ./run trace without --last") from None
    if kept["not_collected"]:
        raise ValueError("\n  ".join(["some tests could not be read:", *kept["not_collected"]]))
    return rows(known_ids(), kept["outcomes"], half_done())


def main(argv: list[str] | None = None) -> int:
    """0: nothing failed; 1: a requirement failed; 2: the table could not be made."""
    parser = argparse.ArgumentParser(prog="./run trace", description="Each requirement and the tests that prove it.")
    parser.add_argument("--json", action="store_true", help="an array of {id, status, tests}")
    parser.add_argument("--last", action="store_true", help="of the last whole run, without running the tests again")
    args = parser.parse_args(argv)
    if not args.last:
        print("trace: running the tests that name a requirement ...", file=sys.stderr, flush=True)
        run_marked_tests()
    try:
        table = table_of_last_run()
    except ValueError as error:
        print(f"trace: {error}", file=sys.stderr)
        return 2
    print(as_json(table) if args.json else as_text(table))
    return 1 if any(row.status == "failed" for row in table) else 0


if __name__ == "__main__":
    sys.exit(main())
