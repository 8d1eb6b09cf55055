"""The PEV link against a real TLS client: who gets in, who does not, and that the server outlives all of them."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509

from agent.adapters import pevlink
from agent.adapters.keys import TlsFiles
from agent.adapters.pevlink import PevLinkError, PevLinkServer
from agent.config import PevLinkConfig
from agent.core.events import Event, PevAcknowledged, PevGone, PevIdentified
from esci.pevlink import LINE_LIMIT, PEV_URI, Reject, Wait
from esci.reasons import Reason
from stack.agent_certs import LOCAL, Authority

VIN = "1HGCM82633A004352"
OTHER_VIN = "5YJSA1DG9DFP14705"
PATIENCE_S = 20.0


def vehicle_name(vin: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(PEV_URI + vin)


@dataclass(frozen=True, slots=True)
class Site:
    """One charger's link, and the authorities around it."""

    server: PevLinkServer
    events: queue.Queue[Event]
    utility: Authority
    pev_ca: Authority
    charger: TlsFiles
    vehicle: TlsFiles

    def heard(self) -> Event:
        return self.events.get(timeout=PATIENCE_S)


@dataclass(slots=True)
class Vehicle:
    """A plain TLS 1.3 client."""

    secure: ssl.SSLSocket
    lines: list[bytes] = field(default_factory=list)
    rest: bytes = b""

    def send(self, **message: object) -> None:
        self.secure.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> dict[str, object] | None:
        """The next message; None when the charger hung up."""
        while b"\n" not in self.rest:
            try:
                part = self.secure.recv(8192)
            except (ConnectionError, ssl.SSLError):
                return None
            if not part:
                return None
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\n")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def leave(self) -> None:
        self.secure.settimeout(PATIENCE_S)
        with contextlib.suppress(OSError):
            self.secure.unwrap()
        self.secure.close()


Dial = Callable[..., Vehicle]


def client_context(files: TlsFiles | None, ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    if files is not None:
        context.load_cert_chain(files.cert, files.key)
    return context


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority, TlsFiles, TlsFiles]:
    folder = tmp_path_factory.mktemp("certs")
    utility, pev_ca = Authority.make(folder / "utility", "utility-ca"), Authority.make(folder / "pev", "pev-ca")
    return utility, pev_ca, utility.issue("device-1", *LOCAL), pev_ca.issue("car", vehicle_name(VIN))


@pytest.fixture
def site(authorities: tuple[Authority, Authority, TlsFiles, TlsFiles]) -> Iterator[Site]:
    utility, pev_ca, charger, vehicle = authorities
    events: queue.Queue[Event] = queue.Queue(100)
    server = PevLinkServer(PevLinkConfig(host="127.0.0.1", port=0), "device-1", "home", charger, pev_ca.file,
                           events.put_nowait)
    server.start()
    yield Site(server, events, utility, pev_ca, charger, vehicle)
    server.stop()


@pytest.fixture
def dial(site: Site) -> Iterator[Dial]:
    opened: list[Vehicle] = []

    def _dial(files: TlsFiles | None = site.vehicle, context: ssl.SSLContext | None = None,
              session: ssl.SSLSession | None = None) -> Vehicle:
        chosen = context if context is not None else client_context(files, site.utility.file)
        plain = socket.create_connection(("127.0.0.1", site.server.port), timeout=PATIENCE_S)
        opened.append(Vehicle(chosen.wrap_socket(plain, server_hostname="127.0.0.1", session=session)))
        return opened[-1]

    yield _dial
    for vehicle in opened:
        vehicle.secure.close()


def served(site: Site, dial: Dial) -> None:
    """The server is alive: an honest vehicle gets through, once earlier ones are forgotten."""
    vehicle = dial()
    vehicle.send(kind="identify", pev=VIN, ticket="")
    while site.heard() != PevIdentified(VIN, "", False):
        pass


# ---- the honest ----


@pytest.mark.req("P1-S1.7", "P1-S1.8")
def test_first_plug_in_discover_offer_identify_wait_reject_ack(site: Site, dial: Dial) -> None:
    vehicle = dial()
    assert vehicle.secure.version() == "TLSv1.3"
    vehicle.send(kind="discover", protocol=1)
    assert vehicle.hear() == {"kind": "offer", "device": "device-1", "premises": "home", "protocol": 1}
    vehicle.send(kind="identify", pev=VIN, ticket="t" * 16)
    assert site.heard() == PevIdentified(VIN, "t" * 16, resumed=False)
    site.server.tell(Wait())
    site.server.tell(Reject(reason=Reason.UNKNOWN_PEV, sentence="No."))
    assert vehicle.hear() == {"kind": "wait"}
    assert vehicle.hear() == {"kind": "reject", "reason": "unknown-pev", "sentence": "No."}
    vehicle.send(kind="ack", binding="b" * 32)
    assert site.heard() == PevAcknowledged("b" * 32)
    vehicle.leave()
    assert site.heard() == PevGone()


@pytest.mark.req("P1-S2.2")
def test_a_vehicle_that_returns_resumes_its_tls_session(site: Site, dial: Dial) -> None:
    context = client_context(site.vehicle, site.utility.file)
    first = dial(context=context)
    first.send(kind="discover", protocol=1)
    assert first.hear() is not None  # the ticket comes with the first data
    session = first.secure.session
    first.leave()
    again = dial(context=context, session=session)
    assert again.secure.session_reused
    again.send(kind="identify", pev=VIN, ticket="t" * 16)
    assert site.heard() == PevIdentified(VIN, "t" * 16, resumed=True)


def test_the_newest_connection_is_the_vehicle(site: Site, dial: Dial) -> None:
    """A vehicle whose link broke unseen connects anew; the dead link's end is not the vehicle's."""
    old = dial()
    old.send(kind="identify", pev=VIN, ticket="old")
    assert site.heard() == PevIdentified(VIN, "old", False)
    new = dial()
    new.send(kind="identify", pev=VIN, ticket="new")
    assert site.heard() == PevIdentified(VIN, "new", False)
    assert old.hear() is None
    site.server.tell(Wait())
    assert new.hear() == {"kind": "wait"}
    new.leave()
    assert site.heard() == PevGone()
    assert site.events.empty()


def test_a_message_to_nobody_is_dropped(site: Site, dial: Dial) -> None:
    site.server.tell(Wait())
    served(site, dial)


def test_a_full_inbox_delays_the_vehicle_and_loses_nothing(site: Site, dial: Dial) -> None:
    for _ in range(100):
        site.events.put(PevGone())
    vehicle = dial()
    vehicle.send(kind="identify", pev=VIN, ticket="")
    heard = [site.heard() for _ in range(101)]
    assert heard[-1] == PevIdentified(VIN, "", False)


# ---- the others ----


@pytest.mark.req("P1-S1.8")
def test_another_vehicles_name_is_refused_with_its_reason(site: Site, dial: Dial) -> None:
    vehicle = dial()
    vehicle.send(kind="identify", pev=OTHER_VIN, ticket="")
    answer = vehicle.hear()
    assert answer is not None
    assert (answer["kind"], answer["reason"]) == ("reject", "pev-mismatch")
    assert vehicle.hear() is None
    assert site.events.empty()
    served(site, dial)


def _shut_out(dial: Dial, files: TlsFiles | None, context: ssl.SSLContext | None = None) -> bool:
    """True when the handshake fails; under TLS 1.3 the client learns it with its first read."""
    try:
        vehicle = dial(files, context)
        vehicle.send(kind="identify", pev=VIN, ticket="")
    except (ssl.SSLError, ConnectionError):
        return True
    return vehicle.hear() is None


@pytest.mark.req("P1-S1.7")
@pytest.mark.parametrize("who", ["no certificate", "wrong CA", "expired", "utility's CA", "no vehicle", "two vehicles"])
def test_a_stranger_is_shut_out(who: str, site: Site, dial: Dial, tmp_path: Path) -> None:
    named = vehicle_name(VIN)
    makers: dict[str, Callable[[], TlsFiles | None]] = {
        "no certificate": lambda: None,
        "wrong CA": lambda: Authority.make(tmp_path, "pev-ca").issue("car", named),
        "expired": lambda: site.pev_ca.issue("car", named, expired=True),
        "utility's CA": lambda: site.utility.issue("car", named),
        "no vehicle": lambda: site.pev_ca.issue("nameless", *LOCAL),
        "two vehicles": lambda: site.pev_ca.issue("double", named, vehicle_name(OTHER_VIN)),
    }
    assert _shut_out(dial, makers[who]())
    assert site.events.empty()
    served(site, dial)


@pytest.mark.req("P1-S1.7")
def test_a_revoked_vehicle_is_shut_out_and_the_others_are_not(site: Site, tmp_path: Path) -> None:
    ca = tmp_path / "pev-ca.crt"
    ca.write_bytes(site.pev_ca.file.read_bytes())
    stolen = site.pev_ca.issue("stolen", vehicle_name(VIN))
    (tmp_path / "pev-ca.crl").write_bytes(site.pev_ca.revoke(stolen))
    events: queue.Queue[Event] = queue.Queue()
    server = PevLinkServer(PevLinkConfig(host="127.0.0.1", port=0), "device-1", "home", site.charger, ca, events.put)
    server.start()
    outcomes = []
    for files in (stolen, site.vehicle):
        plain = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
        with contextlib.suppress(ssl.SSLError, ConnectionError), client_context(
                files, site.utility.file).wrap_socket(plain, server_hostname="127.0.0.1") as secure:
            vehicle = Vehicle(secure)
            vehicle.send(kind="discover", protocol=1)
            outcomes.append(vehicle.hear() is not None)
    server.stop()
    assert outcomes[-1] is True
    assert outcomes.count(True) == 1


@pytest.mark.req("P1-S1.7")
def test_older_tls_is_refused(site: Site, dial: Dial) -> None:
    context = client_context(site.vehicle, site.utility.file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert _shut_out(dial, None, context)
    served(site, dial)


@pytest.mark.parametrize("data", [
    b"\x00\xff\xfe garbage\n", b"{}\n", b"[]\n", b"\n", b'{"kind":"identify"}\n', b'{"kind":"offer"}\n',
    b'{"kind":"discover","protocol":1,"kind":"discover"}\n', b'{"kind":"discover","protocol":1.0}\n',
    b'{"kind":"ack","binding":"' + b"b" * 32 + b'"}\n', b'{"kind":"x","a":' + b"[" * 4000 + b"\n",
    b"x" * (LINE_LIMIT + 1), b"x" * LINE_LIMIT + b"\n",
])  # fmt: skip
def test_garbage_ends_only_its_own_connection(data: bytes, site: Site, dial: Dial) -> None:
    vehicle = dial()
    vehicle.secure.sendall(data)
    answer = vehicle.hear()
    assert answer is None or (answer["kind"], answer["reason"]) == ("reject", "malformed")
    assert vehicle.hear() is None
    assert site.events.empty()
    served(site, dial)


def test_a_line_of_just_the_limit_is_read(site: Site, dial: Dial) -> None:
    vehicle = dial()
    line = b'{"kind":"discover","protocol":1}'
    vehicle.secure.sendall(line + b" " * (LINE_LIMIT - 1 - len(line)) + b"\n")
    answer = vehicle.hear()
    assert answer is not None
    assert answer["kind"] == "offer"


def test_a_flood_ends_its_connection(site: Site, dial: Dial) -> None:
    vehicle = dial()
    for _ in range(pevlink.MESSAGES_MAX + 1):
        with contextlib.suppress(OSError):
            vehicle.send(kind="discover", protocol=1)
    heard = 0
    while vehicle.hear() is not None:
        heard += 1
    assert heard <= pevlink.MESSAGES_MAX
    served(site, dial)


def test_silent_connections_make_room_for_the_vehicle_and_not_the_other_way_round(site: Site, dial: Dial) -> None:
    bound = dial()
    bound.send(kind="identify", pev=VIN, ticket="")
    assert site.heard() == PevIdentified(VIN, "", False)
    idle = [socket.create_connection(("127.0.0.1", site.server.port), timeout=PATIENCE_S) for _ in range(12)]
    assert idle[0].recv(1) == b""  # the oldest had to go
    site.server.tell(Wait())
    assert bound.hear() == {"kind": "wait"}
    for connection in idle:
        connection.close()
    assert site.events.empty()


def test_a_peer_that_speaks_no_tls_is_shut_out(site: Site, dial: Dial) -> None:
    with socket.create_connection(("127.0.0.1", site.server.port), timeout=PATIENCE_S) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: charger\r\n\r\n" * 10)
        with contextlib.suppress(ConnectionError):
            while plain.recv(4096):
                pass
    served(site, dial)


def test_a_server_stops_with_silent_and_bound_vehicles_connected(site: Site, dial: Dial) -> None:
    served(site, dial)
    with socket.create_connection(("127.0.0.1", site.server.port), timeout=PATIENCE_S) as idle:
        site.server.stop()
        with contextlib.suppress(ConnectionResetError):  # when it stopped before it had taken the connection
            assert idle.recv(1) == b""
    assert site.events.empty()


# ---- setting up ----


def test_a_taken_port_and_missing_keys_are_sentences(site: Site, tmp_path: Path) -> None:
    second = PevLinkServer(PevLinkConfig(host="127.0.0.1", port=site.server.port), "device-1", "home", site.charger,
                           site.pev_ca.file, site.events.put)
    with pytest.raises(PevLinkError, match=r"port \d+ on 127.0.0.1 cannot be opened .*: correct \[pevlink\]"):
        second.start()
    with pytest.raises(PevLinkError, match="cannot be used .*: run `evse-agent commission`"):
        PevLinkServer(PevLinkConfig(), "device-1", "home", site.charger, tmp_path / "none", site.events.put)
