"""A utility in memory and a charger that speaks to its desk as on the wire: for tests of the money half.

Knows nothing of MQTT. Messages are really sealed, the database is really SQLite (or what the URL says).
"""

from __future__ import annotations

import itertools
import weakref
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from cloud.db import create_schema, engine_for
from cloud.desk import Desk, Handled, Tools
from cloud.enrolment.service import load_programs
from cloud.enrolment.tables import AccountRow, DeviceRow, PevRow, PremisesRow
from cloud.rating.plans import load_plans
from cloud.rating.service import Catalogue
from esci import topics
from esci.messages import DOWN, Down, RecordItem
from esci.records import ORIGIN, digest
from esci.seal import KeySigner, load, seal, unseal
from esci.units import format_utc

START = datetime(2025, 7, 16, 3, 0, 0, tzinfo=UTC)
DEVICE, PREMISES, VIN, GUEST_VIN = "evse-1", "home-1", "1HGCM82633A004352", "5YJ3E1EA7KF317000"
HOST_ACCOUNT, GUEST_ACCOUNT = "acc-1", "acc-2"
DEFAULT_PLAN, PROGRAM, PLAN = "SCE-TOU-D-4-9PM", "PRIME", "SCE-TOU-D-PRIME"


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """The packaged plans, read once."""
    return Catalogue(load_plans())


@lru_cache(maxsize=4)
def key(name: str) -> KeySigner:
    """A key for each name, the same one in each test of a run."""
    return KeySigner(private_key(name))


@lru_cache(maxsize=4)
def private_key(name: str) -> ec.EllipticCurvePrivateKey:
    """The named key itself."""
    return ec.generate_private_key(ec.SECP256R1())


def public_pem(name: str) -> str:
    """The public half of a named key."""
    pem = private_key(name).public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem.decode()


@dataclass
class Journal:
    """One epoch of a charger's journal."""

    epoch: int = 7
    items: list[RecordItem] = field(default_factory=list)
    digests: list[str] = field(default_factory=lambda: [ORIGIN])

    def add(self, kind: str, body: dict[str, object], at: datetime, clock: str = "synced") -> int:
        """The seq of the new record."""
        item = RecordItem.model_validate({"kind": kind, "at": format_utc(at), "clock": clock, "body": body})
        self.items.append(item)
        self.digests.append(digest(self.digests[-1], self.epoch, len(self.items), item))
        return len(self.items)

    def batch(self, first_seq: int, last_seq: int) -> dict[str, object]:
        """The members of a records message."""
        return {
            "kind": "records",
            "epoch": self.epoch,
            "first_seq": first_seq,
            "prev": self.digests[first_seq - 1],
            "records": [item.model_dump(mode="json") for item in self.items[first_seq - 1:last_seq]],
        }


class Utility:
    """Desk, database and one enrolled charger with a vehicle of the house and one guest."""

    def __init__(self, url: str = "sqlite://") -> None:
        self.engine: Engine = engine_for(url)
        weakref.finalize(self, self.engine.dispose)  # Python 3.13 tells of a connection that is only let go
        create_schema(self.engine)
        self.now = START
        self._ids = itertools.count(1)
        self.desk = Desk(self.engine, Tools(key("utility"), lambda: self.now, self.new_id, catalogue()))
        self.enrol()

    def new_id(self) -> str:
        """32 hex digits, never the same."""
        return f"{next(self._ids):032x}"

    def enrol(self) -> None:
        """Two customers, one charger, two vehicles."""
        at = format_utc(START)
        with Session(self.engine) as session, session.begin():
            for account in (HOST_ACCOUNT, GUEST_ACCOUNT):
                session.add(AccountRow(account_id=account, holder=account, email="a@b", open=True, created_at=at))
            load_programs(session, {PLAN})
            session.flush()
            session.add(PremisesRow(
                premises_id=PREMISES, account_id=HOST_ACCOUNT, address="1 Main St", timezone="America/Los_Angeles",
                default_plan=DEFAULT_PLAN, service_voltage_v=240, interval_s=900, binding_wait_s=60,
                charge_without_binding=True, guests_allowed=True, served=True, created_at=at,
            ))
            for vin, account in ((VIN, HOST_ACCOUNT), (GUEST_VIN, GUEST_ACCOUNT)):
                session.add(PevRow(
                    pev_id=vin, account_id=account, program=PROGRAM, plan=PLAN, suspended=False, created_at=at
                ))
            session.flush()
            session.add(DeviceRow(
                device_id=DEVICE, premises_id=PREMISES, kid=key("device").kid, public_pem=public_pem("device"),
                certificate_pem="", revoked=False, created_at=at,
            ))

    def change(self, table: type[Any], primary: str, **values: object) -> None:
        """Set columns of an enrolled thing."""
        with Session(self.engine) as session, session.begin():
            row = session.get(table, primary)
            assert row is not None
            for name, value in values.items():
                setattr(row, name, value)

    def message(self, **members: object) -> dict[str, object]:
        """A message of the charger, with id and time unless given."""
        return {"device": DEVICE, "id": self.new_id(), "at": format_utc(self.now), **members}

    def send(self, message: dict[str, object], signer: str = "device", topic: str | None = None) -> Handled:
        """What the desk does with the message, sealed and on its topic."""
        where = topic or topics.up(DEVICE, str(message["kind"]))
        return self.desk.handle(where, seal(message, key(signer)))

    def tell(self, message: dict[str, object]) -> list[Down]:
        """The opened answers to a message that is taken."""
        handled = self.send(message)
        assert handled.refused is None, handled
        return opened(handled)

    def hello(self, tariffs: list[dict[str, str]] | None = None, epoch: int = 7) -> list[Down]:
        """The answers to hello."""
        return self.tell(self.message(
            kind="hello", premises=PREMISES, software="1.0", epoch=epoch, last_seq=0, acked_seq=0, clock="synced",
            tariffs=tariffs or [],
        ))

    def bind_request(self, **members: object) -> dict[str, object]:
        """A request of the house's vehicle."""
        base: dict[str, object] = {
            "kind": "bind.request", "session": self.new_id(), "premises": PREMISES, "pev": VIN, "known_binding": "",
            "clock": "synced",
        }
        return self.message(**(base | members))

    def later(self, seconds: int) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)


def opened(handled: Handled) -> list[Down]:
    """The answers, their seals proven with the utility's key."""
    public = private_key("utility").public_key()
    found = []
    for answer in handled.answers:
        body = unseal(answer.payload, lambda kid: public if kid == key("utility").kid else None)
        assert answer.topic == topics.down(DEVICE, str(body["kind"]))
        found.append(DOWN.validate_json(_json(body)))
    return found


def _json(body: dict[str, object]) -> bytes:
    from esci.seal import canonical

    assert load(canonical(body)) == body
    return canonical(body)


def interval(begin: datetime, rise_wh: int, register_wh: int, /, **members: object) -> dict[str, object]:
    """An idle interval's body of 15 minutes on the default plan; members replace its own."""
    base: dict[str, object] = {
        "session": "",
        "binding": "",
        "pev": "",
        "premises": PREMISES,
        "tariff": {"code": DEFAULT_PLAN, "version": "2025-06-01"},
        "rate_reason": None,
        "start": format_utc(begin),
        "end": format_utc(begin + timedelta(minutes=15)),
        "register_start_wh": register_wh,
        "register_end_wh": register_wh + rise_wh,
        "energy_wh": rise_wh,
        "flags": [],
    }
    return base | members
