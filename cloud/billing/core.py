"""What statements and reconciliations consist of. Pure; integers and text only, so they print as JSON (P1-S3.3)."""

from dataclasses import dataclass

from cloud.metering.core import DeviceEnergy, IntervalView, SessionView
from esci.units import dollars, kwh


@dataclass(frozen=True, slots=True)
class StatementLine:
    """One interval on a statement. `cents`, `period` and price None: it waits in the exception queue, see `reason`."""

    start: str
    end: str
    energy_wh: int
    period: str | None
    price_micro_usd_per_kwh: int | None
    cents: int | None
    tariff: str
    account_id: str
    rate_reason: str
    reason: str


@dataclass(frozen=True, slots=True)
class SessionStatement:
    """One plug-in; session "" is idle time. None: not known. receipt_matches None: there is nothing to compare yet.

    An unmetered session has no lines and no amount: None, never zero (P1-B6).
    """

    session: str
    device_id: str
    pev_id: str
    begun_at: str
    ended_at: str
    end_reason: str
    metered: str
    unbound_reason: str
    energy_wh: int | None
    posted_wh: int
    pending_wh: int
    cents: int | None
    receipt_cents: int | None
    receipt_matches: bool | None
    lines: tuple[StatementLine, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """All charging at some premises. `by_account`: (account, cents) for each account that pays."""

    premises_id: str
    sessions: tuple[SessionStatement, ...]
    posted_wh: int
    pending_wh: int
    cents: int
    by_account: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class DeviceReconciliation:
    """One device's energy, which must be found whole: metered = posted + exceptions, posted = ledger."""

    device_id: str
    metered_wh: int
    posted_wh: int
    exception_wh: int
    ledger_wh: int
    register_delta_wh: int | None
    whole: bool


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """All devices and the ledger. `whole`: nothing is lost, doubled or out of balance."""

    devices: tuple[DeviceReconciliation, ...]
    metered_wh: int
    posted_wh: int
    exception_wh: int
    ledger_wh: int
    debit_cents: int
    credit_cents: int
    whole: bool


def session_statement(view: SessionView, intervals: tuple[IntervalView, ...]) -> SessionStatement:
    """The session with its lines, in order."""
    posted = [one for one in intervals if one.outcome == "posted"]
    posted_wh = sum(one.energy_wh for one in posted)
    pending_wh = sum(one.energy_wh for one in intervals) - posted_wh
    cents = None if view.unmetered and not intervals else sum(one.cents or 0 for one in posted)
    matches = None if view.receipt_cents is None or not view.ended_at else view.receipt_cents == cents
    return SessionStatement(
        session=view.session,
        device_id=view.device_id,
        pev_id=view.pev_id,
        begun_at=view.begun_at,
        ended_at=view.ended_at,
        end_reason=view.reason,
        metered="unmetered" if view.unmetered else "metered",
        unbound_reason=view.unbound_reason,
        energy_wh=view.energy_wh,
        posted_wh=posted_wh,
        pending_wh=pending_wh,
        cents=cents,
        receipt_cents=view.receipt_cents,
        receipt_matches=matches,
        lines=tuple(_line(one) for one in intervals),
    )


def statement(premises_id: str, sessions: tuple[SessionView, ...], intervals: tuple[IntervalView, ...]) -> Statement:
    """Every session with its intervals; intervals without one are the device's idle time."""
    found: dict[tuple[str, str], list[IntervalView]] = {}
    for one in intervals:
        found.setdefault((one.device_id, one.session), []).append(one)
    views = {(view.device_id, view.session): view for view in sessions}
    for key, ones in found.items():
        if key not in views:
            views[key] = _without_records(ones[0])
    lines = tuple(session_statement(view, tuple(found.get(key, ()))) for key, view in views.items())
    by_account: dict[str, int] = {}
    for one in intervals:
        if one.cents is not None:
            by_account[one.account_id] = by_account.get(one.account_id, 0) + one.cents
    return Statement(
        premises_id=premises_id,
        sessions=lines,
        posted_wh=sum(line.posted_wh for line in lines),
        pending_wh=sum(line.pending_wh for line in lines),
        cents=sum(by_account.values()),
        by_account=tuple(sorted(by_account.items())),
    )


def reconcile(energy: DeviceEnergy, ledger_wh: int) -> DeviceReconciliation:
    """The device's sums and whether they agree."""
    whole = energy.metered_wh == energy.posted_wh + energy.exception_wh and energy.posted_wh == ledger_wh
    return DeviceReconciliation(
        device_id=energy.device_id,
        metered_wh=energy.metered_wh,
        posted_wh=energy.posted_wh,
        exception_wh=energy.exception_wh,
        ledger_wh=ledger_wh,
        register_delta_wh=energy.register_delta_wh,
        whole=whole,
    )


def _line(one: IntervalView) -> StatementLine:
    return StatementLine(
        start=one.start,
        end=one.end,
        energy_wh=one.energy_wh,
        period=one.period,
        price_micro_usd_per_kwh=one.price_micro_usd_per_kwh,
        cents=one.cents,
        tariff=f"{one.tariff_code} {one.tariff_version}".strip(),
        account_id=one.account_id,
        rate_reason=one.rate_reason,
        reason=one.reason,
    )


def _without_records(one: IntervalView) -> SessionView:
    return SessionView(
        device_id=one.device_id,
        session=one.session,
        premises_id=one.premises_id,
        pev_id=one.pev_id,
        binding_id="",
        begun_at="",
        ended_at="",
        reason="",
        energy_wh=None,
        pending_wh=None,
        receipt_cents=None,
        unmetered=False,
        unbound_reason="",
    )


def as_text(found: Statement) -> str:
    """The statement for people: each session with its intervals, times in UTC."""
    lines = [f"Statement of premises {found.premises_id}"]
    for session in found.sessions:
        if session.session or session.posted_wh or session.pending_wh:
            lines += _session_lines(session)
    lines.append(f"total {kwh(found.posted_wh)} kWh, {dollars(found.cents)} USD")
    lines += [f"  account {account}: {dollars(cents)} USD" for account, cents in found.by_account]
    if found.pending_wh:
        lines.append(f"  {kwh(found.pending_wh)} kWh wait in the exception queue and are not in the sum")
    return "\n".join(lines)


def _session_lines(session: SessionStatement) -> list[str]:
    why = f"  default rate: {session.unbound_reason}" if session.unbound_reason else ""
    name = f"session {session.session[:8]}" if session.session else "between sessions"
    lines = [f"{name}  {session.begun_at} to {session.ended_at or 'now'}  {session.metered}{why}"]
    for line in session.lines:
        if line.energy_wh == 0:
            continue
        price = f"in doubt: {line.reason}"
        if line.cents is not None and line.price_micro_usd_per_kwh is not None:
            usd = f"{line.price_micro_usd_per_kwh // 1_000_000}.{line.price_micro_usd_per_kwh % 1_000_000:06d}"
            price = f"{usd}  {line.period or '':20}{dollars(line.cents):>8}"
        lines.append(f"  {line.start[11:19]} to {line.end[11:19]}  {kwh(line.energy_wh):>9} kWh  {price}")
    total = "no amount: the meter was silent" if session.cents is None else f"{dollars(session.cents):>73}"
    lines.append(f"  {total}")
    if session.receipt_matches is False:
        lines.append(f"  the charger's receipt said {dollars(session.receipt_cents or 0)} USD: see the exception queue")
    return lines
