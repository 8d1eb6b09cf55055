"""Every query on running totals and held tariffs. Imported by cloud.rating only."""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from cloud.rating.tables import HeldTariffRow, RunningTotalRow


def running_total(session: Session, key: str) -> RunningTotalRow | None:
    """The total so far, locked for this transaction; None for a key that nothing was rated under."""
    return session.get(RunningTotalRow, key, with_for_update=True)


def add_running_total(session: Session, key: str) -> RunningTotalRow:
    """A total at zero, written with the session's next flush; the primary key refuses a second one."""
    row = RunningTotalRow(key=key, running_nano_usd=0)
    session.add(row)
    return row


def held(session: Session, device_id: str) -> frozenset[tuple[str, str]]:
    """(code, version) of what the device holds."""
    rows = session.scalars(select(HeldTariffRow).where(HeldTariffRow.device_id == device_id))
    return frozenset((row.code, row.version) for row in rows)


def add_held(session: Session, device_id: str, code: str, version: str) -> None:
    """The device holds one more."""
    session.merge(HeldTariffRow(device_id=device_id, code=code, version=version))


def clear_held(session: Session, device_id: str) -> None:
    """Forget what the device held."""
    session.execute(delete(HeldTariffRow).where(HeldTariffRow.device_id == device_id))
