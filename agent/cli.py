"""`evse-agent`: the technician's and systemd's way in. Every command says what, where and what to do next.

Exit codes: 0 all is well; 2 the configuration or the command is wrong; 3 something needed is not there (port, meter,
board, journal, agent); 4 the utility refused. Only `run` keeps running; the others read files or ask the running agent.
"""

import json
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.clocks import Clocks
from agent.config import AgentConfig, load
from agent.errors import CONFIG, CONFIG_VARIABLE, MISSING, CommandError, guarded
from esci.reasons import sentence
from esci.units import dollars, kwh

ConfigPath = Annotated[Path, typer.Option("--config", "-c", help="agent.toml", envvar=CONFIG_VARIABLE)]
Json = Annotated[bool, typer.Option("--json", help="print JSON, for machines")]
app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="The edge agent of a smart EV charger.")


def main() -> None:
    """Every command; ends in SystemExit: a command's own code, or 2 for a wrong command line."""
    guarded(app)


def _journal_path(config: AgentConfig) -> Path:
    return Path(config.state_dir) / "journal.db"


@app.command()
def run(config: ConfigPath = CONFIG) -> None:
    """Run the agent until it is told to stop (SIGTERM). Started by systemd; logs JSON lines to standard error."""
    from agent.begin import begin

    begun = begin(config)
    from agent.runtime import run as run_agent

    run_agent(config, begun)


@app.command()
def version() -> None:
    """Print the version."""
    print(f"plugbind {installed_version('plugbind')}")


@app.command()
def check(config: ConfigPath = CONFIG, probe: Annotated[bool, typer.Option(help="speak with meter and board")] = True,
          as_json: Json = False) -> None:
    """Print the configuration in force, and speak once with meter and board."""
    settings = load(config)
    from agent.checks import check_all

    findings = check_all(settings, probe)
    if as_json:
        print(json.dumps({"config": settings.model_dump(), "findings": [asdict(finding) for finding in findings]}))
    else:
        for section, values in settings.model_dump().items():
            print(f"[{section}] {_pairs(values)}" if isinstance(values, dict) else _pairs({section: values}))
        for finding in findings:
            print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.subject}: {finding.text}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(MISSING)


def _pairs(values: dict[str, Any]) -> str:
    """The section on one line, as it may stand in agent.toml; `-` for what is not set."""
    return "  ".join(f"{name} = {'-' if value is None else json.dumps(value)}" for name, value in values.items())


@app.command()
def commission(
    code: Annotated[str, typer.Option(envvar="PLUGBIND_CODE", prompt="Commissioning code", hide_input=True, help=(
        "what `evse-cloud device token` printed; in PLUGBIND_CODE or at the prompt no other user sees it"))],
    meter_port: Annotated[str, typer.Option(help="meter: serial device or host:port")],
    board_port: Annotated[str, typer.Option(help="pilot board: serial device")],
    circuit_max_a: Annotated[int, typer.Option(min=6, max=80, help="continuous rating of the circuit, A")],
    phases: Annotated[int, typer.Option(min=1, max=3, help="1 or 3")] = 1,
    meter_model: Annotated[str, typer.Option(help="file name in agent/meters")] = "eastron_sdm630",
    meter_unit: Annotated[int, typer.Option(min=1, max=247, help="Modbus unit")] = 1,
    state_dir: Annotated[Path, typer.Option(help="journal, keys, status socket")] = Path("/var/lib/plugbind"),
    device: Annotated[str, typer.Option(help="wished name; the utility chooses one otherwise")] = "",
    config: ConfigPath = CONFIG,
    as_json: Json = False,
) -> None:
    """Make this charger's key, have it certified by the utility and write agent.toml."""
    from agent.adapters.commissioning import Answers
    from agent.adapters.commissioning import commission as commission_device

    answers = Answers(circuit_max_ma=circuit_max_a * 1000, meter_model=meter_model, meter_port=meter_port,
                      board_port=board_port, phases=phases, meter_unit_id=meter_unit)
    outcome = commission_device(code, answers, state_dir, config, device)
    if as_json:
        print(json.dumps(asdict(outcome)))
        return
    print(f"commissioned as {outcome.device} at premises {outcome.premises}; broker {outcome.host}:{outcome.port}")
    print(f"configuration {config}, keys {state_dir / 'keys'}")
    print("not checked yet: meter, board and contactor: run `evse-agent check` next")


@app.command()
def status(config: ConfigPath = CONFIG, as_json: Json = False) -> None:
    """Show what the running agent sees: pilot, contactor, limit, binding and why, meter, journal."""
    from agent.adapters.status import ask

    text = ask(Path(load(config).state_dir) / "status.sock")
    if as_json:
        print(text)
        return
    state = json.loads(text)
    power_w = "unavailable" if state["power_w"] is None else f"{state['power_w']} W"
    register = "unavailable" if state["register_wh"] is None else f"{kwh(state['register_wh'])} kWh"
    why = f": {sentence(state['reason'])}" if state["reason"] else ""
    print(f"device    {state['device']}  at {state['at']}  clock {state['clock']}")
    print(f"pilot     {state['pilot']}  contactor {state['contactor']}  "
          f"limit {state['limit_ma'] / 1000:g} A ({state['limit_source']})")
    print(f"binding   {state['binding'] or 'no vehicle'}{why}")
    print(f"meter     {power_w}, register {register}")
    print(f"journal   {state['journal_waiting']} records wait for the utility")
    for fault in state["faults"]:
        print(f"fault     {fault}")


@app.command()
def sessions(config: ConfigPath = CONFIG, as_json: Json = False) -> None:
    """List the sessions in the journal, oldest first."""
    from agent.adapters.journalview import sessions as read_sessions

    rows = read_sessions(_journal_path(load(config)))
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{'session':34}{'began':22}{'ended':22}{'kWh':>9}{'USD':>8}  rate")
    for row in rows:
        energy = "unknown" if row.energy_wh is None else kwh(row.energy_wh)
        amount = "" if row.receipt_cents is None else dollars(row.receipt_cents)
        rate = row.program if row.program else f"default: {sentence(row.rate_reason)}" if row.rate_reason else ""
        rate += "  (unmetered: the meter was silent)" if row.unmetered else ""
        print(f"{row.session:34}{row.began_at:22}{row.ended_at or 'charging':22}{energy:>9}{amount:>8}  {rate}")


@app.command()
def receipt(session: Annotated[str, typer.Argument(help="session id; the last one when left out")] = "",
            config: ConfigPath = CONFIG, as_json: Json = False) -> None:
    """Print the receipt of a session, computed here with the utility's own arithmetic."""
    from agent.receipts import read_receipt

    found = read_receipt(_journal_path(load(config)), session)
    if found is None:
        raise CommandError(f"no session {session or 'at all'} in the journal: see `evse-agent sessions`", MISSING)
    print(json.dumps(found.as_json()) if as_json else found.as_text())


@app.command()
def clear_faults(config: ConfigPath = CONFIG) -> None:
    """Say that a person has looked: end a weld or bypass fault. Stop the agent first."""
    from agent.faults import clear_faults as clear

    cleared = clear(_journal_path(load(config)), Clocks("").now())
    for text in cleared:
        print(f"cleared: {text}")
    print("start the agent again" if cleared else "no fault is latched")
