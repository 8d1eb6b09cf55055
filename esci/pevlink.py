"""The PEV link: what vehicle and charger say to each other over mutual TLS 1.3 (P1-S1.7..S1.13, S2.2..S2.7).

One JSON object on each line, at most LINE_LIMIT bytes with its newline. The vehicle opens the connection after On-Plug.
    first time   PEV discover -> ESCI offer -> PEV identify -> ESCI wait* -> confirm(ack) or reject -> PEV ack
    later        PEV identify (resumed TLS session, stored ticket) -> ESCI wait* -> confirm or reject
The link stays open until unplug. The PEV I.D. in `identify` must be the certificate's (URI `urn:plugbind:pev:VIN`).
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from esci.ids import DeviceId, MessageId, Name, PevId, PremisesId, UtcText
from esci.messages import TariffRef, Wire
from esci.reasons import Reason

LINE_LIMIT = 8192
PROTOCOL = 1
PEV_URI = "urn:plugbind:pev:"
DEVICE_URI = "urn:plugbind:device:"
SERVICE_URI = "urn:plugbind:service:"


class Discover(Wire):
    """Who is there? Only when the vehicle has no stored parameters for this charger."""

    kind: Literal["discover"] = "discover"
    protocol: Literal[1] = 1


class Offer(Wire):
    """This charger, at these premises."""

    kind: Literal["offer"] = "offer"
    device: DeviceId
    premises: PremisesId
    protocol: Literal[1] = 1


class Identify(Wire):
    """The PEV I.D.; the ticket of the last confirmation, or ""."""

    kind: Literal["identify"] = "identify"
    pev: PevId
    ticket: Annotated[str, Field(max_length=256)]


class Wait(Wire):
    """The utility is being asked."""

    kind: Literal["wait"] = "wait"


class Confirm(Wire):
    """The binding's parameters, to be stored by the vehicle; `ack`: answer with Acknowledge."""

    kind: Literal["confirm"] = "confirm"
    binding: MessageId
    program: Name
    tariff: TariffRef
    valid_until: UtcText
    ticket: Annotated[str, Field(min_length=16, max_length=256)]
    ack: bool


class Reject(Wire):
    """No binding, and why."""

    kind: Literal["reject"] = "reject"
    reason: Reason
    sentence: str


class Acknowledge(Wire):
    """The vehicle has stored its parameters."""

    kind: Literal["ack"] = "ack"
    binding: MessageId


FromPev = Annotated[Discover | Identify | Acknowledge, Field(discriminator="kind")]
ToPev = Annotated[Offer | Wait | Confirm | Reject, Field(discriminator="kind")]
FROM_PEV: TypeAdapter[FromPev] = TypeAdapter(FromPev, config=ConfigDict(defer_build=True))
TO_PEV: TypeAdapter[ToPev] = TypeAdapter(ToPev, config=ConfigDict(defer_build=True))
