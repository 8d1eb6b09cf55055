"""`evse-cloud`: the utility's programs and its desk. A composition root: it reads the real clock for the services.

Exit codes: 0 done, 2 input or configuration, 3 something needed is unavailable, 4 the utility refuses. Every failure is
one sentence on standard error. Commands decide nothing themselves; what they print comes from the domains' services.
Money and metering are imported inside the commands, so that a desk command starts fast.
"""

import getpass
import importlib
import json
import logging
import os
import pwd
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlalchemy.orm import Session

from cloud import brokerconf, logs
from cloud.config import STATE_DEFAULT, STATE_VARIABLE, CloudConfig, load, open_database
from cloud.db import DatabaseUnavailableError, create_schema, transaction
from cloud.enrolment import service as enrolment
from cloud.enrolment.core import (
    AccountForm,
    Pev,
    PevForm,
    PremisesForm,
    Refused,
    read_vin,
)
from cloud.errors import CloudError, ConfigError, InputError, RefusedError, UnavailableError
from cloud.pki import Pki, export
from cloud.printing import show
from cloud.rating.plans import load_plans

TABLES = ("enrolment", "rating", "binding", "metering", "ledger")
UNAVAILABLE, BUG = 3, 1

app = typer.Typer(help="The utility behind Plugbind chargers.", no_args_is_help=True, add_completion=False,
                  pretty_exceptions_enable=False)
enrol_app = typer.Typer(help="Enrol customers, premises and vehicles.", no_args_is_help=True)
device_app = typer.Typer(help="Commission, list and revoke chargers.", no_args_is_help=True)
app.add_typer(enrol_app, name="enrol")
app.add_typer(device_app, name="device")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Value = TypeVar("Value")


@app.callback()
def main_options(
    context: typer.Context,
    state: Annotated[Path, typer.Option(help="State folder: database, keys, cloud.toml.", envvar=STATE_VARIABLE)] =
    STATE_DEFAULT,
) -> None:
    """The utility behind Plugbind chargers."""
    context.obj = state


# ---- set-up and processes ----


@app.command()
def init(context: typer.Context, as_json: Json = False) -> None:
    """Make keys, certificates and database, and load the programs. Safe to repeat; renews service certificates."""
    config = _config(context)
    try:
        config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{config.state} cannot be made: {error.strerror}") from error
    pki = Pki(config.pki)
    made = pki.create(config.certificate_names, _now())
    engine = _schema(config)
    with _work(engine) as session:
        enrolment.load_programs(session, _plans())
        programs = enrolment.list_programs(session)
    show({"state": str(config.state), "made": made, "programs": [asdict(program) for program in programs],
           "utility_ca_sha256": pki.utility_ca_sha256()}, as_json)


@app.command()
def migrate(context: typer.Context) -> None:
    """Make every table that is missing."""
    _schema(_config(context))


@app.command()
def api(context: typer.Context) -> None:
    """Serve the HTTP API, on which chargers are commissioned."""
    from cloud import main as api_process

    logs.start()
    api_process.run(_config(context))


@app.command()
def broker(context: typer.Context) -> None:
    """Serve MQTT 3.1.1 over mutual TLS: the embedded broker. For production see broker-config."""
    from cloud import broker as broker_process

    logs.start()
    broker_process.run(_config(context))


@app.command()
def gateway(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Service name; each running gateway needs its own.")] = "gateway",
) -> None:
    """Take the chargers' messages in and answer them."""
    from cloud import gateway as gateway_process

    gateway_process.run(_config(context), name)


@app.command()
def broker_config(context: typer.Context, out: Annotated[Path, typer.Option(help="Folder for the files.")]) -> None:
    """Write mosquitto.conf and acl for Debian's mosquitto 2.0, for the services that have a certificate by now."""
    config = _config(context)
    pki = Pki(config.pki)
    out = out.absolute()
    owner = pwd.getpwuid(os.getuid()).pw_name
    plan = brokerconf.MosquittoPlan(out, config.broker.bind, config.broker.port, pki.service("broker"), pki.crl, owner)
    export(out, {"mosquitto.conf": brokerconf.mosquitto_conf(plan).encode(),
                 "acl": brokerconf.mosquitto_acl(pki.services()).encode()})
    export(out / "data", {})
    typer.echo(shlex.join(["mosquitto", "-c", str(out / "mosquitto.conf")]))


@app.command()
def certificate(
    context: typer.Context,
    service: Annotated[str, typer.Option(help="gateway, observer, or one of these with -SUFFIX.")],
    out: Annotated[Path, typer.Option(help="Folder for service.key, service.crt and ca.crt.")],
) -> None:
    """Issue a client certificate to a service; a fresh one each time."""
    files = Pki(_config(context).pki).make_client(service, _now())
    export(out, {f"{service}.key": files.key.read_bytes(), f"{service}.crt": files.certificate.read_bytes(),
                 "ca.crt": files.authority.read_bytes()})
    typer.echo(f"{out / service}.crt")


@app.command()
def pev_certificate(
    context: typer.Context,
    vin: Annotated[str, typer.Option(help="The vehicle's VIN.")],
    cert_dir: Annotated[Path, typer.Option(help="Folder for pev.key, pev.crt and ca.crt.")],
) -> None:
    """Issue a vehicle certificate without enrolling the vehicle, as its maker would."""
    read = _value(read_vin(vin))
    Pki(_config(context).pki).make_vehicle(read, cert_dir, _now())
    typer.echo(f"{cert_dir / 'pev.crt'}")


# ---- enrol ----


@enrol_app.command("account")
def enrol_account(
    context: typer.Context,
    account_id: Annotated[str, typer.Option("--id", help="Account id.")],
    holder: Annotated[str | None, typer.Option(help="Name of the account's holder.")] = None,
    email: Annotated[str | None, typer.Option(help="Where bills go.")] = None,
    change: Annotated[str | None, typer.Option(help="`close` or `reopen` an account that is there.")] = None,
    as_json: Json = False,
) -> None:
    """Open an account, or close and reopen one."""
    if change not in (None, "close", "reopen"):
        raise InputError(f"--change must be close or reopen, not {change!r}")
    with _work(_database(context)) as session:
        if change is not None:
            found = enrolment.set_account_open(session, account_id, change == "reopen", _asked())
        elif holder is None or email is None:
            raise InputError("a new account needs --holder and --email")
        else:
            found = enrolment.enrol_account(session, AccountForm(account_id, holder, email), _asked())
    show(_value(found), as_json)


@enrol_app.command("premises")
def enrol_premises(
    context: typer.Context,
    premises_id: Annotated[str, typer.Option("--id", help="Premises id.")],
    account: Annotated[str | None, typer.Option(help="Account that the premises belong to.")] = None,
    address: Annotated[str | None, typer.Option(help="Postal address.")] = None,
    timezone: Annotated[str | None, typer.Option(help="For example America/Los_Angeles.")] = None,
    default_plan: Annotated[str | None, typer.Option(help="Rate plan without a binding.")] = None,
    service_voltage_v: Annotated[int | None, typer.Option(help="Service voltage, V (240).")] = None,
    interval_min: Annotated[int | None, typer.Option(help="1, 5, 15, 30 or 60 minutes (15).")] = None,
    binding_wait_s: Annotated[int | None, typer.Option(help="Wait for a binding, s (60).")] = None,
    charge_without_binding: Annotated[
        bool | None, typer.Option("--charge-without-binding/--no-charge-without-binding", help="(yes)")] = None,
    guests: Annotated[bool | None, typer.Option("--guests/--no-guests", help="May guests charge here? (yes)")] = None,
    served: Annotated[
        bool | None, typer.Option("--served/--not-served", help="Does the utility serve here? (yes)")] = None,
    change: Annotated[bool, typer.Option("--change", help="Change what is given of premises that are there.")] = False,
    as_json: Json = False,
) -> None:
    """Enrol premises, or change their parameters."""
    given: dict[str, Any] = {name: value for name, value in {
        "account_id": account, "address": address, "timezone": timezone, "default_plan": default_plan,
        "service_voltage_v": service_voltage_v, "interval_s": None if interval_min is None else interval_min * 60,
        "binding_wait_s": binding_wait_s, "charge_without_binding": charge_without_binding,
        "guests_allowed": guests, "served": served,
    }.items() if value is not None}
    with _work(_database(context)) as session:
        if change:
            form = enrolment.premises_form(session, premises_id)
            if form is None:
                raise RefusedError(f"there are no premises {premises_id!r}: enrol them without --change")
            found = enrolment.change_premises(session, replace(form, **given), _plans(), _asked())
        else:
            missing = [name for name in ("account_id", "address", "timezone", "default_plan") if name not in given]
            if missing:
                options = ", ".join("--" + name.removesuffix("_id").replace("_", "-") for name in missing)
                raise InputError(f"new premises need {options}")
            form = PremisesForm(premises_id=premises_id, **given)
            found = enrolment.enrol_premises(session, form, _plans(), _asked())
    show(_value(found), as_json)


@enrol_app.command("pev")
def enrol_pev(
    context: typer.Context,
    vin: Annotated[str, typer.Option(help="The vehicle's VIN, its PEV I.D.")],
    account: Annotated[str | None, typer.Option(help="Account that pays for it.")] = None,
    program: Annotated[str | None, typer.Option(help="Program, for example PRIME.")] = None,
    premises: Annotated[str | None, typer.Option(help="Premises, to be checked against the account.")] = None,
    cert_dir: Annotated[Path | None, typer.Option(help="Folder for pev.key, pev.crt and ca.crt.")] = None,
    suspend: Annotated[bool | None, typer.Option("--suspend/--resume", help="Suspend or resume it.")] = None,
    as_json: Json = False,
) -> None:
    """Enrol a vehicle and issue its certificate, or suspend and resume one."""
    config = _config(context)
    with _work(open_database(config)) as session:
        found: Pev | Refused
        if suspend is not None:
            found = enrolment.set_suspended(session, vin, suspend, _asked())
        elif account is None or program is None:
            raise InputError("a new vehicle needs --account and --program")
        else:
            found = enrolment.enrol_pev(session, PevForm(vin, account, program, premises), _asked())
    pev = _value(found)
    if cert_dir is not None:
        Pki(config.pki).make_vehicle(pev.pev_id, cert_dir, _now())
    show(pev, as_json)


# ---- device ----


@device_app.command("token")
def device_token(
    context: typer.Context,
    premises: Annotated[str, typer.Option(help="Premises that the charger is installed at.")],
    minutes: Annotated[int, typer.Option(help="How long the token may be used, minutes of real time.")] = 10,
    as_json: Json = False,
) -> None:
    """Make a commissioning code: one charger, these premises, a few minutes. It is shown once."""
    config = _config(context)
    pin = Pki(config.pki).utility_ca_sha256()
    with _work(open_database(config)) as session:
        made = enrolment.make_token(session, premises, minutes, _asked())
    token = _value(made)
    code = f"{config.api_url}#{token.token}#{pin}"
    fields = {"token": token.token, "api": config.api_url, "ca_sha256": pin, "premises": token.premises_id,
              "expires_at": token.expires_at, "code": code}
    typer.echo(json.dumps(fields) if as_json else code)


@device_app.command("list")
def device_list(context: typer.Context, as_json: Json = False) -> None:
    """List the chargers."""
    with _work(_database(context)) as session:
        found = enrolment.list_devices(session)
    rows = [{name: value for name, value in asdict(device).items() if name != "public_pem"} for device in found]
    show(rows, as_json)


@device_app.command("revoke")
def device_revoke(
    context: typer.Context, device_id: Annotated[str, typer.Argument(help="The charger's id.")], as_json: Json = False
) -> None:
    """Revoke a charger for good: its certificate at the broker, its key at the gateway."""
    config = _config(context)
    engine = open_database(config)
    with _work(engine) as session:
        found = enrolment.revoke_device(session, device_id, _asked())
    device = _value(found)
    with _work(engine) as session:  # while this holds, no other revocation can write an older list over ours
        Pki(config.pki).write_crl(enrolment.revoked_serials(session), _now())
    show({"device_id": device.device_id, "revoked": device.revoked}, as_json)


# ---- what the utility knows ----


@app.command()
def bill(
    context: typer.Context,
    premises: Annotated[str, typer.Option(help="Premises to be billed.")],
    as_json: Json = False,
) -> None:
    """Print the statement of some premises."""
    from cloud.billing import service as billing
    from cloud.billing.core import as_text

    with _work(_database(context)) as session:
        if enrolment.get_premises(session, premises) is None:
            raise RefusedError(f"there are no premises {premises!r}: see what was enrolled")
        found = billing.statement(session, premises)
    if as_json:
        show(found, as_json)
    else:
        typer.echo(as_text(found))


@app.command()
def exceptions(context: typer.Context, as_json: Json = False) -> None:
    """List what could not be billed, and why."""
    from cloud.metering import service as metering

    _query(context, metering.exceptions, as_json)


@app.command()
def trial_balance(context: typer.Context, as_json: Json = False) -> None:
    """Print the ledger's accounts; debits and credits are equal."""
    from cloud.ledger import service as ledger

    _query(context, ledger.trial_balance, as_json)


@app.command()
def reconcile(context: typer.Context, as_json: Json = False) -> None:
    """Compare metered, posted and waiting energy."""
    from cloud.billing import service as billing

    _query(context, billing.reconciliation, as_json)


@app.command()
def bindings(context: typer.Context, as_json: Json = False) -> None:
    """List the bindings."""
    from cloud.binding import service as binding

    _query(context, binding.bindings, as_json)


@app.command()
def audit(context: typer.Context, as_json: Json = False) -> None:
    """List what was asked of enrolment and what became of it."""
    _query(context, enrolment.audit_entries, as_json)


# ---- shared by the commands ----


def _now() -> datetime:
    return datetime.now(UTC)


def _asked() -> enrolment.Asked:
    try:
        actor = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        actor = f"uid{os.getuid()}"
    return enrolment.Asked(actor[:64], _now())


def _config(context: typer.Context) -> CloudConfig:
    state = context.obj
    assert isinstance(state, Path)
    return load(state)


def _database(context: typer.Context) -> Engine:
    return open_database(_config(context))


def _plans() -> frozenset[str]:
    return frozenset(code for code, _ in load_plans())


def _schema(config: CloudConfig) -> Engine:
    """The engine, once every domain's tables are there."""
    for domain in TABLES:
        importlib.import_module(f"cloud.{domain}.tables")
    engine = open_database(config)
    with _database_errors():
        create_schema(engine)
    return engine


@contextmanager
def _work(engine: Engine) -> Iterator[Session]:
    """One transaction, its errors as sentences."""
    with _database_errors(), transaction(engine) as session:
        yield session


@contextmanager
def _database_errors() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except (DatabaseUnavailableError, DatabaseError) as error:
        cause = str(error.orig) if isinstance(error, DatabaseError) else str(error)
        first = (cause.strip().splitlines() or ["?"])[0]
        if "no such table" in first or ("relation" in first and "does not exist" in first):
            raise ConfigError(f"the database has no tables yet ({first}): run `evse-cloud init`") from error
        if "unable to open" in first:
            raise UnavailableError(f"the database cannot be opened ({first}): run `evse-cloud init`") from error
        raise UnavailableError(f"the database cannot be used now: {first}; nothing was written, try again") from error


def _value(found: Value | Refused) -> Value:
    """What was found. Raises RefusedError with the reason's sentence; its audit entry is committed by now."""
    if isinstance(found, Refused):
        raise RefusedError(f"refused ({found.reason.value}): {found.sentence}")
    return found


def _query(context: typer.Context, ask: Callable[[Session], object], as_json: bool) -> None:
    with _work(_database(context)) as session:
        found = ask(session)
    show(found, as_json)


def main() -> None:
    """The console entry: any failure is one sentence on standard error and an exit code."""
    os.umask(0o077)
    code = 0
    try:
        app()  # ends in SystemExit: 0, or 2 for a wrong command line
    except CloudError as error:
        code = _fail(f"evse-cloud: {error}", error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except DatabaseUnavailableError as error:
        code = _fail(f"evse-cloud: the database cannot be used now: {error}", UNAVAILABLE)
    except Exception as error:
        logging.getLogger("cloud").exception("a bug ended the program")
        code = _fail(f"evse-cloud: a bug, please report it: {type(error).__name__}: {error}", BUG)
    sys.exit(code)


def _fail(text: str, code: int) -> int:
    typer.echo(text, err=True)
    return code


if __name__ == "__main__":
    main()
