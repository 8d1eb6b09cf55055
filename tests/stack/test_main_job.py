"""The main job with production's parts: mosquitto, PostgreSQL, and every program as a process (P1 scenarios 1 to 3).

One story is lived once, at 120 times real time: a first binding, a re-binding, a suspended vehicle, an unknown vehicle,
a broker that is gone when a vehicle comes, a meter that is pulled while a vehicle charges and silent for the next. Each
test then looks at one law in what an observer on the broker, the programs' logs, the charger and the utility told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from esci.units import parse_utc
from hil.demo import PRICE_CHANGE_UTC
from hil.plant import LEAF, STRANGER
from hil.processes import Ear, Heard
from ledger_postgres import postgres_url
from stack.main_job_world import STEP_S, Account, Listener, Seen, Utility, once, utility

SCALE, SEED = 120, 7
BEGIN_UTC = "2025-07-16T03:52:00Z"  # 20:52 in Los Angeles: eight minutes before the price changes
BINDING_WAIT_S, CHARGE_S = 600, 150
DEFAULT_TARIFF, PROGRAM_TARIFF = "SCE-TOU-D-4-9PM", "SCE-TOU-D-PRIME"
MINUTE = timedelta(seconds=60)
BINDING_KINDS = ("bind.request", "bind.confirm", "bind.ack", "eumd.detect", "eumd.ack")


@dataclass(slots=True)
class Episode:
    """One plug-in: log lines, messages on the broker, status while charging and as people see it; receipt and bill."""

    logs: list[Heard]
    messages: list[Seen]
    status: Mapping[str, Any]
    shown: str
    receipt: Mapping[str, Any] = field(default_factory=dict)
    bill: Mapping[str, Any] = field(default_factory=dict)

    def line(self, source: str, event: str, **fields: str) -> Heard:
        """The first such log line."""
        return next(line for line in self.logs if line.source == source and line.event == event
                    and all(str(line.fields.get(name)) == value for name, value in fields.items()))

    def sent(self, kind: str) -> Seen:
        """The first message of that kind on the broker."""
        return next(one for one in self.messages if one.kind == kind)

    def link_messages(self) -> int:
        """Messages between vehicle and charger and, to bind, between charger and utility; repeats counted once."""
        bound = self.line("sim", "pev link received", kind="confirm").number
        link = sum(line.event in ("pev link sent", "pev link received") for line in self.logs if line.number <= bound)
        return link + len({(one.kind, one.body["id"]) for one in self.messages if one.kind in BINDING_KINDS})


@dataclass(slots=True)
class Told:
    """The whole story."""

    device: str
    messages: list[Seen]
    heard_by_other: list[Seen]
    episodes: dict[str, Episode]
    account: Account
    bindings: list[Mapping[str, Any]]  # after the first plug-in
    logs: list[Heard]


class Story:
    """Lives through it. Raises BenchError when something does not come."""

    def __init__(self, plant: Utility, ear: Ear, observer: Listener, other: Listener) -> None:
        self._plant, self._ear, self._observer, self._other = plant, ear, observer, other
        self._episodes: dict[str, Episode] = {}
        self._bindings: list[Mapping[str, Any]] = []

    def live(self) -> Told:
        plant = self._plant
        plant.begin(SCALE, BEGIN_UTC, SEED)
        self._first()
        self._charge("again", "leaf")
        plant.suspend("--suspend")
        self._charge("suspended", "leaf")
        plant.suspend("--resume")
        self._charge("stranger", "stranger")
        self._without_broker()
        self._without_meter()
        plant.drained()
        account = plant.account()
        for episode, (session, receipt) in zip(self._episodes.values(), account.receipts.items(), strict=True):
            episode.receipt, episode.bill = receipt, account.billed(session)
        return Told(plant.device, self._observer.seen(), self._other.seen(), self._episodes, account,
                    self._bindings, self._ear.since(0))

    def _first(self) -> None:
        """Over the price change; and the utility shortens the intervals meanwhile (P1-F24)."""
        plant = self._plant
        from_message, (_, since) = len(self._observer.seen()), plant.plug("leaf")
        plant.see("the contactor", "agent", "board changed", since, closed="True")
        plant.see("the utility hears of the meter role", "gateway", "handled", since, kind="eumd.ack")
        self._bindings = json.loads(plant.cloud("bindings", "--json"))
        asked = self._ear.position
        plant.cloud("enrol", "premises", "--id", "P-1001", "--change", "--interval-min", "1")
        place = plant.see("the new interval", "gateway", "handled", asked, kind="eumd.ack").number
        for _ in range(2):
            place = self._ear.wait("an interval of a minute", _is_minute, place + 1, STEP_S, plant.crew.check).number
        plant.until("21:01 world time", lambda: str(plant.world().get("utc")) > "2025-07-16T04:01:00Z")
        self._end("first", "leaf", since, from_message)

    def _charge(self, name: str, vehicle: str) -> None:
        from_message, (_, since) = len(self._observer.seen()), self._plant.plug(vehicle)
        self._plant.see("the contactor", "agent", "board changed", since, closed="True")
        self._plant.let_pass(CHARGE_S)
        self._end(name, vehicle, since, from_message)

    def _without_broker(self) -> None:
        since = self._ear.position
        self._plant.crew.kill("broker")
        self._plant.see("the agent notices", "agent", "lost", since, what="UplinkLost")
        self._charge("no-broker", "leaf")
        self._plant.start_broker()
        self._plant.drained()

    def _without_meter(self) -> None:
        """The meter is pulled while a vehicle charges, is silent while another session begins and ends, and is back."""
        plant = self._plant
        from_message, (_, since) = len(self._observer.seen()), plant.plug("leaf")
        plant.see("the contactor", "agent", "board changed", since, closed="True")
        plant.let_pass(CHARGE_S)
        cut = self._ear.position
        plant.do("meter_unplug")
        plant.see("the agent notices", "agent", "lost", cut, what="MeterFailed")
        plant.until("the status says so", lambda: plant.status().get("power_w") is None)
        self._end("meter-pulled", "leaf", since, from_message)
        self._charge("no-meter", "leaf")
        back = self._ear.position
        plant.do("meter_plug")
        plant.until("the meter is read", lambda: plant.status().get("register_wh") == plant.world().get("register_wh"))
        plant.see("what was not read until now", "agent", "recorded", back, record="interval")

    def _end(self, name: str, vehicle: str, since: int, from_message: int) -> None:
        status = self._plant.status()
        shown = self._plant.agent("status") if name in ("again", "stranger", "no-meter") else ""
        self._plant.unplug(vehicle)
        self._episodes[name] = Episode(self._ear.since(since), self._observer.seen()[from_message:], status, shown)


def _is_minute(line: Heard) -> bool:
    """True for the agent's record of a whole interval of one minute."""
    if line.source != "agent" or line.fields.get("record") != "interval":
        return False
    body = json.loads(str(line.fields["body"]))
    return parse_utc(body["end"]) - parse_utc(body["start"]) == MINUTE


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, mosquitto_bin: str, postgres_bin: Path) -> Told:
    return once(tmp_path_factory, "main-job", lambda folder: _live(folder, mosquitto_bin, postgres_bin))


def _live(folder: Path, mosquitto: str, postgres: Path) -> Told:
    with postgres_url(postgres) as url, utility(folder, mosquitto, url) as (plant, ear):
        plant.open(with_other=True)
        observer, other = plant.listen("observer", "esci/#"), plant.listen("D-OTHER", "#")
        try:
            found = Story(plant, ear, observer, other).live()
            _trespass(plant, observer, other)
            found.messages, found.heard_by_other = observer.seen(), other.seen()
            return found
        finally:
            other.close()
            observer.close()


def _trespass(plant: Utility, observer: Listener, other: Listener) -> None:
    """The other charger speaks in our charger's name, and then in its own; a gateway writes to it at the end."""
    for direction, kind in (("up", "records"), ("up", "hello"), ("down", "params")):
        other.post(f"esci/1/{plant.device}/{direction}/{kind}", b"trespass")
    other.post(f"esci/1/{plant.device}/state", b"trespass")
    other.post("esci/1/D-OTHER/up/hello", b"mine")
    observer.await_seen("its own word", lambda one: one.topic == "esci/1/D-OTHER/up/hello")
    gateway = plant.listen("gateway-other", "esci/+/none")
    try:
        gateway.post("esci/1/D-OTHER/down/params", b"to it")
        other.await_seen("a word to it", lambda one: one.topic == "esci/1/D-OTHER/down/params")
    finally:
        gateway.close()


# ---- scenario 1


@pytest.mark.req("P1-S1.9")
def test_an_independent_client_sees_each_step_of_the_first_binding_in_order(told: Told) -> None:
    seen = [one.kind for one in told.episodes["first"].messages if one.kind in BINDING_KINDS]
    places = [seen.index(kind) for kind in BINDING_KINDS]
    assert places == sorted(places)
    assert all(one.is_sealed for one in told.messages if one.kind in BINDING_KINDS)
    request = told.episodes["first"].sent("bind.request").body
    assert (request["pev"], request["premises"]) == (LEAF, "P-1001")


@pytest.mark.req("P1-S1.6", "P1-S1.7", "P1-S1.8", "P1-S1.10", "P1-S1.12", "P1-S1.15")
def test_the_first_binding_goes_through_vehicle_charger_and_utility_step_by_step(told: Told) -> None:
    first = told.episodes["first"]
    assert first.line("agent", "board changed", plugged="True").number < first.line("agent", "sent").number
    steps = [  # the vehicle's link may be faster than the next report of the board
        first.line("sim", "pev link secured", vehicle="leaf"),
        first.line("agent", "vehicle identified", resumed="False"),
        first.line("agent", "sent", kind="bind.request"),
        first.line("agent", "received", kind="bind.confirm"),
        first.line("agent", "recorded", record="session.bound"),
    ]
    assert [step.number for step in steps] == sorted(step.number for step in steps)
    assert first.line("gateway", "handled", kind="bind.request")
    assert first.line("sim", "pev link received", kind="confirm")
    (vehicle,) = [one for one in told.account.world["vehicles"] if one["name"] == "leaf"]
    assert vehicle["program"] == "PRIME"


@pytest.mark.req("P1-S1.11", "P1-S1.14")
def test_the_utility_tells_program_tariff_interval_and_ticket(told: Told) -> None:
    first = told.episodes["first"]
    confirm, detect = first.sent("bind.confirm").body, first.sent("eumd.detect").body
    assert (confirm["program"], confirm["tariff"]["code"], confirm["scenario"]) == ("PRIME", PROGRAM_TARIFF, "first")
    assert confirm["request"] == first.sent("bind.request").body["id"]
    assert len(confirm["ticket"]) >= 16
    assert (detect["binding"], detect["program"], detect["interval_s"]) == (confirm["binding"], "PRIME", 300)


@pytest.mark.req("P1-S1.13", "P1-S1.16")
def test_the_utility_has_the_binding_set_up_only_after_both_acknowledgements(told: Told) -> None:
    first = told.episodes["first"]
    confirm, acked = first.sent("bind.confirm").body, first.sent("eumd.ack").body
    assert first.sent("bind.ack").body["binding"] == acked["binding"] == confirm["binding"]
    assert acked["applied"] is True
    (binding,) = [one for one in told.bindings if one["binding_id"] == confirm["binding"]]
    assert binding["confirmed_at"] <= binding["pev_acked_at"] <= binding["set_up_at"]


@pytest.mark.req("P1-N2", "P1-N3", "P1-S2.7")
@pytest.mark.parametrize("name", ["first", "again", "suspended", "stranger"])
def test_the_contactor_closes_after_the_utilitys_answer_and_not_before(told: Told, name: str) -> None:
    episode = told.episodes[name]
    answer = "bind.confirm" if name in ("first", "again") else "bind.reject"
    asked = episode.line("agent", "sent", kind="bind.request")
    answered = episode.line("agent", "received", kind=answer)
    closed = episode.line("agent", "board changed", closed="True")
    assert asked.number < answered.number < closed.number


@pytest.mark.req("P1-F24", "P1-F18")
def test_a_new_interval_length_takes_effect_on_a_clean_boundary_and_loses_nothing(told: Told) -> None:
    lines = told.episodes["first"].bill["lines"]
    spans = [(parse_utc(line["start"]), parse_utc(line["end"])) for line in lines]
    lengths = [end - start for start, end in spans]
    assert max(lengths) > MINUTE and lengths.count(MINUTE) >= 2
    first_short = lengths.index(MINUTE)
    assert spans[first_short][0].second == 0 and spans[first_short][0].minute % 5 == 0
    assert all(length <= MINUTE for length in lengths[first_short:])
    assert all(end == start for (_, end), (start, _) in pairwise(spans))
    assert sum(line["energy_wh"] for line in lines) == told.episodes["first"].receipt["energy_wh"]


def test_an_interval_ends_where_the_price_changes(told: Told) -> None:
    lines = [line for line in told.episodes["first"].bill["lines"] if line["energy_wh"]]
    assert any(line["end"] == PRICE_CHANGE_UTC for line in lines)
    assert {line["period"] for line in lines} == {"summer-on-peak", "summer-off-peak"}


# ---- scenario 2


@pytest.mark.req("P1-S2.1", "P1-S2.2", "P1-S2.3", "P1-S2.4", "P1-S2.6")
def test_the_second_plug_in_resumes_the_session_and_binds_again(told: Told) -> None:
    again = told.episodes["again"]
    assert again.line("agent", "board changed", plugged="True").number < again.line("agent", "sent").number
    steps = [
        again.line("agent", "vehicle identified", resumed="True"),
        again.line("agent", "sent", kind="bind.request"),
        again.line("agent", "received", kind="bind.confirm"),
        again.line("agent", "recorded", record="session.bound"),
    ]
    assert [step.number for step in steps] == sorted(step.number for step in steps)
    assert again.sent("bind.confirm").body["scenario"] == "again"
    assert again.receipt["program"] == "PRIME"
    charged = [line for line in again.bill["lines"] if line["energy_wh"]]
    assert charged and all(line["tariff"].startswith(PROGRAM_TARIFF) for line in charged)


@pytest.mark.req("P1-F28")
def test_a_re_binding_takes_at_most_half_the_messages_of_the_first(told: Told) -> None:
    first, again = told.episodes["first"].link_messages(), told.episodes["again"].link_messages()
    assert again * 2 <= first, f"{again} of {first} messages"


@pytest.mark.req("P1-S2.5")
def test_a_suspension_since_the_last_session_is_honoured(told: Told) -> None:
    suspended = told.episodes["suspended"]
    assert suspended.sent("bind.reject").body["reason"] == "pev-suspended"
    assert suspended.receipt["rate_reason"] == suspended.bill["unbound_reason"] == "pev-suspended"


# ---- without a binding


@pytest.mark.req("P1-B4", "P1-F10")
@pytest.mark.parametrize(("name", "reason", "pev"), [("stranger", "unknown-pev", STRANGER),
                                                     ("no-broker", "utility-unreachable", LEAF)])
def test_without_a_binding_energy_flows_at_the_premises_default_rate_with_the_reason(
    told: Told, name: str, reason: str, pev: str
) -> None:
    episode = told.episodes[name]
    assert episode.receipt["rate_reason"] == episode.bill["unbound_reason"] == episode.status["reason"] == reason
    assert episode.bill["pev_id"] == pev
    assert episode.receipt["program"] == ""
    charged = [line for line in episode.bill["lines"] if line["energy_wh"]]
    assert charged and all(line["tariff"].startswith(DEFAULT_TARIFF) for line in charged)
    assert all(line["account_id"] == "A-1001" for line in charged)
    assert episode.bill["cents"] > 0


@pytest.mark.req("P1-F10", "P1-N3")
def test_with_the_broker_away_the_contactor_waits_the_premises_binding_wait(told: Told) -> None:
    episode = told.episodes["no-broker"]
    plugged = episode.line("agent", "board changed", plugged="True")
    asked = episode.line("agent", "asked to close")
    waited_s = (asked.at_s - plugged.at_s) * SCALE
    assert waited_s >= BINDING_WAIT_S - 30, f"{waited_s:.0f} s of world time"  # 30 s: one line may be read late
    assert plugged.number < asked.number


# ---- without a meter


@pytest.mark.req("P1-B6")
def test_without_a_meter_the_session_is_unmetered_and_nothing_is_shown_as_zero(told: Told) -> None:
    episode = told.episodes["no-meter"]
    assert episode.status["contactor"] == "closed"
    assert (episode.status["power_w"], episode.status["register_wh"]) == (None, None)
    assert any(fault.startswith("meter-silent") for fault in episode.status["faults"])
    assert episode.receipt["unmetered"] is True and episode.receipt["energy_wh"] is None
    assert episode.bill["energy_wh"] is None and episode.bill["cents"] is None


@pytest.mark.req("P1-B6")
def test_a_meter_pulled_while_charging_bills_what_was_read_and_invents_nothing(told: Told) -> None:
    episode = told.episodes["meter-pulled"]
    assert (episode.status["power_w"], episode.status["register_wh"]) == (None, None)
    assert told.account.world["unmetered_wh"] > 0
    assert episode.receipt["unmetered"] is True and episode.bill["metered"] != "metered"
    read = sum(line["energy_wh"] for line in episode.bill["lines"])
    assert 0 < read == episode.receipt["energy_wh"] == episode.bill["posted_wh"] + episode.bill["pending_wh"]


@pytest.mark.req("P1-F17", "P1-B6")
def test_the_charger_shows_a_person_whether_it_is_bound_why_not_and_what_is_unavailable(told: Told) -> None:
    assert "binding   bound" in told.episodes["again"].shown
    assert "This vehicle is not enrolled with the utility." in told.episodes["stranger"].shown
    assert "meter     unavailable, register unavailable" in told.episodes["no-meter"].shown


# ---- scenario 3


@pytest.mark.req("P1-S3.3")
def test_receipt_and_bill_agree_to_the_cent_for_every_session(told: Told) -> None:
    for name, episode in told.episodes.items():
        if name == "no-meter":  # it has no amount
            continue
        cents = (episode.receipt["total_cents"], episode.bill["receipt_cents"], episode.bill["cents"])
        assert len(set(cents)) == 1, f"{name}: receipt, as reported, bill: {cents}"
        assert episode.bill["receipt_matches"] is True


@pytest.mark.req("P1-S3.1", "P1-F20")
def test_the_registers_way_is_what_was_recorded_and_posted(told: Told) -> None:
    device = told.account.device(told.device)
    assert told.account.delta_wh > 0
    assert told.account.delta_wh == device["metered_wh"] == device["posted_wh"] + device["exception_wh"]
    assert device["whole"] and told.account.whole["whole"]


@pytest.mark.req("P1-S3.3")
def test_debits_are_credits_and_the_ledger_holds_the_bill(told: Told) -> None:
    balance = told.account.balance
    assert balance["debit_cents"] == balance["credit_cents"] == told.account.bill["cents"] > 0
    assert balance["energy_wh"] == told.account.device(told.device)["posted_wh"]


# ---- the broker's rules


@pytest.mark.req("P1-S1.9")
def test_another_charger_hears_nothing_of_ours(told: Told) -> None:
    assert {one.topic for one in told.heard_by_other} == {"esci/1/D-OTHER/down/params"}


@pytest.mark.req("P1-S1.9")
def test_another_charger_cannot_speak_in_our_name(told: Told) -> None:
    assert any(one.topic == "esci/1/D-OTHER/up/hello" for one in told.messages)
    assert not [one for one in told.messages if one.topic.startswith(f"esci/1/{told.device}/") and not one.body]


def test_no_program_ended_or_showed_a_traceback(told: Told) -> None:
    assert [line for line in told.logs if "Traceback" in line.event or "trace" in line.fields] == []
