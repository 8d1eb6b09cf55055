"""Answers requests to bind and follows each binding's set-up. It never commits (P1-S1.10..S1.16, P1-S2.5, P1-S2.6).

A request's answer is stored with it: the same request gets the same answer, another body under the same id is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

from sqlalchemy.orm import Session

from cloud.binding import store
from cloud.binding.core import (
    ANSWER_LIFE,
    BINDING_LIFE,
    Accepted,
    BindingView,
    Bound,
    Case,
    Event,
    Refused,
    Scenario,
    State,
    Step,
    age,
    decide,
    scenario,
    step,
)
from cloud.binding.tables import BindingRow, BindRequestRow
from cloud.enrolment import service as enrolment
from cloud.rating.service import Catalogue
from esci.messages import DOWN, BindAck, BindConfirm, BindReject, BindRequest, EumdAck, EumdDetect, TariffRef
from esci.reasons import Reason
from esci.units import format_utc, parse_utc

IntervalS = Literal[60, 300, 900, 1800, 3600]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a new message is made with: the time, and a source of ids that nobody can guess."""

    now: datetime
    new_id: Callable[[], str]


def answer_request(
    session: Session, message: BindRequest, catalogue: Catalogue, stamp: Stamp
) -> BindConfirm | BindReject:
    """The confirmation or the rejection; for a request that came before, the very answer that it got."""
    known = store.request(session, message.device, message.id)
    body = message.model_dump_json()
    if known is not None:
        return _stored_answer(known) if known.body == body else _reject(message, Reason.REPLAYED, stamp)
    case, tariff = _case(session, message, catalogue, stamp.now)
    decision = decide(case)
    answer: BindConfirm | BindReject
    if isinstance(decision, Accepted) and tariff is not None:
        answer = _confirm(session, message, decision, (tariff, stamp))
    else:
        assert isinstance(decision, Refused), "accepted without a tariff"
        answer = _reject(message, decision.reason, stamp)
    confirmed = answer if isinstance(answer, BindConfirm) else None
    row = BindRequestRow(
        device_id=message.device,
        request_id=message.id,
        body=body,
        answer=answer.model_dump_json(),
        answered_at=answer.at,
        reason="" if confirmed else cast(BindReject, answer).reason,
        session=message.session,
        binding_id=confirmed.binding if confirmed else "",
        tariff_code=confirmed.tariff.code if confirmed else "",
        tariff_version=confirmed.tariff.version if confirmed else "",
    )
    store.add(session, row)
    return answer


def acknowledge(session: Session, message: BindAck, stamp: Stamp) -> EumdDetect | Reason:
    """P1-S1.13: the vehicle has set its parameters; the detection message that follows, again for a repeated ack.

    The reason when no such binding was confirmed to this device and vehicle.
    """
    row = store.binding(session, message.binding)
    if row is None or (row.device_id, row.pev_id) != (message.device, message.pev):
        return Reason.UNKNOWN_BINDING
    if row.request_id != message.request:
        return Reason.STALE
    following = step(State(row.state), Event.PEV_ACK)
    if isinstance(following, State):
        row.state, row.pev_acked_at, row.detect_id = following, format_utc(stamp.now), stamp.new_id()
    return _detect(row, stamp)


def acknowledge_eumd(session: Session, message: EumdAck, now: datetime) -> Reason | None:
    """P1-S1.16: the measurement device is set up, or its reason is kept; None: taken, else why it is refused."""
    row = store.binding(session, message.binding)
    if row is None or row.device_id != message.device:
        return Reason.UNKNOWN_BINDING
    if row.detect_id != message.detect or (message.applied and message.interval_s != row.interval_s):
        return Reason.STALE
    following = step(State(row.state), Event.EUMD_APPLIED if message.applied else Event.EUMD_REFUSED)
    if following is Step.IMPOSSIBLE:
        return Reason.MALFORMED
    if following is Step.LATE:
        return None
    row.state = following
    if message.applied:
        row.set_up_at, row.eumd_reason = format_utc(now), ""
    else:
        row.eumd_reason = message.reason or Reason.MALFORMED
    return None


def change_interval(session: Session, device_id: str, interval_s: int, stamp: Stamp) -> tuple[EumdDetect, ...]:
    """P1-F18, F24: a new detection message for each bound binding that has another interval length."""
    found = []
    for row in store.of_device(session, device_id):
        if row.interval_s == interval_s:
            continue
        following = step(State(row.state), Event.CHANGED)
        assert isinstance(following, State), f"{row.state} cannot be changed"
        row.state, row.interval_s, row.eumd_reason = following, interval_s, ""
        if following is State.PEV_ACKED:
            row.detect_id = stamp.new_id()
            found.append(_detect(row, stamp))
    return tuple(found)


def outstanding(session: Session, device_id: str, stamp: Stamp) -> tuple[EumdDetect, ...]:
    """Detection messages that the device has not yet acknowledged."""
    rows = store.of_device(session, device_id)
    return tuple(_detect(row, stamp) for row in rows if row.state == State.PEV_ACKED)


def tariffs_of_device(session: Session, device_id: str) -> tuple[TariffRef, ...]:
    """The tariff versions that the device's bindings are on."""
    rows = store.of_device(session, device_id)
    return tuple(TariffRef(code=row.tariff_code, version=row.tariff_version) for row in rows)


def bound(session: Session, binding_id: str) -> Bound | None:
    """The binding as metering needs it; None when the utility made no such binding."""
    row = store.binding(session, binding_id)
    if row is None:
        return None
    tariffs = store.confirmed_tariffs(session, binding_id)
    return Bound(row.binding_id, row.device_id, row.pev_id, row.account_id, tariffs)


def bindings(session: Session) -> tuple[BindingView, ...]:
    """Every binding, for operators."""
    return tuple(_view(row) for row in store.every(session))


def sent_params(session: Session) -> dict[str, str]:
    """The parameters last sent to each device, as text to compare."""
    return store.sent_params(session)


def note_sent_params(session: Session, device_id: str, params: str) -> None:
    """These parameters were sent to the device."""
    store.set_sent_params(session, device_id, params)


def _case(
    session: Session, message: BindRequest, catalogue: Catalogue, now: datetime
) -> tuple[Case, TariffRef | None]:
    device = enrolment.get_device(session, message.device)
    premises = None if device is None else enrolment.get_premises(session, device.premises_id)
    pev = enrolment.get_pev(session, message.pev)
    tariff = catalogue.in_force(pev.plan, now) if pev is not None and pev.plan else None
    case = Case(
        device=device,
        asked_premises_id=message.premises,
        premises=premises,
        premises_account=None if premises is None else enrolment.get_account(session, premises.account_id),
        pev=pev,
        pev_account=None if pev is None else enrolment.get_account(session, pev.account_id),
        plan_in_force=tariff is not None,
        age=age(parse_utc(message.at), now, message.clock),
    )
    return case, tariff


def _confirm(
    session: Session, message: BindRequest, accepted: Accepted, offer: tuple[TariffRef, Stamp]
) -> BindConfirm:
    tariff, stamp = offer
    row = store.binding_of(session, message.device, message.pev)
    state = None if row is None else State(row.state)
    found: Scenario = scenario(state, "" if row is None else row.binding_id, message.known_binding)
    if row is None:
        row = BindingRow(binding_id=stamp.new_id(), device_id=message.device, pev_id=message.pev, state=State.CONFIRMED)
    following = step(State(row.state), Event.CONFIRMED_AGAIN if found == "again" else Event.CONFIRMED_FIRST)
    assert isinstance(following, State), f"{row.state} {found}"
    if found == "first":
        row.detect_id = row.pev_acked_at = row.set_up_at = row.eumd_reason = ""
    row.state, row.request_id = following, message.id
    row.premises_id, row.account_id = accepted.premises.premises_id, accepted.pev.account_id
    row.program, row.interval_s = accepted.pev.program, accepted.premises.interval_s
    row.tariff_code, row.tariff_version = tariff.code, tariff.version
    row.confirmed_at, row.valid_until = format_utc(stamp.now), format_utc(stamp.now + BINDING_LIFE)
    store.add(session, row)
    return BindConfirm(
        device=message.device,
        id=stamp.new_id(),
        at=row.confirmed_at,
        expires_at=format_utc(stamp.now + ANSWER_LIFE),
        request=message.id,
        session=message.session,
        binding=row.binding_id,
        pev=message.pev,
        premises=row.premises_id,
        program=row.program,
        tariff=tariff,
        valid_until=row.valid_until,
        interval_s=cast(IntervalS, row.interval_s),
        scenario=found,
        ticket=stamp.new_id(),
    )


def _reject(message: BindRequest, reason: Reason, stamp: Stamp) -> BindReject:
    return BindReject(
        device=message.device,
        id=stamp.new_id(),
        at=format_utc(stamp.now),
        expires_at=format_utc(stamp.now + ANSWER_LIFE),
        request=message.id,
        session=message.session,
        reason=reason,
    )


def _stored_answer(row: BindRequestRow) -> BindConfirm | BindReject:
    answer = DOWN.validate_json(row.answer)
    assert isinstance(answer, BindConfirm | BindReject), f"{row.request_id} holds {answer.kind}"
    return answer


def _detect(row: BindingRow, stamp: Stamp) -> EumdDetect:
    return EumdDetect(
        device=row.device_id,
        id=row.detect_id,
        at=format_utc(stamp.now),
        expires_at=format_utc(stamp.now + ANSWER_LIFE),
        binding=row.binding_id,
        program=row.program,
        tariff=TariffRef(code=row.tariff_code, version=row.tariff_version),
        interval_s=row.interval_s,
    )


def _view(row: BindingRow) -> BindingView:
    return BindingView(
        binding_id=row.binding_id,
        device_id=row.device_id,
        pev_id=row.pev_id,
        premises_id=row.premises_id,
        account_id=row.account_id,
        program=row.program,
        tariff_code=row.tariff_code,
        tariff_version=row.tariff_version,
        interval_s=row.interval_s,
        state=row.state,
        confirmed_at=row.confirmed_at,
        pev_acked_at=row.pev_acked_at,
        set_up_at=row.set_up_at,
        valid_until=row.valid_until,
        eumd_reason=row.eumd_reason,
    )
