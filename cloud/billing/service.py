"""Statements for customers and reconciliations for operators. It only reads (P1-S3.3, P1-B6, P1-F20)."""

from sqlalchemy.orm import Session

from cloud.billing import core
from cloud.billing.core import Reconciliation, Statement
from cloud.ledger import service as ledger
from cloud.metering import service as metering


def statement(session: Session, premises_id: str) -> Statement:
    """All charging at the premises; empty for premises without any."""
    return core.statement(
        premises_id, metering.sessions(session, premises_id), metering.intervals(session, premises_id)
    )


def reconciliation(session: Session) -> Reconciliation:
    """Metered, posted, waiting and in the ledger, for each device and in all; debits and credits."""
    devices = tuple(
        core.reconcile(energy, ledger.energy_wh(session, f"interval:{energy.device_id}:"))
        for energy in metering.device_energies(session)
    )
    balance = ledger.trial_balance(session)
    posted_wh = sum(device.posted_wh for device in devices)
    return Reconciliation(
        devices=devices,
        metered_wh=sum(device.metered_wh for device in devices),
        posted_wh=posted_wh,
        exception_wh=sum(device.exception_wh for device in devices),
        ledger_wh=balance.energy_wh,
        debit_cents=balance.debit_cents,
        credit_cents=balance.credit_cents,
        whole=all(device.whole for device in devices) and balance.balanced and balance.energy_wh == posted_wh,
    )
