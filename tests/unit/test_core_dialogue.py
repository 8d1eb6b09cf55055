"""What the station answers to single messages: stale, foreign and repeated ones change nothing (P1-S1.8..S1.16)."""

from datetime import UTC, datetime, timedelta

import pytest

from agent.core.clock import Now
from agent.core.effects import Effect, KeepTariff, Record, Send, TellPev
from agent.core.events import (
    BoardFound,
    BoardIdentity,
    BoardReported,
    BoardStatus,
    Event,
    MeterRead,
    MeterReading,
    PevAcknowledged,
    PevIdentified,
    Pilot,
    Received,
    UplinkOpened,
    Woke,
)
from agent.core.session import Settings
from agent.core.station import Start, Station
from esci import messages as wire
from esci.reasons import Reason
from esci.records import Happening
from esci.units import format_utc
from sim.world_parts import STRANGER_VIN, VIN, tariff

START = datetime(2025, 7, 16, 3, tzinfo=UTC)
SETTINGS = Settings("evse-1", "home-1", "1.0", 32_000, 9_600, 30, 20)
B_PLUGGED = BoardStatus(Pilot.B, plugged=True, closed=False, asleep=True, fault=None, limit_ma=0)


class Desk:
    """A plugged-in station one event at a time, a second apart, and messages of the utility for it."""

    def __init__(self) -> None:
        self.at_s, self.ids = 0, 0
        self.station = Station(Start(SETTINGS, 900, 60, True, 7, 0, 0), self.new_id, self.now())
        for event in (BoardFound(BoardIdentity("D8", (), 16_000)), BoardReported(B_PLUGGED), UplinkOpened(),
                      MeterRead(MeterReading(1_000, 0), self.now())):
            self.tell(event)

    def new_id(self) -> str:
        self.ids += 1
        return f"{self.ids:032x}"

    def now(self) -> Now:
        return Now(self.at_s * 1000, START + timedelta(seconds=self.at_s), synced=True)

    def tell(self, event: Event) -> list[Effect]:
        self.at_s += 1
        return self.station.handle(event, self.now())

    def hear(self, kind: type[wire.Message], **members: object) -> list[Effect]:
        head = {"device": "evse-1", "id": self.new_id(), "at": format_utc(self.now().utc)}
        if kind in (wire.BindConfirm, wire.BindReject, wire.EumdDetect):
            head["expires_at"] = format_utc(self.now().utc + timedelta(seconds=300))
        message = wire.DOWN.validate_python(kind.model_validate(head | members))
        return self.tell(Received(message))

    def ask(self, pev: str = VIN) -> wire.BindRequest:
        """The request that an identified vehicle leads to."""
        effects = self.tell(PevIdentified(pev, "", resumed=False))
        (sent,) = [effect.message for effect in effects if isinstance(effect, Send)]
        assert isinstance(sent, wire.BindRequest)
        return sent

    def confirm(self, asked: wire.BindRequest, **members: object) -> list[Effect]:
        """The utility says yes."""
        base: dict[str, object] = {
            "request": asked.id, "session": asked.session, "binding": "b" * 32, "pev": asked.pev,
            "premises": "home-1", "program": "EV", "tariff": wire.TariffRef(code="EV", version="v1"),
            "valid_until": "2030-01-01T00:00:00Z", "interval_s": 900, "scenario": "first", "ticket": "t" * 16}
        return self.hear(wire.BindConfirm, **(base | members))

    def bound(self) -> None:
        """Set up for the first time."""
        self.confirm(self.ask())
        self.tell(PevAcknowledged("b" * 32))
        assert self.station.state(self.now()).binding == "bound"

    def detect(self, interval_s: int, **members: object) -> wire.EumdAck:
        """The answer to a detection message."""
        base: dict[str, object] = {"binding": "b" * 32, "program": "EV", "interval_s": interval_s,
                                   "tariff": wire.TariffRef(code="EV", version="v1")}
        effects = self.hear(wire.EumdDetect, **(base | members))
        (ack,) = [effect.message for effect in effects if isinstance(effect, Send)]
        assert isinstance(ack, wire.EumdAck)
        return ack


def told(effects: list[Effect]) -> list[str]:
    return [effect.message.kind for effect in effects if isinstance(effect, TellPev)]


def noted(effects: list[Effect]) -> list[Reason]:
    return [effect.body.code for effect in effects if isinstance(effect, Record) and isinstance(effect.body, Happening)]


@pytest.mark.req("P1-S1.11", "P1-S1.12")
def test_the_first_confirmation_binds_only_after_the_vehicle_has_set_its_parameters() -> None:
    desk = Desk()
    assert told(desk.confirm(desk.ask())) == ["confirm"]
    assert desk.station.state(desk.now()).binding == "confirming"
    desk.tell(PevAcknowledged("c" * 32))
    assert desk.station.state(desk.now()).binding == "confirming", "another binding's acknowledgement"
    sent = [effect.message.kind for effect in desk.tell(PevAcknowledged("b" * 32)) if isinstance(effect, Send)]
    assert sent == ["bind.ack"] and desk.station.state(desk.now()).binding == "bound"


@pytest.mark.req("P1-S1.10", "P1-S1.11")
@pytest.mark.parametrize("members", [{"request": "f" * 32}, {"pev": STRANGER_VIN}, {"premises": "home-2"}])
def test_a_confirmation_of_something_else_is_not_taken(members: dict[str, object]) -> None:
    desk = Desk()
    effects = desk.confirm(desk.ask(), **members)
    assert told(effects) == [] and desk.station.state(desk.now()).binding == "validating"
    assert noted(effects) == ([Reason.PREMISES_MISMATCH] if "premises" in members else [])


@pytest.mark.req("P1-S1.9")
def test_the_same_question_is_asked_again_after_the_retry_time_and_a_new_one_before_it_is_stale() -> None:
    desk = Desk()
    desk.station.memory.binding_wait_s = 3_000
    desk.tell(BoardReported(BoardStatus(Pilot.A, False, False, True, None, 0)))
    desk.tell(MeterRead(MeterReading(1_000, 0), Now(desk.at_s * 1000 + 1_000, START, synced=True)))
    desk.tell(BoardReported(B_PLUGGED))
    asked = [desk.ask()]
    for _ in range(600):
        asked += [effect.message for effect in desk.tell(BoardReported(B_PLUGGED))
                  if isinstance(effect, Send) and isinstance(effect.message, wire.BindRequest)]
    by_id: dict[str, set[wire.BindRequest]] = {}
    for request in asked:
        by_id.setdefault(request.id, set()).add(request)
    assert len(asked) > 20 and 2 <= len(by_id) <= 4
    assert all(len(same) == 1 for same in by_id.values()), "one id, one question"


@pytest.mark.req("P1-S1.15", "P1-S1.16", "P1-F24")
def test_a_detection_message_is_applied_once_and_answered_each_time() -> None:
    desk = Desk()
    desk.bound()
    assert desk.detect(300).interval_s == 300
    refused = desk.detect(7)
    assert (refused.applied, refused.reason, refused.interval_s) == (False, Reason.INTERVAL_NOT_ALLOWED, 300)
    foreign = desk.detect(60, binding="c" * 32)
    assert (foreign.applied, foreign.reason, foreign.interval_s) == (False, Reason.UNKNOWN_BINDING, 300)


@pytest.mark.req("P1-S1.15")
def test_a_stale_detection_message_is_noted_and_not_applied() -> None:
    desk = Desk()
    desk.bound()
    effects = desk.hear(wire.EumdDetect, binding="b" * 32, program="EV", interval_s=60,
                        expires_at="2025-07-16T02:00:00Z", tariff=wire.TariffRef(code="EV", version="v1"))
    assert noted(effects) == [Reason.STALE] and desk.station.memory.interval_s == 900


@pytest.mark.req("P1-S1.15", "P1-F18")
def test_an_older_detection_message_that_comes_again_does_not_undo_the_newer() -> None:
    desk = Desk()
    desk.bound()
    assert desk.detect(300, id="1" * 32, at="2025-07-16T03:00:01Z").interval_s == 300
    assert desk.detect(3600, id="2" * 32, at="2025-07-16T03:00:02Z").interval_s == 3600
    assert desk.detect(300, id="1" * 32, at="2025-07-16T03:00:01Z").interval_s == 3600


@pytest.mark.req("P1-F18")
def test_a_tariff_is_kept_once_and_a_broken_one_is_noted() -> None:
    desk = Desk()
    good = tariff("EV", "v1", "America/Los_Angeles", {"a": 1}, "a" * 24)
    first = desk.hear(wire.TariffSent, document=good)
    again = desk.hear(wire.TariffSent, document=good)
    assert [isinstance(effect, KeepTariff) for effect in first if not isinstance(effect, Send)].count(True) == 1
    assert not any(isinstance(effect, KeepTariff) for effect in again)
    broken = good.model_copy(update={"timezone": "Mars/Olympus"})
    assert noted(desk.hear(wire.TariffSent, document=broken)) == [Reason.UNKNOWN_TARIFF]


@pytest.mark.req("P1-S1.4")
def test_parameters_for_other_premises_are_noted_and_not_applied() -> None:
    desk = Desk()
    effects = desk.hear(wire.Params, premises="home-2", interval_s=60, binding_wait_s=0, charge_without_binding=False,
                        default_tariff=wire.TariffRef(code="EV", version="v1"))
    assert noted(effects) == [Reason.PREMISES_MISMATCH]
    assert (desk.station.memory.interval_s, desk.station.memory.charge_without_binding) == (900, True)


# ---- what is not answered is said again (D-11)


def _sent(effects: list[Effect], kind: type[wire.Message]) -> list[wire.Message]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def test_a_hello_that_nobody_heard_is_said_again_until_the_parameters_come() -> None:
    """A broker acknowledges what nobody has subscribed for, and loses it."""
    desk = Desk()
    for _ in range(3):
        desk.at_s += SETTINGS.retry_s
        assert len(_sent(desk.tell(Woke()), wire.Hello)) == 1
    desk.hear(wire.Params, premises="home-1", interval_s=900, binding_wait_s=60, charge_without_binding=True,
              default_tariff=wire.TariffRef(code="EV", version="v1"))
    desk.at_s += 10 * SETTINGS.retry_s
    assert _sent(desk.tell(Woke()), wire.Hello) == []


@pytest.mark.req("P1-S1.9")
def test_a_request_is_repeated_as_it_was_until_it_would_be_stale_and_then_asked_anew() -> None:
    """The utility refuses a request over 300 s old; an unanswered one must not be repeated for ever."""
    desk = Desk()
    desk.station.memory.binding_wait_s = 3600
    desk.station.memory.binding.deadline_ms = 3_600_000
    first = desk.ask()
    asked: list[wire.Message] = [first]
    while desk.at_s < 600:
        desk.at_s += SETTINGS.retry_s
        asked += _sent(desk.tell(Woke()), wire.BindRequest)
    assert asked[1] == first
    assert len({message.id for message in asked}) == 3
    ages_s = [index * (SETTINGS.retry_s + 1) for index in range(len(asked))]
    repeated_s = max(age for age, message in zip(ages_s, asked, strict=True) if message.id == first.id)
    assert repeated_s < 300
