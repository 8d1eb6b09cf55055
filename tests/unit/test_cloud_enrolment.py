"""Enrolment: what is refused leaves nothing but its audit entry; a token buys one charger (P1-B1, S1.1, S1.2)."""

from __future__ import annotations

import os
import pwd
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import DBAPIError

from cloud import security
from cloud.db import create_schema, engine_for, transaction
from cloud.enrolment import service
from cloud.enrolment.core import AccountForm, PevForm, PremisesForm, Refused, read_vin
from cloud.enrolment.service import Asked, DeviceRequest, EnrolledDevice, Token
from cloud.errors import InputError
from esci.reasons import Reason

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
ASKED = Asked("clerk", NOW)
PLANS = ("SCE-TOU-D-4-9PM", "SCE-TOU-D-PRIME")
VIN = "1HGCM82633A004352"
AUTHORITY = security.make_authority("Plugbind utility CA", NOW)
PREMISES = PremisesForm("P1", "A1", "1 Main St", "America/Los_Angeles", "SCE-TOU-D-4-9PM")


def certify(device_id: str, public: ec.EllipticCurvePublicKey) -> x509.Certificate:
    return security.issue(AUTHORITY, public, security.device_leaf(device_id), NOW)


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None, name: str = "whatever") -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
    made = builder.sign(key or security.new_key(), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def prepare(engine: Engine) -> None:
    create_schema(engine)
    with transaction(engine) as session:
        service.load_programs(session, PLANS)
        service.enrol_account(session, AccountForm("A1", "Ann Lee", "ann@example.com"), ASKED)
        service.enrol_account(session, AccountForm("A2", "Bo Ray", "bo@example.com"), ASKED)
        service.enrol_premises(session, PREMISES, PLANS, ASKED)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = engine_for(f"sqlite:///{tmp_path / 'cloud.db'}")
    prepare(made)
    yield made
    made.dispose()


def everything(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables but the audit."""
    with engine.connect() as connection:
        names = [name for name in inspect(connection).get_table_names() if name != "enrolment_audit"]
        return {name: [tuple(row) for row in connection.execute(text(f"SELECT * FROM {name}"))] for name in names}


def outcomes(engine: Engine) -> list[str]:
    with transaction(engine) as session:
        return [entry.outcome for entry in service.audit_entries(session)]


def token(engine: Engine, premises: str = "P1") -> str:
    with transaction(engine) as session:
        made = service.make_token(session, premises, 10, ASKED)
    assert isinstance(made, Token)
    return made.token


def enrol(engine: Engine, request: DeviceRequest, now: datetime = NOW) -> EnrolledDevice | Refused:
    with transaction(engine) as session:
        return service.enrol_device(session, request, certify, Asked("api", now))


# ---- customers, premises, vehicles ----

PEV_REFUSALS = [
    (PevForm(VIN, "nobody", "PRIME"), Reason.UNKNOWN_ACCOUNT),
    (PevForm(VIN, "A1", "PRIME", "nowhere"), Reason.UNKNOWN_PREMISES),
    (PevForm(VIN, "A2", "PRIME", "P1"), Reason.UNKNOWN_PREMISES),
    (PevForm(VIN, "A1", "FREE"), Reason.NO_PROGRAM),
    (PevForm("1HGCM82633A004353", "A1", "PRIME"), Reason.BAD_VIN),
    (PevForm("", "A1", "PRIME"), Reason.BAD_VIN),
    (PevForm("x" * 9999, "A1", "PRIME"), Reason.BAD_VIN),
]


@pytest.mark.req("P1-B1", "P1-S1.1", "P1-S1.2")
@pytest.mark.parametrize(("form", "reason"), PEV_REFUSALS)
def test_a_refused_vehicle_leaves_only_an_audit_entry(engine: Engine, form: PevForm, reason: Reason) -> None:
    before = everything(engine)
    with transaction(engine) as session:
        found = service.enrol_pev(session, form, ASKED)
    assert isinstance(found, Refused)
    assert found.reason is reason
    assert everything(engine) == before
    assert outcomes(engine)[-1] == reason.value


@pytest.mark.req("P1-B1")
def test_premises_that_are_not_served_take_no_vehicle_and_no_charger(engine: Engine) -> None:
    with transaction(engine) as session:
        service.change_premises(
            session, PremisesForm("P1", "A1", "1 Main St", "America/Los_Angeles", PLANS[0], served=False), PLANS, ASKED)
    before = everything(engine)
    with transaction(engine) as session:
        pev = service.enrol_pev(session, PevForm(VIN, "A1", "PRIME", "P1"), ASKED)
        made = service.make_token(session, "P1", 10, ASKED)
    assert pev == made == Refused(Reason.PREMISES_NOT_SERVED)
    assert everything(engine) == before


@pytest.mark.req("P1-B1")
@pytest.mark.parametrize(("field", "value", "reason"), [
    ("account_id", "nobody", Reason.UNKNOWN_ACCOUNT),
    ("default_plan", "FREE", Reason.UNKNOWN_TARIFF),
    ("timezone", "Mars/Olympus", Reason.MALFORMED),
    ("timezone", "../../etc/passwd", Reason.MALFORMED),
    ("interval_s", 61, Reason.INTERVAL_NOT_ALLOWED),
    ("binding_wait_s", -1, Reason.MALFORMED),
    ("binding_wait_s", 3601, Reason.MALFORMED),
    ("premises_id", "a/b", Reason.MALFORMED),
    ("premises_id", "a\n", Reason.MALFORMED),
    ("address", "", Reason.MALFORMED),
    ("address", "\x1b[2J", Reason.MALFORMED),
    ("premises_id", "P1", Reason.ALREADY_ENROLLED),
])
def test_refused_premises_leave_only_an_audit_entry(
    engine: Engine, field: str, value: str | int, reason: Reason
) -> None:
    form = replace(PREMISES, **{"premises_id": "P9", field: value})  # type: ignore[arg-type]  # typed by the table
    before = everything(engine)
    with transaction(engine) as session:
        found = service.enrol_premises(session, form, PLANS, ASKED)
    assert isinstance(found, Refused)
    assert found.reason is reason
    assert everything(engine) == before
    assert outcomes(engine)[-1] == reason.value


@pytest.mark.req("P1-S1.1")
@given(st.integers(0, 16), st.sampled_from("ABCDEFGHJKLMNPRSTUVWXYZ0123456789"))
def test_a_vin_with_one_wrong_letter_is_refused_or_transliterates_alike(place: int, letter: str) -> None:
    slip = VIN[:place] + letter + VIN[place + 1:]
    found = read_vin(slip)
    if isinstance(found, Refused):
        assert found.reason is Reason.BAD_VIN
        assert "position 9" in found.sentence
    else:
        assert found == slip


@pytest.mark.req("P1-S1.1")
@pytest.mark.parametrize("place", range(17))
def test_a_letter_that_no_vin_has_is_named_by_its_position(place: int) -> None:
    found = read_vin(VIN[:place] + "O" + VIN[place + 1:])
    assert isinstance(found, Refused)
    assert f"position {place + 1} " in found.sentence


@pytest.mark.req("P1-S1.1", "P1-S1.2")
def test_an_enrolled_vehicle_is_found_suspended_and_resumed(engine: Engine) -> None:
    with transaction(engine) as session:
        service.enrol_pev(session, PevForm(VIN.lower(), "A1", "PRIME", "P1"), ASKED)
        again = service.enrol_pev(session, PevForm(VIN, "A2", "PRIME"), ASKED)
        found = service.get_pev(session, VIN)
        service.set_suspended(session, VIN, True, ASKED)
        suspended = service.get_pev(session, VIN)
        service.set_suspended(session, VIN, False, ASKED)
        resumed = service.get_pev(session, VIN)
    assert again == Refused(Reason.ALREADY_ENROLLED)
    assert found is not None
    assert (found.account_id, found.program, found.plan, found.suspended) == ("A1", "PRIME", "SCE-TOU-D-PRIME", False)
    assert suspended is not None
    assert suspended.suspended
    assert resumed == found


@pytest.mark.req("P1-S1.2")
def test_a_closed_account_takes_nothing(engine: Engine) -> None:
    with transaction(engine) as session:
        service.set_account_open(session, "A1", False, ASKED)
        pev = service.enrol_pev(session, PevForm(VIN, "A1", "PRIME"), ASKED)
        made = service.make_token(session, "P1", 10, ASKED)
    assert pev == made == Refused(Reason.ACCOUNT_CLOSED)


@pytest.mark.req("P1-S1.2")
@pytest.mark.parametrize("statement", ["UPDATE enrolment_audit SET outcome = 'done'", "DELETE FROM enrolment_audit"])
def test_the_audit_is_append_only(engine: Engine, statement: str) -> None:
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(text(statement))


# ---- chargers ----


@pytest.mark.req("P1-S1.2")
def test_a_token_is_stored_only_as_its_hash(engine: Engine) -> None:
    made = token(engine)
    assert made not in str(everything(engine))
    assert len(made) >= 22  # 128 bits


@pytest.mark.req("P1-S1.2")
def test_a_charger_gets_the_name_that_the_utility_gives_it(engine: Engine) -> None:
    key = security.new_key()
    found = enrol(engine, DeviceRequest(token(engine), csr(key, name="gateway"), None))
    assert isinstance(found, EnrolledDevice)
    certificate = x509.load_pem_x509_certificate(found.certificate_pem.encode())
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [name.value for name in names] == [found.device.device_id]
    assert found.device.device_id.startswith("evse-")
    assert certificate.public_key() == key.public_key()
    with transaction(engine) as session:
        assert service.device_by_kid(session, found.device.kid) == found.device
        assert service.get_device(session, found.device.device_id) == found.device


@pytest.mark.req("P1-S1.2")
def test_a_token_buys_one_charger_and_the_same_key_its_answer_again(engine: Engine) -> None:
    bought, request = token(engine), csr()
    first = enrol(engine, DeviceRequest(bought, request, "garage"))
    before = everything(engine)
    assert enrol(engine, DeviceRequest(bought, request, "garage")) == first
    assert enrol(engine, DeviceRequest(bought, csr(), "garage2")) == Refused(Reason.TOKEN_USED)
    late = NOW + timedelta(minutes=10)
    assert enrol(engine, DeviceRequest(bought, request, None), late) == Refused(Reason.TOKEN_EXPIRED)
    assert everything(engine) == before


@pytest.mark.req("P1-S1.2")
def test_a_known_key_keeps_its_name_and_a_name_keeps_its_key(engine: Engine) -> None:
    request = csr()
    first = enrol(engine, DeviceRequest(token(engine), request, "garage"))
    again = enrol(engine, DeviceRequest(token(engine), request, "other"))
    assert isinstance(first, EnrolledDevice)
    assert isinstance(again, EnrolledDevice)
    assert again.device == first.device
    taken = enrol(engine, DeviceRequest(token(engine), csr(), "garage"))
    assert isinstance(taken, Refused)
    assert taken.reason is Reason.ALREADY_ENROLLED
    with transaction(engine) as session:
        service.revoke_device(session, "garage", ASKED)
        assert len(service.revoked_serials(session)) == 2
    assert enrol(engine, DeviceRequest(token(engine), request, None)) == Refused(Reason.DEVICE_REVOKED)


@pytest.mark.req("P1-S1.2")
@pytest.mark.parametrize("name", ["gateway", "Observer", "api.x", "broker-2", "a/b", "a+b", "#", "", "x" * 65, "a\n"])
def test_a_charger_cannot_bear_a_service_name_or_one_that_breaks_topics(engine: Engine, name: str) -> None:
    bought = token(engine)
    found = enrol(engine, DeviceRequest(bought, csr(), name)) if name else Refused(Reason.MALFORMED)
    assert isinstance(found, Refused)
    assert found.reason is Reason.MALFORMED
    assert isinstance(enrol(engine, DeviceRequest(bought, csr(), "good")), EnrolledDevice)


def broken(pem: str) -> str:
    der = bytearray(x509.load_pem_x509_csr(pem.encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()


HOSTILE = {
    "another curve": csr(ec.generate_private_key(ec.SECP384R1())),
    "rsa": csr(rsa.generate_private_key(65537, 2048)),
    "bad signature": broken(csr()),
    "empty": "",
    "not pem": "hello",
    "cut": csr()[:200],
    "too long": csr() + "\n" * 9000,
    "a surrogate": "\ud800",
    "a certificate": security.certificate_pem(AUTHORITY.certificate),
}


@pytest.mark.req("P1-S1.2")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_request_is_refused_and_does_not_use_up_the_token(engine: Engine, kind: str) -> None:
    bought = token(engine)
    before = everything(engine)
    found = enrol(engine, DeviceRequest(bought, HOSTILE[kind], None))
    assert isinstance(found, Refused)
    assert found.reason is Reason.MALFORMED
    assert everything(engine) == before
    assert isinstance(enrol(engine, DeviceRequest(bought, csr(), None)), EnrolledDevice)


@given(st.text(max_size=400))
def test_garbage_raises_only_the_readers_own_error(garbage: str) -> None:
    with pytest.raises(InputError):
        security.read_csr(garbage)


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        made = engine_for(f"sqlite:///{tmp_path / 'cloud.db'}")
    else:
        made = engine_for(request.getfixturevalue("postgres_url"))
    prepare(made)
    yield made
    made.dispose()


@pytest.fixture
def postgres_url(postgres_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL of its own on a socket, run by `postgres` where the tests run as root."""
    folder = Path(subprocess.run(["mktemp", "-d", "/tmp/plugbind-pg.XXXXXX"], check=True, capture_output=True,
                                 text=True).stdout.strip())
    other = os.getuid() == 0
    before = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if other else []
    if other:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
    control = [*before, str(postgres_bin / "pg_ctl"), "-D", str(folder / "data")]
    subprocess.run([*control, "initdb", "-s", "-o", "-A trust -U plugbind -N"], check=True, capture_output=True)
    subprocess.run([*control, "start", "-s", "-w", "-l", str(folder / "log"), "-o",
                    f"-k {folder} -c listen_addresses='' -c fsync=off"], check=True)
    try:
        yield f"postgresql+psycopg://plugbind@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "stop", "-s", "-m", "immediate"], check=True)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.req("P1-S1.2")
def test_of_many_at_once_one_charger_gets_the_token(shared_engine: Engine) -> None:
    bought, together = token(shared_engine), threading.Barrier(4)
    found: list[EnrolledDevice | Refused] = []

    def ask(request: str) -> None:
        together.wait()
        found.append(enrol(shared_engine, DeviceRequest(bought, request, None)))

    threads = [threading.Thread(target=ask, args=(csr(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [one for one in found if isinstance(one, EnrolledDevice)]
    assert len(won) == 1
    assert [one for one in found if isinstance(one, Refused)] == [Refused(Reason.TOKEN_USED)] * 3
    with transaction(shared_engine) as session:
        assert service.list_devices(session) == [won[0].device]


@pytest.mark.req("P1-S1.2")
def test_of_two_that_ask_for_one_name_one_gets_it(shared_engine: Engine) -> None:
    tokens, together = [token(shared_engine), token(shared_engine)], threading.Barrier(2)
    found: list[EnrolledDevice | Refused] = []

    def ask(bought: str, request: str) -> None:
        together.wait()
        found.append(enrol(shared_engine, DeviceRequest(bought, request, "garage")))

    threads = [threading.Thread(target=ask, args=(bought, csr())) for bought in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(one).__name__ for one in found) == ["EnrolledDevice", "Refused"]
    refused = next(one for one in found if isinstance(one, Refused))
    assert refused.reason is Reason.ALREADY_ENROLLED
