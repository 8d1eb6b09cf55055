"""Rates one interval on a running total, and knows which tariff versions exist and who holds them.

It must not post or commit. The arithmetic is `esci.tariff`'s, the same as on the charger (P1-S3.3, P1-F18).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from cloud.rating import store
from cloud.rating.core import choose
from cloud.rating.tables import RunningTotalRow
from esci.messages import TariffRef
from esci.reasons import Reason
from esci.tariff import Line, Tariff, TariffDocument, Unrateable, Usage, local_date, parse, rate

_RUNNING_LIMIT_NANO_USD = 2**62


class Catalogue:
    """Every tariff version there is, checked once."""

    def __init__(self, plans: Mapping[tuple[str, str], TariffDocument]) -> None:
        self._plans = dict(plans)
        self._tariffs = {key: parse(document) for key, document in plans.items()}

    def tariff(self, code: str, version: str) -> Tariff | None:
        """The checked tariff; None when there is none."""
        return self._tariffs.get((code, version))

    def document(self, ref: TariffRef) -> TariffDocument:
        """The version, whole. Raises KeyError for one that is not ours."""
        return self._plans[ref.code, ref.version]

    def in_force(self, code: str, at: datetime) -> TariffRef | None:
        """The version of the plan in force at that moment, at the tariff's place; None when there is none."""
        place = next((tariff for key, tariff in self._tariffs.items() if key[0] == code), None)
        found = choose(self._plans, code, local_date(place, at)) if place is not None else None
        return None if found is None else TariffRef(code=found.code, version=found.version)


@dataclass(frozen=True, slots=True)
class Rated:
    """One rated interval and the running total after it."""

    line: Line
    running_nano_usd: int


class RunningTotals:
    """The running totals of one transaction: each is read once, under its lock, and written with the next flush."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rows: dict[str, RunningTotalRow | None] = {}

    def rate(self, key: str, tariff: Tariff, usage: Usage) -> Rated | Reason:
        """The rated interval, its total kept under the key; or why it cannot be rated, and then nothing is changed."""
        if key not in self._rows:
            self._rows[key] = store.running_total(self._session, key)
        row = self._rows[key]
        (line,), after_nano_usd = rate(tariff, (usage,), 0 if row is None else row.running_nano_usd)
        if isinstance(line, Unrateable):
            return line.reason
        if after_nano_usd >= _RUNNING_LIMIT_NANO_USD:
            return Reason.METER_JUMP
        if row is None:
            row = self._rows[key] = store.add_running_total(self._session, key)
        row.running_nano_usd = after_nano_usd
        return Rated(line, after_nano_usd)


def reported(session: Session, device_id: str, refs: Iterable[TariffRef]) -> None:
    """The device said which versions it holds: these and no others."""
    store.clear_held(session, device_id)
    for ref in refs:
        store.add_held(session, device_id, ref.code, ref.version)


def to_send(
    session: Session, catalogue: Catalogue, device_id: str, refs: Iterable[TariffRef]
) -> tuple[TariffDocument, ...]:
    """Documents among refs that the device lacks; from now on it counts as holding them."""
    held = store.held(session, device_id)
    wanted = {(ref.code, ref.version): ref for ref in refs if (ref.code, ref.version) not in held}
    for code, version in wanted:
        store.add_held(session, device_id, code, version)
    return tuple(catalogue.document(ref) for ref in wanted.values())
