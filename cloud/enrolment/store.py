"""Every query of enrolment (STYLE 26: keys and constraints decide, not a look before). It must not decide or commit."""

from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from cloud.enrolment.core import Account, AuditEntry, Device, Pev, Premises, Program
from cloud.enrolment.tables import (
    AccountRow,
    AuditRow,
    CertificateRow,
    DeviceRow,
    PevRow,
    PremisesRow,
    ProgramRow,
    TokenRow,
)


def account(session: Session, account_id: str) -> Account | None:
    """The account; None when there is none."""
    row = session.get(AccountRow, account_id)
    return None if row is None else Account(row.account_id, row.holder, row.open)


def premises(session: Session, premises_id: str) -> Premises | None:
    """The premises; None when there are none."""
    row = session.get(PremisesRow, premises_id)
    if row is None:
        return None
    return Premises(
        row.premises_id, row.account_id, row.served, row.timezone, row.default_plan, row.interval_s,
        row.binding_wait_s, row.charge_without_binding, row.guests_allowed,
    )


def premises_row(session: Session, premises_id: str) -> PremisesRow | None:
    """The row, to be changed; None when there is none."""
    return session.get(PremisesRow, premises_id)


def pev(session: Session, pev_id: str) -> Pev | None:
    """The vehicle; None when it is not enrolled."""
    row = session.get(PevRow, pev_id)
    return None if row is None else Pev(row.pev_id, row.account_id, row.program, row.plan, row.suspended)


def device(session: Session, device_id: str) -> Device | None:
    """The charger; None when there is none."""
    return _device(session.get(DeviceRow, device_id))


def device_by_kid(session: Session, kid: str) -> Device | None:
    """The charger that signs with this key; None when there is none."""
    return _device(session.scalars(select(DeviceRow).where(DeviceRow.kid == kid)).one_or_none())


def devices(session: Session) -> list[Device]:
    """Every charger by id."""
    rows = session.scalars(select(DeviceRow).order_by(DeviceRow.device_id))
    return [found for row in rows if (found := _device(row)) is not None]


def certificate_pem(session: Session, device_id: str) -> str:
    """The charger's newest certificate. Raises KeyError when there is no such charger."""
    row = session.get(DeviceRow, device_id)
    if row is None:
        raise KeyError(device_id)
    return row.certificate_pem


def revoked_serials(session: Session) -> list[int]:
    """Serial numbers of all certificates of revoked chargers."""
    query = select(CertificateRow.serial).join(DeviceRow, DeviceRow.device_id == CertificateRow.device_id)
    return [int(serial, 16) for serial in session.scalars(query.where(DeviceRow.revoked))]


def program(session: Session, code: str) -> Program | None:
    """The program; None when there is none."""
    row = session.get(ProgramRow, code)
    return None if row is None else Program(row.code, row.plan)


def programs(session: Session) -> list[Program]:
    """Every program by code."""
    return [Program(row.code, row.plan) for row in session.scalars(select(ProgramRow).order_by(ProgramRow.code))]


def put_program(session: Session, found: Program) -> None:
    """The program is there with this plan."""
    session.merge(ProgramRow(code=found.code, plan=found.plan))


def token(session: Session, token_sha256: str) -> TokenRow | None:
    """The token with this hash, read anew; None when there is none."""
    return session.get(TokenRow, token_sha256, populate_existing=True)


def use_token(session: Session, token_sha256: str, at: str, device_id: str) -> bool:
    """True when this call, and no other, has used the token."""
    done = session.execute(
        update(TokenRow)
        .where(TokenRow.token_sha256 == token_sha256, TokenRow.used_at.is_(None))
        .values(used_at=at, used_by=device_id)
    )
    assert isinstance(done, CursorResult)
    return done.rowcount == 1


def put_certificate(session: Session, device_id: str, serial: int, pem: str, at: str) -> None:
    """The charger has one more certificate, and this is its newest."""
    session.execute(update(DeviceRow).where(DeviceRow.device_id == device_id).values(certificate_pem=pem))
    session.add(CertificateRow(serial=f"{serial:040x}", device_id=device_id, issued_at=at))
    session.flush()


def set_account_open(session: Session, account_id: str, is_open: bool) -> bool:
    """False when there is no such account."""
    return _set(session, AccountRow, account_id, open=is_open)


def set_suspended(session: Session, pev_id: str, suspended: bool) -> bool:
    """False when there is no such vehicle."""
    return _set(session, PevRow, pev_id, suspended=suspended)


def set_revoked(session: Session, device_id: str) -> bool:
    """False when there is no such charger."""
    return _set(session, DeviceRow, device_id, revoked=True)


def add_audit(session: Session, entry: AuditEntry) -> None:
    """One more line of the audit."""
    session.add(AuditRow(at=entry.at, actor=entry.actor, action=entry.action, subject=entry.subject,
                         outcome=entry.outcome, detail=entry.detail))
    session.flush()


def audit(session: Session) -> list[AuditEntry]:
    """The whole audit, oldest first."""
    rows = session.scalars(select(AuditRow).order_by(AuditRow.entry))
    return [AuditEntry(row.at, row.actor, row.action, row.subject, row.outcome, row.detail) for row in rows]


def _device(row: DeviceRow | None) -> Device | None:
    return None if row is None else Device(row.device_id, row.premises_id, row.kid, row.public_pem, row.revoked)


def _set(session: Session, table: type[AccountRow | PevRow | DeviceRow], key: str, **values: bool) -> bool:
    row = session.get(table, key)
    if row is None:
        return False
    for name, value in values.items():
        setattr(row, name, value)
    session.flush()
    return True
