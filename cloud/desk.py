"""Handles one message from a device: proves it, does it in one transaction, and gives the sealed answers.

It knows no MQTT, so that tests drive it directly. What is refused is kept with its reason, never dropped
(P1-S1.10, P1-S1.11, P1-S3.1). Database away: DatabaseUnavailableError, and nothing has happened.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from cloud.binding import service as binding
from cloud.binding.service import Stamp
from cloud.db import transaction
from cloud.enrolment import service as enrolment
from cloud.enrolment.core import Device, Premises
from cloud.metering import service as metering
from cloud.rating import service as rating
from cloud.rating.service import Catalogue
from esci import seal, topics
from esci.ids import check_name
from esci.messages import (
    UP,
    Ack,
    BindAck,
    BindConfirm,
    BindRequest,
    Down,
    EumdAck,
    Hello,
    Params,
    Records,
    TariffRef,
    TariffSent,
    Up,
)
from esci.reasons import Reason
from esci.units import format_utc, parse_utc


@dataclass(frozen=True, slots=True)
class Answer:
    """One sealed message to publish once the transaction is committed."""

    topic: str
    kind: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Handled:
    """What was done with a message. `refused` None: it was taken. `fields`: for the log, no secrets."""

    answers: tuple[Answer, ...]
    device: str
    kind: str
    refused: Reason | None
    fields: dict[str, str | int]


class RefusedError(Exception):
    """The message is refused; nothing of it was done."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Tools:
    """What the desk is given by the composition root. `clock`: world time, UTC; `new_id`: 32 secret hex digits."""

    signer: seal.Signer
    clock: Callable[[], datetime]
    new_id: Callable[[], str]
    catalogue: Catalogue


@dataclass(frozen=True, slots=True)
class _Visit:
    """One message's handling: the transaction, who came, and the time."""

    session: Session
    device: Device
    premises: Premises
    stamp: Stamp
    fields: dict[str, str | int]


class Desk:
    """Where every message from a device is handled."""

    def __init__(self, engine: Engine, tools: Tools) -> None:
        self._engine, self._tools = engine, tools

    def handle(self, topic: str, payload: bytes) -> Handled:
        """The answers to publish, or the reason for which the message was refused and kept.

        Raises DatabaseUnavailableError: nothing has happened, the same message may be handled again.
        """
        now = self._tools.clock()
        address = topics.parse(topic)
        device, kind = (address.device, address.kind) if address else ("", "")
        fields: dict[str, str | int] = {}
        try:
            answers = self._once_more(topic, payload, now, fields)
        except RefusedError as error:
            fields["detail"] = error.detail
            self.keep(topic, payload, error.reason, error.detail)
            return Handled((), device, kind, error.reason, fields)
        return Handled(tuple(self._sealed(answer) for answer in answers), device, kind, None, fields)

    def changed(self) -> tuple[Answer, ...]:
        """Parameters that changed since they were sent, with the tariffs they need; each is given once (P1-F18, F24).

        A device that has never said hello gets nothing. Raises DatabaseUnavailableError.
        """
        now, found = self._tools.clock(), list[Down]()
        with transaction(self._engine) as session:
            for device_id, sent in binding.sent_params(session).items():
                device = enrolment.get_device(session, device_id)
                premises = enrolment.get_premises(session, device.premises_id) if device else None
                if device is None or device.revoked or premises is None:
                    continue
                default = self._tools.catalogue.in_force(premises.default_plan, now)
                if default is not None and _fingerprint(premises, default) != sent:
                    visit = _Visit(session, device, premises, Stamp(now, self._tools.new_id), {})
                    found += [*self._tariffs(visit, [default]), self._params(visit, default)]
                    found += binding.change_interval(session, device_id, premises.interval_s, visit.stamp)
        return tuple(self._sealed(message) for message in found)

    def keep(self, topic: str, payload: bytes, reason: Reason, detail: str) -> None:
        """Keep a refused message for an operator."""
        with transaction(self._engine) as session:
            metering.keep_refused(session, topic, payload, (reason, detail), format_utc(self._tools.clock()))

    def _once_more(self, topic: str, payload: bytes, now: datetime, fields: dict[str, str | int]) -> list[Down]:
        """Two gateways may make the same first row at once: the second then finds it made."""
        try:
            return self._in_transaction(topic, payload, now, fields)
        except IntegrityError:
            return self._in_transaction(topic, payload, now, fields)

    def _in_transaction(self, topic: str, payload: bytes, now: datetime, fields: dict[str, str | int]) -> list[Down]:
        with transaction(self._engine) as session:
            device, message = self._proven(session, topic, payload)
            premises = enrolment.get_premises(session, device.premises_id)
            if premises is None:
                raise RefusedError(Reason.PREMISES_NOT_SERVED, f"there are no premises {device.premises_id}")
            visit = _Visit(session, device, premises, Stamp(now, self._tools.new_id), fields)
            return self._do(visit, message, (topic, payload))

    def _proven(self, session: Session, topic: str, payload: bytes) -> tuple[Device, Up]:
        """Who sent it and what it says. Raises RefusedError with a reason of its own for each way to be wrong."""
        address = topics.parse(topic)
        if address is None or address.direction != "up":
            raise RefusedError(Reason.WRONG_TOPIC, "the topic is none that devices speak on")
        try:
            device = enrolment.get_device(session, check_name(address.device))
        except ValueError:
            device = None
        if device is None:
            raise RefusedError(Reason.UNKNOWN_DEVICE, "no such device is enrolled")
        body = self._unsealed(device, payload)
        try:
            message = UP.validate_json(seal.canonical(body))
            parse_utc(message.at)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RefusedError(Reason.MALFORMED, f"{where}: {first['msg']}") from error
        except ValueError as error:
            raise RefusedError(Reason.MALFORMED, f"at: {error}") from error
        if (message.device, message.kind) != (address.device, address.kind):
            raise RefusedError(Reason.WRONG_TOPIC, f"the message says {message.device} and {message.kind}")
        return device, message

    def _unsealed(self, device: Device, payload: bytes) -> dict[str, object]:
        strangers: list[str] = []

        def public_for(kid: str) -> ec.EllipticCurvePublicKey | None:
            if kid != device.kid:
                strangers.append(kid)
                return None
            return _public_key(device.public_pem)

        try:
            return seal.unseal(payload, public_for)
        except seal.SealError as error:
            raise RefusedError(Reason.UNKNOWN_KEY if strangers else Reason.BAD_SEAL, str(error)) from error

    def _do(self, visit: _Visit, message: Up, raw: tuple[str, bytes]) -> list[Down]:
        if isinstance(message, BindRequest):
            return self._on_bind_request(visit, message, raw)
        if visit.device.revoked:
            raise RefusedError(Reason.DEVICE_REVOKED, "only after a new enrolment is it heard again")
        match message:
            case Hello():
                return self._on_hello(visit, message)
            case BindAck():
                found = binding.acknowledge(visit.session, message, visit.stamp)
                if isinstance(found, Reason):
                    raise RefusedError(found, f"binding {message.binding}")
                return [found]
            case EumdAck():
                refused = binding.acknowledge_eumd(visit.session, message, visit.stamp.now)
                if refused is not None:
                    raise RefusedError(refused, f"detection {message.detect}")
                visit.fields["applied"] = int(message.applied)
                return []
            case Records():
                return self._on_records(visit, message)

    def _on_hello(self, visit: _Visit, message: Hello) -> list[Down]:
        """The premises' parameters, tariffs it lacks, what it has not acknowledged, and where its journal stands."""
        session, premises, device_id = visit.session, visit.premises, visit.device.device_id
        rating.reported(session, device_id, message.tariffs)
        default = self._tools.catalogue.in_force(premises.default_plan, visit.stamp.now)
        wanted = [*([default] if default else []), *self._known(binding.tariffs_of_device(session, device_id))]
        answers = self._tariffs(visit, wanted)
        if default is not None:
            answers.append(self._params(visit, default))
        binding.change_interval(session, device_id, premises.interval_s, visit.stamp)
        answers.extend(binding.outstanding(session, device_id, visit.stamp))
        answers.append(self._ack(visit, message.epoch, metering.last_seq(session, device_id, message.epoch)))
        visit.fields.update(software=message.software, last_seq=message.last_seq, premises_match=int(
            message.premises == premises.premises_id))
        return answers

    def _on_bind_request(self, visit: _Visit, message: BindRequest, raw: tuple[str, bytes]) -> list[Down]:
        answer = binding.answer_request(visit.session, message, self._tools.catalogue, visit.stamp)
        visit.fields.update(pev=f"...{message.pev[-4:]}", answer=answer.kind)
        if isinstance(answer, BindConfirm):
            visit.fields.update(scenario=answer.scenario)
            return [*self._tariffs(visit, self._known([answer.tariff])), answer]
        visit.fields.update(reason=answer.reason)
        if answer.reason is Reason.REPLAYED:
            why = (Reason.REPLAYED, "the same id with another body")
            metering.keep_refused(visit.session, *raw, why, format_utc(visit.stamp.now))
        return [answer]

    def _on_records(self, visit: _Visit, message: Records) -> list[Down]:
        now = format_utc(visit.stamp.now)
        received = metering.accept(visit.session, message, visit.premises, self._tools.catalogue, now)
        visit.fields.update(epoch=message.epoch, first_seq=message.first_seq, new=received.new, seq=received.seq)
        if received.refused is not None:
            visit.fields["reason"] = received.refused
        return [self._ack(visit, message.epoch, received.seq)]

    def _known(self, refs: tuple[TariffRef, ...] | list[TariffRef]) -> list[TariffRef]:
        return [ref for ref in refs if self._tools.catalogue.tariff(ref.code, ref.version) is not None]

    def _tariffs(self, visit: _Visit, refs: list[TariffRef]) -> list[Down]:
        documents = rating.to_send(visit.session, self._tools.catalogue, visit.device.device_id, refs)
        device_id, at = visit.device.device_id, format_utc(visit.stamp.now)
        return [TariffSent(device=device_id, id=self._tools.new_id(), at=at, document=one) for one in documents]

    def _params(self, visit: _Visit, default: TariffRef) -> Params:
        premises = visit.premises
        binding.note_sent_params(visit.session, visit.device.device_id, _fingerprint(premises, default))
        return Params.model_validate({
            "device": visit.device.device_id,
            "id": self._tools.new_id(),
            "at": format_utc(visit.stamp.now),
            "premises": premises.premises_id,
            "default_tariff": default,
            "interval_s": premises.interval_s,
            "binding_wait_s": premises.binding_wait_s,
            "charge_without_binding": premises.charge_without_binding,
        })

    def _ack(self, visit: _Visit, epoch: int, seq: int) -> Ack:
        at = format_utc(visit.stamp.now)
        return Ack(device=visit.device.device_id, id=self._tools.new_id(), at=at, epoch=epoch, seq=seq)

    def _sealed(self, message: Down) -> Answer:
        payload = seal.seal(message.model_dump(mode="json"), self._tools.signer)
        return Answer(topics.down(message.device, message.kind), message.kind, payload)


def _fingerprint(premises: Premises, default: TariffRef) -> str:
    """The parameters as text; equal texts need no message."""
    parts = (default.code, default.version, premises.premises_id, premises.interval_s, premises.binding_wait_s,
             premises.charge_without_binding)
    return " ".join(str(part) for part in parts)


def _public_key(pem: str) -> ec.EllipticCurvePublicKey | None:
    """The device's public key; None for one that is none of ours."""
    key = serialization.load_pem_public_key(pem.encode())
    return key if isinstance(key, ec.EllipticCurvePublicKey) else None
