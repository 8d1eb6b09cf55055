"""One message's new records being taken: what is read once for all of them, and what is written for all at the end.

A batch of 200 costs a few statements, not a few for each record. It must not judge, and never commits: `write` belongs
in the transaction that began with the intake, and nothing of a batch may be read elsewhere before it (P1-S3.1, P1-N1).
"""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from cloud.binding import service as binding
from cloud.binding.core import Bound
from cloud.enrolment.core import Premises
from cloud.ledger import service as ledger
from cloud.ledger.core import Entry
from cloud.metering import store
from cloud.metering.core import ExceptionView, IntervalView
from cloud.metering.tables import MeterRow, NoticeRow, SessionRow
from cloud.rating.service import Catalogue, RunningTotals


@dataclass(frozen=True, slots=True)
class Source:
    """Whose journal the records are from, and when they are taken (UTC text)."""

    device_id: str
    epoch: int
    now: str


class Intake:
    """What one transaction has read and is going to write. Rows that it gives are written by `write`, once."""

    def __init__(self, session: Session, source: Source, premises: Premises, catalogue: Catalogue) -> None:
        self.source, self.premises, self.catalogue = source, premises, catalogue
        self.totals = RunningTotals(session)
        self._session = session
        self._meter = store.meter(session, source.device_id)
        self._bound: dict[str, Bound | None] = {}
        self._charging: dict[str, SessionRow] = {}
        self._intervals: list[IntervalView] = []
        self._entries: list[Entry] = []
        self._exceptions: list[ExceptionView] = []

    @property
    def meter(self) -> MeterRow | None:
        """The device's register; None before its first interval."""
        return self._meter

    def first_meter(self, register_first_wh: int) -> MeterRow:
        """The register's new row."""
        assert self._meter is None, f"{self.source.device_id} has a register"
        self._meter = MeterRow(device_id=self.source.device_id, register_first_wh=register_first_wh, resets=0)
        self._session.add(self._meter)
        return self._meter

    def charging_session(self, session_id: str) -> SessionRow:
        """The session's row, made when this is its first record."""
        known = self._charging.get(session_id)
        if known is None:
            known = store.charging_session(self._session, self.source.device_id, session_id)
        if known is None:
            known = store.new_charging_session(
                self._session, self.source.device_id, session_id, self.premises.premises_id
            )
        self._charging[session_id] = known
        return known

    def bound(self, binding_id: str) -> Bound | None:
        """The binding, locked until the end; None when the utility made no such binding."""
        if binding_id not in self._bound:
            self._bound[binding_id] = binding.bound(self._session, binding_id)
        return self._bound[binding_id]

    def posted_cents(self, session_id: str) -> int:
        """Cents of the session's posted intervals, those of this batch so far among them."""
        waiting = (found.cents or 0 for found in self._intervals if found.session == session_id)
        return store.posted_cents(self._session, self.source.device_id, session_id) + sum(waiting)

    def add_interval(self, interval: IntervalView) -> None:
        """One more interval with its outcome."""
        self._intervals.append(interval)

    def post(self, entry: Entry) -> None:
        """One more entry for the ledger."""
        self._entries.append(entry)

    def add_exception(self, found: ExceptionView) -> None:
        """One more entry of the exception queue."""
        self._exceptions.append(found)

    def notify_once(self, notice: NoticeRow) -> None:
        """Keep a notice, unless its key is there."""
        store.add_once(self._session, notice, notice.key)

    def write(self) -> None:
        """Write all that is not written. Raises ConflictError for a ledger key that was posted before."""
        posted = ledger.post_all(self._session, self._entries)
        assert posted == len(self._entries), f"{self.source}: an interval was posted before its record came"
        self._entries.clear()
        store.add_intervals(self._session, self._intervals)
        self._intervals.clear()
        store.add_exceptions(self._session, self._exceptions)
        self._exceptions.clear()
        self._session.flush()
