"""`evse-sim`: the command line of the simulator, and the one place where it reads clocks, signals and the environment.

Exit codes: 0 ended as asked, 2 bad input (one sentence says what), 130 interrupted.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from esci.timescale import VARIABLE, TimeScale
from firmware_sim.bench import Bench, Log, Setting
from firmware_sim.devices import Terminal
from firmware_sim.meter_map import MeterMap, read_map
from firmware_sim.scenario import ScenarioError, read_scenario
from firmware_sim.solo import SoloMeter, run_board
from firmware_sim.world import World

DEFAULT_MAP = Path(__file__).resolve().parent.parent / "agent" / "meters" / "eastron_sdm630.toml"

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="The other end of every wire of a charger: board, meter, vehicles."
)
MapOption = Annotated[Path, typer.Option(help="Meter model (TOML).")]


@dataclass(slots=True)
class Stop:
    """The stop event and the signal that set it."""

    event: threading.Event
    interrupted: bool = False

    def __call__(self, number: int, _: FrameType | None) -> None:
        """The signal handler."""
        self.interrupted = number == signal.SIGINT
        self.event.set()


def _fail(sentence: str) -> NoReturn:
    print(f"evse-sim: {sentence}", file=sys.stderr)
    raise typer.Exit(2)


def _stop_on_signals() -> Stop:
    stop = Stop(threading.Event())
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stop


def _time_scale() -> TimeScale:
    """The scale of the environment; unset: real time."""
    text = os.environ.get(VARIABLE)
    if not text:
        return TimeScale(1, time.monotonic(), datetime.now(UTC).replace(microsecond=0))
    try:
        return TimeScale.parse(text)
    except ValueError as error:
        _fail(f"{VARIABLE} cannot be used: {error}.")


def _world_ms() -> Callable[[], int]:
    """World milliseconds since this call."""
    scale = _time_scale()
    begin_ms = scale.mono_ms(time.monotonic())
    return lambda: scale.mono_ms(time.monotonic()) - begin_ms


def _map(path: Path) -> MeterMap:
    try:
        return read_map(path)
    except ValueError as error:
        _fail(str(error))


def _logger(as_json: bool, stop: Stop) -> Log:
    """One line for each event: JSON on standard output, or words on standard error. Stops when nobody reads."""
    lock = threading.Lock()

    def log(event: str, fields: dict[str, object]) -> None:
        with lock:
            try:
                if as_json:
                    print(json.dumps({"event": event, **fields}), flush=True)
                else:
                    words = " ".join(f"{name}={value}" for name, value in fields.items())
                    print(f"{event} {words}", file=sys.stderr, flush=True)
            except BrokenPipeError:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, (sys.stdout if as_json else sys.stderr).fileno())
                os.close(nowhere)
                stop.event.set()

    return log


def _state_dir(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _fail(f"State directory {path} cannot be made: {error.strerror}.")
    return path.resolve()


def _run_bench(bench: Bench, stop: Stop, commands_fd: int | None, end_after_s: int | None) -> None:
    """Runs to the end or to a signal, and always tidies up."""
    try:
        bench.start()
        bench.run(stop.event, commands_fd, end_after_s)
    except OSError as error:
        _fail(f"The simulation cannot go on: {error}.")
    finally:
        bench.close()
    if stop.interrupted:
        raise typer.Exit(130)


@app.command()
def run(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (TOML).")],
    state_dir: Annotated[Path, typer.Option(help="Where board, meter and sim.json appear.")],
    seed: Annotated[int | None, typer.Option(help="Repeats a world; default: the scenario's.")] = None,
    meter_map: Annotated[Path | None, typer.Option(help="Meter model (TOML); default: the scenario's.")] = None,
    json_log: Annotated[bool, typer.Option("--json", help="Log JSON lines on standard output.")] = False,
    stdin: Annotated[bool, typer.Option("--stdin", help="Take commands as JSON lines on standard input.")] = False,
    end_after_s: Annotated[int | None, typer.Option(min=1, help="Stop after so many world seconds.")] = None,
) -> None:
    """Run a whole world: board and meter on pseudo-terminals, vehicles, timed events."""
    try:
        parts = read_scenario(scenario)
    except ScenarioError as error:
        _fail(str(error))
    map_path = meter_map or (scenario.parent / parts.meter.map if parts.meter.map else DEFAULT_MAP)
    stop = _stop_on_signals()
    setting = Setting(_state_dir(state_dir), _map(map_path), _time_scale(), time.monotonic, _logger(json_log, stop))
    bench = Bench(parts, parts.world.seed if seed is None else seed, setting)
    _run_bench(bench, stop, sys.stdin.fileno() if stdin else None, end_after_s)


@app.command()
def meter(
    meter_map: MapOption = DEFAULT_MAP,
    tcp: Annotated[bool, typer.Option("--tcp", help="Modbus TCP instead of a pseudo-terminal.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0: any.")] = 0,
    power_w: Annotated[int, typer.Option(min=0, max=100_000, help="Constant load.")] = 0,
    register_start_kwh: Annotated[float, typer.Option(min=0, max=99_999_999)] = 0.0,
    serial_number: Annotated[int, typer.Option(min=0, max=0xFFFFFFFF)] = 19_630_001,
    link: Annotated[Path | None, typer.Option(help="Name for the pseudo-terminal.")] = None,
    print_port: Annotated[bool, typer.Option("--print-port", help="Print where it is reached.")] = False,
) -> None:
    """Serve one meter alone."""
    world = World(1, 0, register_start_wh=round(register_start_kwh * 1000), base_load_w=power_w)
    solo = SoloMeter(_map(meter_map), world, serial_number, _world_ms())
    stop = _stop_on_signals()
    try:
        where = solo.serve_tcp(port) if tcp else solo.serve_pty(link, time.monotonic)
    except OSError as error:
        _fail(f"The meter cannot be served: {error.strerror or error}.")
    if print_port:
        print(where, flush=True)
    stop.event.wait()
    solo.close()
    if stop.interrupted:
        raise typer.Exit(130)


@app.command()
def board(
    link: Annotated[Path | None, typer.Option(help="Name for the pseudo-terminal.")] = None,
    print_port: Annotated[bool, typer.Option("--print-port", help="Print the pseudo-terminal's name.")] = False,
) -> None:
    """Serve one OpenEVSE board alone, with nothing in its socket."""
    stop = _stop_on_signals()
    try:
        terminal = Terminal(link)
    except OSError as error:
        _fail(f"The board cannot be served: {error.strerror or error}.")
    if print_port:
        print(terminal.name, flush=True)
    try:
        run_board(terminal, World(1, int(time.time())), _world_ms(), stop.event)
    finally:
        terminal.close()
    if stop.interrupted:
        raise typer.Exit(130)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
