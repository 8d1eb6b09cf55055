"""Reads one new record and does what it says: sessions, registers, and each interval's one outcome (P1-S3.2, P1-S3.3).

A body that cannot be read is an entry in the exception queue; the record itself is kept. It never commits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from zoneinfo import ZoneInfo

from pydantic import ValidationError

from cloud.enrolment.core import Premises
from cloud.ledger.core import Charged, energy_charge
from cloud.metering.core import (
    Circumstances,
    Doubt,
    ExceptionView,
    IntervalView,
    NewRecord,
    Payer,
    Span,
    judge,
    running_key,
    span,
)
from cloud.metering.intake import Intake
from cloud.metering.tables import NoticeRow, SessionRow
from cloud.rating.service import Rated
from esci.messages import Wire
from esci.reasons import Reason
from esci.records import BODIES, Happening, Interval, SessionBegun, SessionBound, SessionEnded, SessionUnbound
from esci.tariff import Usage
from esci.units import dollars

UNMETERED = "A session could not be metered. Its energy is on the premises' own meter and is not billed here."


@dataclass(frozen=True, slots=True)
class Clerk:
    """What every handler needs: the record's place in the journal, and the intake that it is taken in."""

    intake: Intake
    seq: int
    at: str

    @property
    def premises(self) -> Premises:
        """The charger's premises."""
        return self.intake.premises

    @property
    def key(self) -> str:
        """The record's name in ledger and exception queue."""
        source = self.intake.source
        return f"{source.device_id}:{source.epoch}:{self.seq}"

    def doubt(self, doubt: Doubt, energy_wh: int | None = None) -> None:
        """Put the record into the exception queue."""
        source = self.intake.source
        self.intake.add_exception(
            ExceptionView(
                key=f"record:{doubt.reason}:{self.key}",
                device_id=source.device_id,
                epoch=source.epoch,
                seq=self.seq,
                reason=doubt.reason.value,
                detail=doubt.detail[:300],
                energy_wh=energy_wh,
                at=source.now,
            )
        )

    def row(self, session_id: str) -> SessionRow:
        """The session's row, made when this is its first record."""
        return self.intake.charging_session(session_id)


def take(intake: Intake, record: NewRecord) -> None:
    """Do what the record says; the record itself is stored already."""
    clerk = Clerk(intake, record.seq, record.item.at)
    kind = record.item.kind
    model = BODIES.get(kind)
    if model is None:
        clerk.doubt(Doubt(Reason.BODY_INVALID, f"there is no record kind {kind}"))
        return
    try:
        body = model.model_validate_json(record.body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        clerk.doubt(Doubt(Reason.BODY_INVALID, f"{kind}: {where}: {first['msg']}"))
        return
    handler = _HANDLERS.get(model)
    if handler is not None:
        handler(clerk, body)


def _on_begun(clerk: Clerk, body: SessionBegun) -> None:
    if not body.session:
        clerk.doubt(Doubt(Reason.BODY_INVALID, "a session began without an id"))
        return
    row = clerk.row(body.session)
    if row.begun_at:
        clerk.doubt(Doubt(Reason.CONFLICT, "the session began twice; the first beginning stands"))
        return
    row.begun_at = clerk.at
    if body.premises != clerk.premises.premises_id:
        clerk.doubt(Doubt(Reason.PREMISES_MISMATCH, f"the session's record says {body.premises}"))


def _on_bound(clerk: Clerk, body: SessionBound) -> None:
    row = clerk.row(body.session)
    row.binding_id, row.pev_id, row.unbound_reason = body.binding, body.pev, ""


def _on_unbound(clerk: Clerk, body: SessionUnbound) -> None:
    row = clerk.row(body.session)
    row.unbound_reason = body.reason
    row.pev_id = body.pev or row.pev_id


def _on_ended(clerk: Clerk, body: SessionEnded) -> None:
    row = clerk.row(body.session)
    if row.ended_at:
        clerk.doubt(Doubt(Reason.CONFLICT, "the session ended twice; the first end stands"))
        return
    row.ended_at, row.reason, row.unmetered = clerk.at, body.reason, body.unmetered
    row.energy_wh, row.pending_wh, row.receipt_cents = body.energy_wh, body.pending_wh, body.receipt_cents
    if body.unmetered:
        _notify_unmetered(clerk, body.session)
    billed_cents = clerk.intake.posted_cents(body.session)
    if body.receipt_cents is not None and body.receipt_cents != billed_cents:
        said, billed = dollars(body.receipt_cents), dollars(billed_cents)
        clerk.doubt(Doubt(Reason.CONFLICT, f"receipt: the charger showed {said} USD, {billed} USD is billed"))


def _notify_unmetered(clerk: Clerk, session_id: str) -> None:
    clerk.intake.notify_once(
        NoticeRow(
            key=f"unmetered:{clerk.intake.source.device_id}:{session_id}",
            account_id=clerk.premises.account_id,
            premises_id=clerk.premises.premises_id,
            session=session_id,
            text=UNMETERED,
            at=clerk.intake.source.now,
        )
    )


def _on_happening(clerk: Clerk, body: Happening) -> None:
    meter = clerk.intake.meter
    if body.code is Reason.METER_RESET and meter is not None:
        meter.register_last_wh = None
        meter.resets += 1


def _on_interval(clerk: Clerk, interval: Interval) -> None:
    when = span(interval)
    if when is None:
        clerk.doubt(Doubt(Reason.BODY_INVALID, "times or registers of the interval cannot be"))
        return
    intake = clerk.intake
    bound = intake.bound(interval.binding) if interval.binding else None
    last_register_wh = None if intake.meter is None else intake.meter.register_last_wh
    decision = judge(interval, when, Circumstances(intake.source.device_id, intake.premises, bound, last_register_wh))
    rated: Rated | None = None
    if isinstance(decision, Payer) and interval.energy_wh:
        outcome = _rate(clerk, interval, when)
        rated = outcome if isinstance(outcome, Rated) else None
        decision = outcome if isinstance(outcome, Doubt) else decision
    if isinstance(decision, Doubt):
        clerk.doubt(decision, interval.energy_wh)
    elif rated is not None:
        _post(clerk, interval, decision, rated)
    intake.add_interval(_view(clerk, interval, decision, rated))
    _move_register(intake, interval)


def _rate(clerk: Clerk, interval: Interval, when: Span) -> Rated | Doubt:
    ref = interval.tariff
    tariff = None if ref is None else clerk.intake.catalogue.tariff(ref.code, ref.version)
    if tariff is None:
        return Doubt(Reason.UNKNOWN_TARIFF, f"{ref.code} {ref.version} is not ours" if ref else "no tariff")
    month = when.start.astimezone(ZoneInfo(clerk.premises.timezone)).strftime("%Y-%m")
    key = running_key(clerk.intake.source.device_id, interval.session, month)
    rated = clerk.intake.totals.rate(key, tariff, Usage(when.start, when.end, interval.energy_wh))
    if isinstance(rated, Rated):
        return rated
    return Doubt(rated, f"{interval.start} to {interval.end}")


def _post(clerk: Clerk, interval: Interval, payer: Payer, rated: Rated) -> None:
    assert interval.tariff is not None, "rated without a tariff"
    line = rated.line
    charged = Charged(
        tariff_code=interval.tariff.code,
        tariff_version=interval.tariff.version,
        period=line.period,
        price_micro_usd_per_kwh=line.micro_usd_per_kwh,
        energy_wh=interval.energy_wh,
        session=interval.session,
    )
    now = clerk.intake.source.now
    clerk.intake.post(energy_charge(f"interval:{clerk.key}", now, payer.account_id, line.amount_cents, charged))


def _view(clerk: Clerk, interval: Interval, decision: Payer | Doubt, rated: Rated | None) -> IntervalView:
    doubt = decision if isinstance(decision, Doubt) else None
    line = None if rated is None or doubt else rated.line
    source = clerk.intake.source
    return IntervalView(
        device_id=source.device_id,
        epoch=source.epoch,
        seq=clerk.seq,
        session=interval.session,
        premises_id=clerk.premises.premises_id,
        pev_id=interval.pev,
        account_id=decision.account_id if isinstance(decision, Payer) else "",
        start=interval.start,
        end=interval.end,
        energy_wh=interval.energy_wh,
        outcome="exception" if doubt else "posted",
        reason=doubt.reason.value if doubt else "",
        rate_reason=interval.rate_reason.value if interval.rate_reason else "",
        tariff_code=interval.tariff.code if interval.tariff else "",
        tariff_version=interval.tariff.version if interval.tariff else "",
        period=line.period if line else None,
        price_micro_usd_per_kwh=line.micro_usd_per_kwh if line else None,
        cents=None if doubt else line.amount_cents if line else 0,
    )


def _move_register(intake: Intake, interval: Interval) -> None:
    meter = intake.meter or intake.first_meter(interval.register_start_wh)
    if interval.register_end_wh < interval.register_start_wh:
        meter.resets += 1
    meter.register_last_wh = interval.register_end_wh


_HANDLERS: dict[type[Wire], Callable[[Clerk, Wire], None]] = {
    SessionBegun: cast(Callable[[Clerk, Wire], None], _on_begun),
    SessionBound: cast(Callable[[Clerk, Wire], None], _on_bound),
    SessionUnbound: cast(Callable[[Clerk, Wire], None], _on_unbound),
    SessionEnded: cast(Callable[[Clerk, Wire], None], _on_ended),
    Happening: cast(Callable[[Clerk, Wire], None], _on_happening),
    Interval: cast(Callable[[Clerk, Wire], None], _on_interval),
}
