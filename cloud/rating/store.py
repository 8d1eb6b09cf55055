"""Every query on running totals and held tariffs. Imported by cloud.rating only."""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from cloud.rating.tables import HeldTariffRow, RunningTotalRow


def running_nano_usd(session: Session, key: str) -> int:
    """The total so far; 0 for a key that nothing was rated under."""
    row = session.get(RunningTotalRow, key, with_for_update=True)
    return 0 if row is None else row.running_nano_usd


def set_running(session: Session, key: str, nano_usd: int) -> None:
    """Keep the total for the key's next interval."""
    session.merge(RunningTotalRow(key=key, running_nano_usd=nano_usd))


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
