"""What enrolment does for the rest of the utility: look up, enrol, commission, suspend, revoke (P1-B1, P1-S1.1, S1.2).

Every function takes an open session first and never commits. An expected no is a `Refused`; each asking leaves one
audit entry, and a refusal leaves nothing else. Times are real time: commissioning happens in the real world.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from cloud.enrolment import store
from cloud.enrolment.core import (
    TOKEN_MINUTES_LIMIT,
    Account,
    AccountForm,
    AuditEntry,
    Device,
    Pev,
    PevForm,
    Premises,
    PremisesForm,
    Program,
    Refused,
    check_account,
    check_device_id,
    check_premises,
    read_vin,
)
from cloud.enrolment.tables import AccountRow, DeviceRow, PevRow, PremisesRow, TokenRow
from cloud.errors import InputError
from cloud.security import certificate_pem, public_pem, read_csr
from esci.reasons import Reason
from esci.seal import key_id
from esci.units import format_utc, parse_utc

Certifier = Callable[[str, ec.EllipticCurvePublicKey], x509.Certificate]
Outcome = TypeVar("Outcome")
PROGRAMS: Mapping[str, str] = {"PRIME": "SCE-TOU-D-PRIME"}


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks, and when (real time)."""

    actor: str
    now: datetime


@dataclass(frozen=True, slots=True)
class Token:
    """A commissioning token, shown once; only its hash is kept."""

    token: str
    premises_id: str
    expires_at: str


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """What a charger sends to be enrolled; device_id None lets the utility choose."""

    token: str
    csr_pem: str
    device_id: str | None


@dataclass(frozen=True, slots=True)
class EnrolledDevice:
    """The charger as it is now known, and its certificate."""

    device: Device
    certificate_pem: str


# ---- look-ups ----


def get_account(session: Session, account_id: str) -> Account | None:
    """The account; None when there is none."""
    return store.account(session, account_id)


def get_premises(session: Session, premises_id: str) -> Premises | None:
    """The premises; None when there are none."""
    return store.premises(session, premises_id)


def get_pev(session: Session, vin: str) -> Pev | None:
    """The vehicle; None when it is not enrolled."""
    return store.pev(session, vin)


def get_device(session: Session, device_id: str) -> Device | None:
    """The charger, revoked or not; None when there is none."""
    return store.device(session, device_id)


def device_by_kid(session: Session, kid: str) -> Device | None:
    """The charger that signs with this key; None when there is none."""
    return store.device_by_kid(session, kid)


def list_devices(session: Session) -> list[Device]:
    """Every charger by id."""
    return store.devices(session)


def list_programs(session: Session) -> list[Program]:
    """Every program by code."""
    return store.programs(session)


def audit_entries(session: Session) -> list[AuditEntry]:
    """The whole audit, oldest first."""
    return store.audit(session)


def revoked_serials(session: Session) -> list[int]:
    """Serial numbers that the revocation list must name."""
    return store.revoked_serials(session)


# ---- customers, premises, vehicles ----


def load_programs(session: Session, plans: Collection[str]) -> None:
    """The utility's programs are there. Raises InputError when one names a plan that the utility lacks."""
    for code, plan in PROGRAMS.items():
        if plan not in plans:
            raise InputError(f"program {code} names plan {plan}, which is not in cloud/rating/plans")
        store.put_program(session, Program(code, plan))


def enrol_account(session: Session, form: AccountForm, asked: Asked) -> Account | Refused:
    """The new account, or why there is none."""
    refused = check_account(form)
    if refused is None and store.account(session, form.account_id) is not None:
        refused = Refused(Reason.ALREADY_ENROLLED)
    if refused is None and not _added(session, AccountRow(
        account_id=form.account_id, holder=form.holder.strip(), email=form.email.strip(), open=True,
        created_at=format_utc(asked.now),
    )):
        refused = Refused(Reason.ALREADY_ENROLLED)
    if refused is not None:
        return _audited(session, asked, "account", form.account_id, refused)
    return _audited(session, asked, "account", form.account_id, Account(form.account_id, form.holder.strip(), True))


def set_account_open(session: Session, account_id: str, is_open: bool, asked: Asked) -> Account | Refused:
    """The account, now open or closed."""
    store.set_account_open(session, account_id, is_open)
    found = store.account(session, account_id) or Refused(Reason.UNKNOWN_ACCOUNT)
    return _audited(session, asked, "account.open" if is_open else "account.close", account_id, found)


def enrol_premises(
    session: Session, form: PremisesForm, plans: Collection[str], asked: Asked
) -> Premises | Refused:
    """The new premises, or why there are none. `plans` are the rate plans of the utility."""
    refused = _premises_refusal(session, form, plans)
    if refused is None and store.premises(session, form.premises_id) is not None:
        refused = Refused(Reason.ALREADY_ENROLLED, "Use --change to change them.")
    if refused is None and not _added(session, _filled(PremisesRow(created_at=format_utc(asked.now)), form)):
        refused = Refused(Reason.ALREADY_ENROLLED)
    found = refused or store.premises(session, form.premises_id)
    assert found is not None
    return _audited(session, asked, "premises", form.premises_id, found)


def premises_form(session: Session, premises_id: str) -> PremisesForm | None:
    """The premises as a form to be changed and given back; None when there are none."""
    row = store.premises_row(session, premises_id)
    return None if row is None else PremisesForm(**{name: getattr(row, name) for name in PremisesForm.__slots__})


def change_premises(session: Session, form: PremisesForm, plans: Collection[str], asked: Asked) -> Premises | Refused:
    """The premises as the form says (P1-S1.4), or why they stay as they were. The account cannot be changed."""
    row = store.premises_row(session, form.premises_id)
    refused = _premises_refusal(session, form, plans)
    if row is None or row.account_id != form.account_id:
        refused = Refused(Reason.UNKNOWN_PREMISES)
    elif refused is None:
        _filled(row, form)
        session.flush()
    found = refused or store.premises(session, form.premises_id)
    assert found is not None
    return _audited(session, asked, "premises.change", form.premises_id, found)


def enrol_pev(session: Session, form: PevForm, asked: Asked) -> Pev | Refused:
    """The new vehicle on its program, or why it is not enrolled (P1-B1, P1-S1.1, P1-S1.2)."""
    vin = read_vin(form.vin)
    if isinstance(vin, Refused):
        return _audited(session, asked, "pev", form.vin, vin)
    refused = _account_refusal(session, form.account_id)
    program = store.program(session, form.program)
    if refused is None and form.premises_id is not None:
        refused = _served_refusal(session, form.premises_id, form.account_id)
    if refused is None and program is None:
        refused = Refused(Reason.NO_PROGRAM, f"{form.program[:64]!r} is not a program of the utility.")
    if refused is not None or program is None:
        return _audited(session, asked, "pev", vin, refused or Refused(Reason.NO_PROGRAM))
    row = PevRow(pev_id=vin, account_id=form.account_id, program=program.code, plan=program.plan, suspended=False,
                 created_at=format_utc(asked.now))
    if store.pev(session, vin) is not None or not _added(session, row):
        return _audited(session, asked, "pev", vin, Refused(Reason.ALREADY_ENROLLED))
    return _audited(session, asked, "pev", vin, Pev(vin, form.account_id, program.code, program.plan, False))


def set_suspended(session: Session, vin: str, suspended: bool, asked: Asked) -> Pev | Refused:
    """The vehicle, now suspended or not (P1-S2.5)."""
    read = read_vin(vin)
    action = "pev.suspend" if suspended else "pev.resume"
    if isinstance(read, Refused):
        return _audited(session, asked, action, vin, read)
    store.set_suspended(session, read, suspended)
    return _audited(session, asked, action, read, store.pev(session, read) or Refused(Reason.UNKNOWN_PEV))


# ---- chargers ----


def make_token(session: Session, premises_id: str, minutes: int, asked: Asked) -> Token | Refused:
    """A one-time token of 128 random bits for a charger at these premises."""
    if not 1 <= minutes <= TOKEN_MINUTES_LIMIT:
        raise InputError(f"a token lasts 1 to {TOKEN_MINUTES_LIMIT} minutes, not {minutes}")
    refused = _served_refusal(session, premises_id, None)
    if refused is not None:
        return _audited(session, asked, "token", premises_id, refused)
    text = secrets.token_urlsafe(16)
    made = Token(text, premises_id, format_utc(asked.now + timedelta(minutes=minutes)))
    session.add(TokenRow(token_sha256=_sha256(text), premises_id=premises_id, expires_at=made.expires_at))
    session.flush()
    return _audited(session, asked, "token", premises_id, made)


def enrol_device(
    session: Session, request: DeviceRequest, certify: Certifier, asked: Asked
) -> EnrolledDevice | Refused:
    """The charger with its certificate, or why it has none. A token buys one enrolment, of one key.

    The same token with the same key again gives the same charger again, while the token lasts: the answer may have
    been lost. A known key with a fresh token for its premises gets a new certificate under its old id.
    """
    subject = (request.device_id or "")[:64]
    try:
        public = read_csr(request.csr_pem)
    except InputError as error:
        return _audited(session, asked, "device", subject, Refused(Reason.MALFORMED, f"{error}."))
    found = _enrol_device(session, request, public, certify, asked.now)
    if isinstance(found, EnrolledDevice):
        subject = found.device.device_id
    return _audited(session, asked, "device", subject, found)


def revoke_device(session: Session, device_id: str, asked: Asked) -> Device | Refused:
    """The charger, now revoked for good; the caller writes the revocation list anew after the commit."""
    store.set_revoked(session, device_id)
    found = store.device(session, device_id) or Refused(Reason.UNKNOWN_DEVICE)
    return _audited(session, asked, "device.revoke", device_id, found)


def _enrol_device(
    session: Session, request: DeviceRequest, public: ec.EllipticCurvePublicKey, certify: Certifier, now: datetime
) -> EnrolledDevice | Refused:
    digest, kid, at = _sha256(request.token), key_id(public), format_utc(now)
    token = store.token(session, digest)
    if token is None or not hmac.compare_digest(token.token_sha256, digest):
        return Refused(Reason.TOKEN_UNKNOWN)
    if now >= parse_utc(token.expires_at):
        return Refused(Reason.TOKEN_EXPIRED)
    known = store.device_by_kid(session, kid)
    if token.used_at is not None:
        if known is None or known.device_id != token.used_by or known.revoked:
            return Refused(Reason.TOKEN_USED)
        return EnrolledDevice(known, store.certificate_pem(session, known.device_id))
    refused = _served_refusal(session, token.premises_id, None) or _key_refusal(known, token.premises_id)
    if refused is not None:
        return refused
    device_id = known.device_id if known is not None else request.device_id or f"evse-{secrets.token_hex(4)}"
    if known is None:
        refused = check_device_id(device_id)
        if refused is not None:
            return refused
        if store.device(session, device_id) is not None:
            return Refused(Reason.ALREADY_ENROLLED, f"Another charger is called {device_id}.")
    try:
        with session.begin_nested():
            if not store.use_token(session, digest, at, device_id):
                return Refused(Reason.TOKEN_USED)
            if known is None:
                session.add(DeviceRow(
                    device_id=device_id, premises_id=token.premises_id, kid=kid, public_pem=public_pem(public),
                    certificate_pem="", revoked=False, created_at=at,
                ))
                session.flush()
            certificate = certify(device_id, public)
            store.put_certificate(session, device_id, certificate.serial_number, certificate_pem(certificate), at)
    except IntegrityError:  # another request took the id or the key between our look and our write
        return Refused(Reason.ALREADY_ENROLLED)
    found = store.device(session, device_id)
    assert found is not None
    return EnrolledDevice(found, certificate_pem(certificate))


# ---- shared by the above ----


def _key_refusal(known: Device | None, premises_id: str) -> Refused | None:
    if known is None:
        return None
    if known.revoked:
        return Refused(Reason.DEVICE_REVOKED)
    if known.premises_id != premises_id:
        return Refused(Reason.ALREADY_ENROLLED, "The charger's key is enrolled at other premises.")
    return None


def _account_refusal(session: Session, account_id: str) -> Refused | None:
    found = store.account(session, account_id)
    if found is None:
        return Refused(Reason.UNKNOWN_ACCOUNT)
    return None if found.open else Refused(Reason.ACCOUNT_CLOSED)


def _served_refusal(session: Session, premises_id: str, account_id: str | None) -> Refused | None:
    """Why nothing may be enrolled at these premises; account_id None where any account will do."""
    found = store.premises(session, premises_id)
    if found is None or account_id not in (None, found.account_id):
        return Refused(Reason.UNKNOWN_PREMISES)
    if not found.served:
        return Refused(Reason.PREMISES_NOT_SERVED)
    return _account_refusal(session, found.account_id)


def _premises_refusal(session: Session, form: PremisesForm, plans: Collection[str]) -> Refused | None:
    refused = check_premises(form) or _account_refusal(session, form.account_id)
    if refused is None and form.default_plan not in plans:
        return Refused(Reason.UNKNOWN_TARIFF, f"Plans are: {', '.join(sorted(set(plans)))}.")
    return refused


def _filled(row: PremisesRow, form: PremisesForm) -> PremisesRow:
    for name in PremisesForm.__slots__:
        setattr(row, name, getattr(form, name))
    return row


def _added(session: Session, row: AccountRow | PremisesRow | PevRow) -> bool:
    """False when a constraint refused the row: someone else was faster."""
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        return False
    return True


def _audited(session: Session, asked: Asked, action: str, subject: str, outcome: Outcome) -> Outcome:
    """The outcome, once its audit entry is written."""
    refused = outcome if isinstance(outcome, Refused) else None
    store.add_audit(session, AuditEntry(
        format_utc(asked.now), _printable(asked.actor), action, _printable(subject),
        "done" if refused is None else refused.reason.value, "" if refused is None else _printable(refused.detail, 400),
    ))
    return outcome


def _printable(text: str, limit: int = 64) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:limit])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
