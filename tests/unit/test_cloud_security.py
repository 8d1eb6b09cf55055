"""Certificates and the key folder: who can shake hands with whom, and what lies on disk (P1-S1.7)."""

from __future__ import annotations

import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from cloud import security
from cloud.brokerconf import Identity, identity_of, may_publish, may_subscribe, mosquitto_acl
from cloud.config import load
from cloud.errors import ConfigError, InputError
from cloud.pki import PEV, UTILITY, Pki

NOW = datetime.now(UTC)
HOSTS = ("localhost", "127.0.0.1")
VIN = "1HGCM82633A004352"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    made = Pki(tmp_path_factory.mktemp("state") / "pki")
    made.create(HOSTS, NOW)
    return made


def leaf_files(
    folder: Path, authority: security.Authority, leaf: security.Leaf, now: datetime = NOW
) -> tuple[Path, Path]:
    key = security.new_key()
    certificate, secret = folder / "leaf.crt", folder / "leaf.key"
    folder.mkdir(exist_ok=True)
    certificate.write_text(security.certificate_pem(security.issue(authority, key.public_key(), leaf, now)))
    secret.write_bytes(security.key_pem(key))
    return certificate, secret


def handshake(charger: ssl.SSLContext, vehicle: ssl.SSLContext) -> tuple[str | None, object]:
    """TLS version and the certificate that the charger sees. Raises SSLError."""
    to_charger, to_vehicle = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = charger.wrap_bio(to_charger, to_vehicle, server_side=True)
    client = vehicle.wrap_bio(to_vehicle, to_charger)
    for _ in range(6):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return server.version(), server.getpeercert()


def contexts(pki: Pki, folder: Path, pev: tuple[Path, Path]) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A charger with a certificate of the utility, and a vehicle with this one; each trusts the other's authority."""
    charger = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    charger.minimum_version = ssl.TLSVersion.TLSv1_3
    charger.load_cert_chain(*leaf_files(folder / "charger", pki._authority(UTILITY), security.device_leaf("D1")))
    charger.load_verify_locations(pki.pev_ca)
    charger.verify_mode = ssl.CERT_REQUIRED
    vehicle = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    vehicle.check_hostname = False  # a charger is known by its authority; it has no host name
    vehicle.load_verify_locations(pki.utility_ca)
    vehicle.load_cert_chain(*pev)
    return charger, vehicle


@pytest.mark.req("P1-S1.7")
def test_an_issued_vehicle_and_an_issued_charger_shake_hands_in_tls_1_3(pki: Pki, tmp_path: Path) -> None:
    pki.make_vehicle(VIN, tmp_path / "pev", NOW)
    version, seen = handshake(*contexts(pki, tmp_path, (tmp_path / "pev" / "pev.crt", tmp_path / "pev" / "pev.key")))
    assert version == "TLSv1.3"
    assert isinstance(seen, dict)
    assert seen["subjectAltName"] == (("URI", f"urn:plugbind:pev:{VIN}"),)
    assert (tmp_path / "pev" / "ca.crt").read_bytes() == pki.utility_ca.read_bytes()
    assert (tmp_path / "pev" / "pev.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.req("P1-S1.7")
@pytest.mark.parametrize("wrong", ["foreign authority", "utility authority", "expired", "not a client"])
def test_a_wrong_vehicle_certificate_ends_the_handshake(pki: Pki, tmp_path: Path, wrong: str) -> None:
    authority = pki._authority(UTILITY if wrong == "utility authority" else PEV)
    if wrong == "foreign authority":
        authority = security.make_authority("Plugbind PEV CA", NOW)
    leaf = security.server_leaf(VIN, HOSTS) if wrong == "not a client" else security.pev_leaf(VIN)
    now = NOW - timedelta(days=security.PEV_DAYS + 1) if wrong == "expired" else NOW
    pev = leaf_files(tmp_path / "pev", authority, leaf, now)
    with pytest.raises(ssl.SSLError):
        handshake(*contexts(pki, tmp_path, pev))


@pytest.mark.req("P1-S1.7")
def test_a_certificate_is_valid_from_five_minutes_before_it_was_issued(pki: Pki) -> None:
    issued = pki.device_certifier(NOW)("D1", security.new_key().public_key())
    assert NOW - issued.not_valid_before_utc < timedelta(minutes=5, seconds=1)
    assert NOW - issued.not_valid_before_utc >= timedelta(minutes=5)
    assert issued.not_valid_after_utc - NOW <= timedelta(days=security.DEVICE_DAYS)


@pytest.mark.req("P1-S1.7")
def test_an_independent_verifier_accepts_a_charger_as_client(pki: Pki) -> None:
    issued = pki.device_certifier(NOW)("D1", security.new_key().public_key())
    root = x509.load_pem_x509_certificate(pki.utility_ca.read_bytes())
    policy = PolicyBuilder().store(Store([root])).time(NOW).max_chain_depth(0)
    verified = policy.build_client_verifier().verify(issued, [])
    assert [name.value for name in verified.subjects or []] == ["urn:plugbind:device:D1"]
    assert [name.value for name in issued.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["D1"]


def test_the_folder_and_its_keys_are_for_their_owner_only(pki: Pki) -> None:
    assert pki.folder.stat().st_mode & 0o777 == 0o700
    keys = sorted(pki.folder.rglob("*.key"))
    assert len(keys) == 6
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}


def test_making_the_folder_again_changes_nothing(pki: Pki) -> None:
    before = {path: path.read_bytes() for path in pki.folder.rglob("*") if path.is_file()}
    assert pki.create(HOSTS, NOW) == []
    assert {path: path.read_bytes() for path in pki.folder.rglob("*") if path.is_file()} == before


def test_service_certificates_are_renewed_late_in_life_and_for_other_names(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    assert set(pki.create(HOSTS, NOW)) == {"utility-ca", "pev-ca", "utility-seal", "broker", "api", "gateway"}
    assert pki.create((*HOSTS, "utility.example"), NOW) == ["broker", "api"]
    later = NOW + timedelta(days=security.SERVICE_DAYS * 2 // 3 + 1)
    assert pki.create((*HOSTS, "utility.example"), later) == ["broker", "api", "gateway"]


def test_two_that_make_the_folder_at_once_make_one(tmp_path: Path) -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.extend(Pki(tmp_path / "pki").create(HOSTS, NOW))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == sorted(["utility-ca", "pev-ca", "utility-seal", "broker", "api", "gateway"])


def test_an_authority_whose_key_is_lost_is_not_silently_replaced(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    pki.create(HOSTS, NOW)
    (tmp_path / "pki" / "utility-ca.key").unlink()
    with pytest.raises(ConfigError, match="utility-ca"):
        pki.create(HOSTS, NOW)


@pytest.mark.parametrize("name", ["broker", "api", "D1", "../x", "gateway/../x", "", "gatewayx", "observer\n"])
def test_only_client_services_get_client_certificates(pki: Pki, name: str) -> None:
    with pytest.raises(InputError):
        pki.make_client(name, NOW)


def peer(name: str, uri: str) -> dict[str, object]:
    return {"subject": ((("commonName", name),),), "subjectAltName": (("URI", uri),)}


@pytest.mark.req("P1-S1.9")
@pytest.mark.parametrize(("certificate", "identity"), [
    (peer("D1", "urn:plugbind:device:D1"), Identity("D1", "device")),
    (peer("gateway-2", "urn:plugbind:service:gateway-2"), Identity("gateway-2", "service")),
    (peer("D1", "urn:plugbind:device:D2"), None),
    (peer("gateway", "urn:plugbind:device:gateway"), None),
    (peer("D1", "urn:plugbind:service:D1"), None),
    (peer(VIN, f"urn:plugbind:pev:{VIN}"), None),
    (peer("a/b", "urn:plugbind:device:a/b"), None),
    (peer("+", "urn:plugbind:device:+"), None),
    ({}, None),
    (None, None),
    ({"subject": (), "subjectAltName": ()}, None),
])
def test_an_identity_is_one_name_said_twice(certificate: dict[str, object] | None, identity: Identity | None) -> None:
    assert identity_of(certificate) == identity


DEVICE, GATEWAY, OBSERVER = Identity("D1", "device"), Identity("gateway-2", "service"), Identity("observer", "service")


@pytest.mark.req("P1-S1.9")
@pytest.mark.parametrize(("who", "publish", "subscribe"), [
    (DEVICE, {"esci/1/D1/up/records", "esci/1/D1/state"}, {"esci/1/D1/down/+", "esci/1/D1/down/ack"}),
    (GATEWAY, {"esci/1/D1/down/ack", "esci/1/D2/down/ack"},
     {"esci/1/+/up/+", "esci/1/D1/up/+", "esci/1/D1/up/records", "esci/1/+/state", "esci/1/D1/state"}),
    (OBSERVER, set(), {"esci/#", "esci/1/+/up/+", "esci/1/+/state", "esci/1/D1/down/+", "esci/1/D1/down/ack",
                       "esci/1/D2/down/ack", "esci/1/D1/up/records", "esci/1/D1/state", "esci/1/#"}),
    (Identity("broker", "service"), set(), set()),
])
def test_each_may_do_what_its_rules_say_and_no_more(who: Identity, publish: set[str], subscribe: set[str]) -> None:
    topics = {"esci/1/D1/up/records", "esci/1/D1/state", "esci/1/D1/down/ack", "esci/1/D2/down/ack", "esci/1/D1/up/a/b",
              "esci/1/D1/up/+", "#", "esci/1/D1/state/#", "", "$SYS/x", "esci/1/D1", "ESCI/1/D1/state"}
    filters = topics | {"esci/#", "esci/1/#", "esci/1/+/up/+", "esci/1/+/state", "esci/1/D1/down/+", "esci/1/+/+/+",
                        "esci/1/+/down/#", "+/1/D1/down/+", "$share/g/esci/1/D1/down/+"}
    assert {topic for topic in topics if may_publish(who, topic)} == publish
    allowed = {topic for topic in filters if may_subscribe(who, topic)}
    assert subscribe <= allowed
    if who != OBSERVER:
        assert allowed == subscribe


@pytest.mark.req("P1-S1.9")
def test_mosquitto_gets_the_same_rules() -> None:
    assert mosquitto_acl(["api", "broker", "gateway", "observer"]) == """\
# Made by `evse-cloud broker-config`. Chargers, by the name in their certificate:
pattern write esci/1/%u/up/+
pattern write esci/1/%u/state
pattern read esci/1/%u/down/+

user gateway
topic write esci/1/+/down/+
topic read esci/1/+/up/+
topic read esci/1/+/state

user observer
topic read esci/#
"""


@pytest.mark.parametrize(("text", "words"), [
    ("[broker]\nprt = 1\n", "broker.prt"),
    ("[broker]\nport = 0\n", "broker.port"),
    ("[broker]\nport = '8883'\n", "broker.port"),
    ("[broker]\nhost = 'a b'\n", "broker.host"),
    ("[broker]\nbind = '0.0.0.0\\nlistener 1883'\n", "broker.bind"),
    ("[certificates]\nnames = ['*']\n", "certificates.names.0"),
    ("nonsense = 1\n", "nonsense"),
    ("state = '/elsewhere'\n", "state"),
    ("[broker", "not TOML"),
])
def test_a_wrong_configuration_is_named_by_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "cloud.toml").write_text(text)
    with pytest.raises(ConfigError) as found:
        load(tmp_path)
    assert words in str(found.value)
    assert "cloud.toml" in str(found.value)


def test_a_secret_in_the_database_url_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "cloud.toml").write_text("[database]\nurl = ['postgresql://u:hunter2@h/d']\n")
    with pytest.raises(ConfigError) as found:
        load(tmp_path)
    assert "hunter2" not in str(found.value)
