"""`evse-hil`: benches and the demonstration. A composition root.

Exit codes: 0 all holds, 1 not, 2 bad input, 130 stopped.
"""

import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from hil.demo import Story, facts
from hil.plant import Plant, environment
from hil.processes import BenchError, Crew, Ear, Heard
from hil.show import LiveShow, PlainShow, Show

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Benches for chargers, and the demonstration.")


@app.callback()
def _app() -> None:
    """Benches for chargers, and the demonstration."""


@app.command()
def demo(
    plain: Annotated[bool, typer.Option(help="Lines instead of the live view.")] = False,
    keep: Annotated[Path | None, typer.Option(help="Folder to work in and to leave behind, with all logs.")] = None,
    scale: Annotated[int, typer.Option(min=1, max=120, help="World seconds in a real one.")] = 60,
    seed: Annotated[int, typer.Option(help="Repeats the simulated world.")] = 7,
) -> None:
    """Show the main job in about 90 seconds: plug in, bind, meter, sync, bill."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        folder = (keep or Path(tempfile.mkdtemp(prefix="plugbind-demo-"))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"evse-hil: {keep or 'the temporary folder'} cannot be made: {error.strerror}.", file=sys.stderr)
        raise typer.Exit(2) from error
    ok = False
    try:
        ok = _tell(folder, plain or not sys.stdout.isatty(), scale, seed)
    except BenchError as error:
        print(f"evse-hil: {error}. Logs are in {folder}.", file=sys.stderr)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        print("evse-hil: stopped; no process is left behind.", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        if ok and keep is None:
            shutil.rmtree(folder)
    print("\nEverything holds." if ok else f"\nNot everything holds. Logs are in {folder}.")
    raise typer.Exit(0 if ok else 1)


def _tell(folder: Path, plain: bool, scale: int, seed: int) -> bool:
    listeners: list[Show] = []

    def tell(line: Heard) -> None:
        for one in listeners:
            one.heard(line)

    ear = Ear(tell)
    with Crew(ear, folder, environment()) as crew:
        plant = Plant(folder, crew, environment())
        show: Show = PlainShow() if plain else LiveShow(lambda: facts(plant))
        listeners.append(show)
        with show:
            return Story(plant, crew, ear, show, scale, seed).run()


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
