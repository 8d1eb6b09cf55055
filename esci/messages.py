"""The messages between device and utility, one model for each kind (DESIGN section 3; topics in `esci.topics`).

Every message is sealed (`esci.seal`) except `State`. Integers and strings only, so that canonical form is unambiguous.
Times are UTC to the second (P1-N1). An unknown member, a wrong type or a value out of bounds is refused.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from esci.ids import DeviceId, Digest, MessageId, Name, PevId, PremisesId, UtcText
from esci.reasons import Reason
from esci.tariff import TariffDocument

INTERVALS_S = (60, 300, 900, 1800, 3600)
BATCH_RECORDS = 200
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
IntervalS = Literal[60, 300, 900, 1800, 3600]
ClockQuality = Literal["synced", "unsynced"]


class Wire(BaseModel):
    """What every message model shares: strict, frozen, no unknown members."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class TariffRef(Wire):
    """Names one version of one tariff."""

    code: Name
    version: Name


class Message(Wire):
    """Whose message it is, its id (for replies and against replay) and when it was made."""

    device: DeviceId
    id: MessageId
    at: UtcText


class Hello(Message):
    """After each connection: who I am, where my journal stands, which tariffs I hold."""

    kind: Literal["hello"] = "hello"
    premises: PremisesId
    software: Name
    epoch: Count
    last_seq: Count
    acked_seq: Count
    clock: ClockQuality
    tariffs: Annotated[list[TariffRef], Field(max_length=64)]


class BindRequest(Message):
    """P1-S1.9, S2.4: may this vehicle charge here on its program? The same id is sent again until it is answered."""

    kind: Literal["bind.request"] = "bind.request"
    session: MessageId
    premises: PremisesId
    pev: PevId
    known_binding: Annotated[str, Field(max_length=64)]
    clock: ClockQuality


class BindConfirm(Message):
    """P1-S1.11, S2.6: yes, with the authentication parameters. `scenario` first: set up; again: re-binding."""

    kind: Literal["bind.confirm"] = "bind.confirm"
    expires_at: UtcText
    request: MessageId
    session: MessageId
    binding: MessageId
    pev: PevId
    premises: PremisesId
    program: Name
    tariff: TariffRef
    valid_until: UtcText
    interval_s: IntervalS
    scenario: Literal["first", "again"]
    ticket: Annotated[str, Field(min_length=16, max_length=256)]


class BindReject(Message):
    """No, and why (P1-B4)."""

    kind: Literal["bind.reject"] = "bind.reject"
    expires_at: UtcText
    request: MessageId
    session: MessageId
    reason: Reason


class BindAck(Message):
    """P1-S1.13: the vehicle has set its parameters. Sent again until the detection message comes."""

    kind: Literal["bind.ack"] = "bind.ack"
    request: MessageId
    binding: MessageId
    pev: PevId


class EumdDetect(Message):
    """P1-S1.14, F18, F24: the parameters of the measurement device."""

    kind: Literal["eumd.detect"] = "eumd.detect"
    expires_at: UtcText
    binding: MessageId
    program: Name
    tariff: TariffRef
    interval_s: int


class EumdAck(Message):
    """P1-S1.16: applied, or why not; `interval_s` is what is in force."""

    kind: Literal["eumd.ack"] = "eumd.ack"
    detect: MessageId
    binding: MessageId
    applied: bool
    reason: Reason | None
    interval_s: IntervalS


class Params(Message):
    """The premises' parameters (P1-S1.4, F10): sent after hello and after each change."""

    kind: Literal["params"] = "params"
    premises: PremisesId
    default_tariff: TariffRef
    interval_s: IntervalS
    binding_wait_s: Annotated[int, Field(ge=0, le=3600)]
    charge_without_binding: bool


class TariffSent(Message):
    """One tariff version, whole."""

    kind: Literal["tariff"] = "tariff"
    document: TariffDocument


class RecordItem(Wire):
    """One journal record as it travels; its seq is the batch's first_seq plus its place. Body: see `esci.records`."""

    kind: Annotated[str, Field(pattern=r"^[a-z]+(\.[a-z-]+)?$", max_length=32)]
    at: UtcText
    clock: ClockQuality
    body: dict[str, object]


class Records(Message):
    """A batch of consecutive records (P1-S3.1). `prev` is the chain digest before the first."""

    kind: Literal["records"] = "records"
    epoch: Count
    first_seq: Annotated[int, Field(ge=1, le=2**53 - 1)]
    prev: Digest
    records: Annotated[list[RecordItem], Field(min_length=1, max_length=BATCH_RECORDS)]


class Ack(Message):
    """The utility has committed every record of the epoch up to and including seq; 0 means none."""

    kind: Literal["ack"] = "ack"
    epoch: Count
    seq: Count


class State(Wire):
    """Retained picture of the device for operators. None is unknown, and shown as unknown (P1-B6)."""

    device: DeviceId
    at: UtcText
    online: bool
    pilot: str
    contactor: Literal["open", "closed", "unknown"]
    session: str
    binding: str
    reason: str
    power_w: int | None
    register_wh: int | None
    limit_ma: int
    limit_source: str
    journal_waiting: Count
    clock: ClockQuality
    faults: list[str]


Up = Annotated[Hello | BindRequest | BindAck | EumdAck | Records, Field(discriminator="kind")]
Down = Annotated[BindConfirm | BindReject | EumdDetect | Params | TariffSent | Ack, Field(discriminator="kind")]
UP: TypeAdapter[Up] = TypeAdapter(Up, config=ConfigDict(defer_build=True))
DOWN: TypeAdapter[Down] = TypeAdapter(Down, config=ConfigDict(defer_build=True))
