"""What enrolment knows, and the checks that need no database (P1-B1, P1-S1.1, P1-S1.2). Pure."""

import re
from dataclasses import dataclass
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from esci.ids import check_vin
from esci.messages import INTERVALS_S
from esci.reasons import SENTENCES, Reason

TOKEN_MINUTES_LIMIT = 24 * 60
BINDING_WAIT_LIMIT_S = 3600
SERVICE_VOLTAGES_V = (120, 208, 240, 277, 400, 480)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_RESERVED = re.compile(r"(gateway|observer|broker|api)([-.].*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Account:
    """A customer's account. A closed one takes no vehicle, premises or charger."""

    account_id: str
    holder: str
    open: bool


@dataclass(frozen=True, slots=True)
class Premises:
    """Where charging happens, and how its customer wants it."""

    premises_id: str
    account_id: str
    served: bool
    timezone: str
    default_plan: str
    interval_s: int
    binding_wait_s: int
    charge_without_binding: bool
    guests_allowed: bool


@dataclass(frozen=True, slots=True)
class Pev:
    """An enrolled vehicle and the program that it charges on."""

    pev_id: str
    account_id: str
    program: str
    plan: str
    suspended: bool


@dataclass(frozen=True, slots=True)
class Device:
    """A charger, the premises it is installed at and the key that it signs with."""

    device_id: str
    premises_id: str
    kid: str
    public_pem: str
    revoked: bool


@dataclass(frozen=True, slots=True)
class Program:
    """A program that a vehicle can be enrolled in, and the rate plan behind it."""

    code: str
    plan: str


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of what was asked of enrolment and what became of it: `done` or a reason."""

    at: str
    actor: str
    action: str
    subject: str
    outcome: str
    detail: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The utility's no; nothing but an audit entry was written."""

    reason: Reason
    detail: str = ""

    @property
    def sentence(self) -> str:
        """The reason's sentence, with the detail where there is one."""
        return f"{SENTENCES[self.reason]} {self.detail}".rstrip()


@dataclass(frozen=True, slots=True)
class AccountForm:
    """What a customer gives for an account."""

    account_id: str
    holder: str
    email: str


@dataclass(frozen=True, slots=True)
class PremisesForm:
    """What is said of premises, at first and at each change."""

    premises_id: str
    account_id: str
    address: str
    timezone: str
    default_plan: str
    service_voltage_v: int = 240
    interval_s: int = 900
    binding_wait_s: int = 60
    charge_without_binding: bool = True
    guests_allowed: bool = True
    served: bool = True


@dataclass(frozen=True, slots=True)
class PevForm:
    """What a customer gives for a vehicle (P1-S1.1); premises_id None where it shall not be checked."""

    vin: str
    account_id: str
    program: str
    premises_id: str | None = None


def check_account(form: AccountForm) -> Refused | None:
    """Why the form cannot stand; None when it can."""
    if not is_name(form.account_id):
        return _malformed("account id", form.account_id)
    if not _is_text(form.holder, 120):
        return Refused(Reason.MALFORMED, "The holder's name must be 1 to 120 printable characters.")
    if not _is_text(form.email, 254) or not re.fullmatch(r"[^@\s]+@[^@\s]+", form.email):
        return Refused(Reason.MALFORMED, "The e-mail address must read NAME@HOST.")
    return None


def check_premises(form: PremisesForm) -> Refused | None:
    """Why the form cannot stand; None when it can. Plans are checked by the service."""
    if not is_name(form.premises_id):
        return _malformed("premises id", form.premises_id)
    if not _is_text(form.address, 200):
        return Refused(Reason.MALFORMED, "The address must be 1 to 200 printable characters.")
    if not _is_timezone(form.timezone):
        return Refused(Reason.MALFORMED, f"{form.timezone[:64]!r} is not a time zone such as America/Los_Angeles.")
    if form.interval_s not in INTERVALS_S:
        return Refused(Reason.INTERVAL_NOT_ALLOWED)
    if not 0 <= form.binding_wait_s <= BINDING_WAIT_LIMIT_S:
        return Refused(Reason.MALFORMED, f"The wait for a binding must be 0 to {BINDING_WAIT_LIMIT_S} seconds.")
    if form.service_voltage_v not in SERVICE_VOLTAGES_V:
        return Refused(Reason.MALFORMED, f"The service voltage must be one of {SERVICE_VOLTAGES_V} volts.")
    return None


def read_vin(text: str) -> str | Refused:
    """The VIN in upper case, or a refusal that names the wrong position (P1-S1.1)."""
    try:
        return check_vin(text[:64])
    except ValueError as error:
        return Refused(Reason.BAD_VIN, f"{error}.")


def check_device_id(text: str) -> Refused | None:
    """Why a charger cannot bear this id; None when it can. Names of the utility's services are not free."""
    if not is_name(text) or _RESERVED.fullmatch(text):
        return _malformed("device id", text)
    return None


def is_name(text: str) -> bool:
    """True when the text can stand in a topic and a certificate (`esci.ids.Name`)."""
    return _NAME.fullmatch(text) is not None


def _malformed(what: str, text: str) -> Refused:
    return Refused(
        Reason.MALFORMED,
        f"{text[:64]!r} cannot be a {what}: 1 to 64 letters, digits, dots, dashes, underscores; no service's name.",
    )


def _is_text(text: str, limit: int) -> bool:
    return 0 < len(text.strip()) <= limit and text.isprintable()


def _is_timezone(text: str) -> bool:
    if not re.fullmatch(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", text):
        return False
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True
