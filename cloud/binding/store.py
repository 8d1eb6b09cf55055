"""Every query on bindings. Imported by cloud.binding only."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.binding.tables import BindingRow, BindRequestRow, SentParamsRow


def request(session: Session, device_id: str, request_id: str) -> BindRequestRow | None:
    """The request of that id and its answer; None when it is new."""
    return session.get(BindRequestRow, (device_id, request_id))


def add(session: Session, row: BindRequestRow | BindingRow) -> None:
    """Write a new row."""
    session.add(row)
    session.flush()


def binding(session: Session, binding_id: str) -> BindingRow | None:
    """The binding, locked for this transaction."""
    return session.get(BindingRow, binding_id, with_for_update=True)


def binding_of(session: Session, device_id: str, pev_id: str) -> BindingRow | None:
    """The binding of this pair, locked for this transaction."""
    query = select(BindingRow).where(BindingRow.device_id == device_id, BindingRow.pev_id == pev_id)
    return session.scalar(query.with_for_update())


def confirmed_tariffs(session: Session, binding_id: str) -> frozenset[tuple[str, str]]:
    """(code, version) of every confirmation that the binding got."""
    query = select(BindRequestRow.tariff_code, BindRequestRow.tariff_version)
    rows = session.execute(query.where(BindRequestRow.binding_id == binding_id).distinct())
    return frozenset((row.tariff_code, row.tariff_version) for row in rows)


def of_device(session: Session, device_id: str) -> list[BindingRow]:
    """Every binding of the device, oldest first."""
    query = select(BindingRow).where(BindingRow.device_id == device_id)
    return list(session.scalars(query.order_by(BindingRow.confirmed_at, BindingRow.binding_id)))


def every(session: Session) -> list[BindingRow]:
    """All bindings, oldest first."""
    return list(session.scalars(select(BindingRow).order_by(BindingRow.confirmed_at, BindingRow.binding_id)))


def sent_params(session: Session) -> dict[str, str]:
    """What was last sent, by device."""
    return {row.device_id: row.params for row in session.scalars(select(SentParamsRow))}


def set_sent_params(session: Session, device_id: str, params: str) -> None:
    """Remember what was sent."""
    session.merge(SentParamsRow(device_id=device_id, params=params))
