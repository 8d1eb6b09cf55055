"""The tables of enrolment. The audit table is append-only, kept so by triggers. Only `store` queries them (P1-S1.2)."""

from sqlalchemy import DDL, CheckConstraint, ForeignKey, String, Table, Text, event
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import ExecutableDDLElement

from cloud.db import Base

_ID = 64
_UTC = 20


class AccountRow(Base):
    """A customer's account."""

    __tablename__ = "account"

    account_id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    holder: Mapped[str] = mapped_column(String(120))
    email: Mapped[str] = mapped_column(String(254))
    open: Mapped[bool]
    created_at: Mapped[str] = mapped_column(String(_UTC))


class PremisesRow(Base):
    """Premises and their customer's preferences."""

    __tablename__ = "premises"
    __table_args__ = (
        CheckConstraint("interval_s IN (60, 300, 900, 1800, 3600)", name="premises_interval"),
        CheckConstraint("binding_wait_s BETWEEN 0 AND 3600", name="premises_binding_wait"),
    )

    premises_id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("account.account_id"), index=True)
    address: Mapped[str] = mapped_column(String(200))
    timezone: Mapped[str] = mapped_column(String(64))
    service_voltage_v: Mapped[int]
    default_plan: Mapped[str] = mapped_column(String(_ID))
    interval_s: Mapped[int]
    binding_wait_s: Mapped[int]
    charge_without_binding: Mapped[bool]
    guests_allowed: Mapped[bool]
    served: Mapped[bool]
    created_at: Mapped[str] = mapped_column(String(_UTC))


class ProgramRow(Base):
    """A program and the rate plan behind it."""

    __tablename__ = "program"

    code: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    plan: Mapped[str] = mapped_column(String(_ID))


class PevRow(Base):
    """An enrolled vehicle."""

    __tablename__ = "pev"

    pev_id: Mapped[str] = mapped_column(String(17), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("account.account_id"), index=True)
    program: Mapped[str] = mapped_column(ForeignKey("program.code"))
    plan: Mapped[str] = mapped_column(String(_ID))
    suspended: Mapped[bool]
    created_at: Mapped[str] = mapped_column(String(_UTC))


class DeviceRow(Base):
    """A charger with its key and its newest certificate. Its id is never used for another."""

    __tablename__ = "device"

    device_id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    premises_id: Mapped[str] = mapped_column(ForeignKey("premises.premises_id"), index=True)
    kid: Mapped[str] = mapped_column(String(32), unique=True)
    public_pem: Mapped[str] = mapped_column(Text)
    certificate_pem: Mapped[str] = mapped_column(Text)
    revoked: Mapped[bool]
    created_at: Mapped[str] = mapped_column(String(_UTC))


class CertificateRow(Base):
    """Every certificate that a charger was given: what a revocation list must name."""

    __tablename__ = "device_certificate"

    serial: Mapped[str] = mapped_column(String(40), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.device_id"), index=True)
    issued_at: Mapped[str] = mapped_column(String(_UTC))


class TokenRow(Base):
    """An enrolment token: only its SHA-256, the premises it is for, and which charger used it."""

    __tablename__ = "enrolment_token"

    token_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    premises_id: Mapped[str] = mapped_column(ForeignKey("premises.premises_id"))
    expires_at: Mapped[str] = mapped_column(String(_UTC))
    used_at: Mapped[str | None] = mapped_column(String(_UTC))
    used_by: Mapped[str | None] = mapped_column(String(_ID))


class AuditRow(Base):
    """What was asked and what became of it."""

    __tablename__ = "enrolment_audit"

    entry: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[str] = mapped_column(String(_UTC))
    actor: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(64))
    outcome: Mapped[str] = mapped_column(String(40))
    detail: Mapped[str] = mapped_column(String(400))


_SENTENCE = "the audit is append-only"
_SQLITE = tuple(
    f"CREATE TRIGGER enrolment_audit_no_{verb.lower()} BEFORE {verb} ON enrolment_audit "
    f"BEGIN SELECT RAISE(ABORT, '{_SENTENCE}'); END"
    for verb in ("UPDATE", "DELETE")
)
_POSTGRESQL = (
    "CREATE OR REPLACE FUNCTION enrolment_audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN RAISE EXCEPTION '{_SENTENCE}'; END $$",
    "CREATE TRIGGER enrolment_audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON enrolment_audit "
    "FOR EACH STATEMENT EXECUTE FUNCTION enrolment_audit_append_only()",
)


def _only_on(dialect: str, statement: str) -> ExecutableDDLElement:
    ddl: ExecutableDDLElement = DDL(statement)  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped
    return ddl.execute_if(dialect=dialect)


def _attach() -> None:
    table = AuditRow.__table__
    assert isinstance(table, Table)
    for dialect, statements in (("sqlite", _SQLITE), ("postgresql", _POSTGRESQL)):
        for statement in statements:
            event.listen(table, "after_create", _only_on(dialect, statement))


_attach()
