"""The simulated OpenEVSE board answers, byte for byte, as the observed one (facts/openevse-observed.md, 2 to 9).

Times are world time. Offsets carry the tolerance that the observation gives, plus 30 ms for the phase of the main loop.
"""

import os
import re
from pathlib import Path

import pytest

from firmware_sim.board_openevse import Board
from firmware_sim.board_state import Eeprom, Load
from firmware_sim.rapi_wire import frame
from sim_line import Line

pytestmark = pytest.mark.req("P1-F7")


@pytest.fixture
def idle() -> Line:
    return Line()


def test_every_frame_of_the_observation_has_our_checksum() -> None:
    path = Path(os.environ.get("PLUGBIND_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    facts = path / "facts" / "openevse-observed.md"
    if not facts.is_file():
        pytest.skip(f"{facts} is not there; set PLUGBIND_SHARED to the folder that holds facts/")
    frames = re.findall(r"`(\$(?:OK|NK|AT|AB)[^`^|]*)\^([0-9A-F]{2})`", facts.read_text(encoding="utf-8"))
    assert len(frames) > 300
    for body, digits in frames:
        assert frame(body.encode()) == f"{body}^{digits}\r".encode()


FRAMING = [
    ("$GS^30", "$OK 01 0 01 0200^12"),
    ("$GS*BE", "$OK 01 0 01 0200^12"),
    ("$GS*be", "$OK 01 0 01 0200^12"),
    ("$GS", "$OK 01 0 01 0200^12"),
    ("$GS^30xyz", "$OK 01 0 01 0200^12"),
    ("$GS^30\n", "$OK 01 0 01 0200^12"),
    ("\n$GS^30", "$OK 01 0 01 0200^12"),
    ("$GSfoo^56", "$OK 01 0 01 0200^12"),
    ("$GS 1 2 3^20", "$OK 01 0 01 0200^12"),
    ("$GS ^10", "$OK 01 0 01 0200^12"),
    ("$GS :A7^5C", "$OK 01 0 01 0200 :A7^7E"),
    ("$GS :a7^7C", "$OK 01 0 01 0200 :A7^7E"),
    ("$GS :00^2A", "$OK 01 0 01 0200^12"),
    ("$GS :0^1A", "$OK 01 0 01 0200^12"),
    ("$GS :zz^2A", "$OK 01 0 01 0200^12"),
    ("$GV :01^2E", "$OK 8.2.3.EU 5.2.1 :01^0A"),
    ("$GV :01^2e", "$OK 8.2.3.EU 5.2.1 :01^0A"),
    ("$GC :FF^3A", "$OK 6 32 32 32 :FF^0D"),
    ("$XX :11^3E", "$NK :11^3B"),
    ("noise$GS^3$GV^35", "$OK 8.2.3.EU 5.2.1^11"),
    ("$SC 1$GV^35", "$OK 8.2.3.EU 5.2.1^11"),
    *(
        (line, "$NK^21")
        for line in (
            *("$GS^00", "$GS*00", "$GS^3", "$GS^", "$GS^zz", "$ GS^10", "$gs", "$XX^24", "$GX^3B", "$SC^34"),
            *("$FF D^40", "$", "$^24", "$G", "$GS :A7^00"),
        )
    ),
]


@pytest.mark.parametrize(("sent", "reply"), FRAMING)
def test_framing_is_answered_as_observed(idle: Line, sent: str, reply: str) -> None:
    assert idle.say(sent) == [reply]
    assert idle.ask("$GC") == ["$OK 6 32 32 32^17"]


def test_lines_without_a_dollar_get_no_reply(idle: Line) -> None:
    assert idle.say("") == idle.say("GS^30") == []


def test_thirty_one_characters_are_answered_and_thirty_two_vanish(idle: Line) -> None:
    assert idle.say("$GS" + "x" * 28) == ["$OK 01 0 01 0200^12"]
    assert idle.say("$GS" + "x" * 29) == []
    assert idle.say("$GS" + "x" * 36) == []
    assert idle.say("$GS^30") == ["$OK 01 0 01 0200^12"]


def test_ten_words_are_answered_and_eleven_refused(idle: Line) -> None:
    assert idle.say("$GS" + " 1" * 9) == ["$OK 01 0 01 0200^12"]
    assert idle.say("$GS" + " 1" * 10) == idle.say("$GS" + " 1" * 11) == ["$NK^21"]


def test_a_frame_may_come_in_pieces(idle: Line) -> None:
    idle.board.receive(b"$G")
    idle.run(500)
    assert idle.say("S^30") == ["$OK 01 0 01 0200^12"]


@pytest.mark.parametrize("count", [5, 6, 7, 8, 12])
def test_the_receive_buffer_holds_five_frames_of_eleven_bytes(idle: Line, count: int) -> None:
    sent = b"".join(frame(b"$GS :%02X" % number) for number in range(1, count + 1))
    assert len(sent) == 11 * count
    first = len(idle.frames)
    idle.board.receive(sent)
    idle.run(200)
    assert [text[-6:-3] for _, text in idle.frames[first:]] == [f":0{number}" for number in range(1, 6)]
    assert idle.say("$GV^35") == ["$OK 8.2.3.EU 5.2.1^11"]


QUERIES = [
    ("$GV^35", "$OK 8.2.3.EU 5.2.1^11"),
    ("$GS^30", "$OK 01 0 01 0200^12"),
    ("$GE^26", "$OK 32 0021^22"),
    ("$GC^20", "$OK 6 32 32 32^17"),
    ("$GG^24", "$OK 0 230000^11"),
    ("$GU^36", "$OK 0 0^20"),
    ("$GP^33", "$OK 250 0 -2560^2B"),
    ("$GF^25", "$OK 0 0 0^30"),
    ("$G0^53", "$OK 0^30"),
    ("$G5^56", "$OK 0 A^51"),
    ("$GA^22", "$OK 220 0^20"),
    ("$GD^27", "$OK 0 0 0 0^20"),
    ("$GY^3A", "$OK 0 0 0^30"),
    ("$F0 0^42", "$OK^20"),
    ("$F0 1^43", "$OK^20"),
    ("$FB 7^37", "$OK^20"),
    ("$FP 0 0 hi^13", "$OK^20"),
    ("$FP 0 1 a b^30", "$OK^20"),
    ("$S1 26 8 1 12 0 0^48", "$OK^20"),
    ("$Z0^4E", "$OK^20"),
]
REFUSED = [
    *("$G1^52", "$G2^51", "$G3^50", "$G4^57", "$G6^55", "$GB^21", "$GH^2B", "$GM^2E", "$GO^2C", "$GR^31", "$GX^3B"),
    *("$GZ^39", "$SV^21", "$SA 220^26", "$SL A^5A", "$SL 3^28", "$SL^3B", "$S1 26 8 1^6B", "$S5 x^1A", "$S5^42"),
    *("$ST 1 0^22", "$S2 1^54", "$S2 0^55", "$S3 4^50", "$S4 1^52", "$SH 5^2A", "$SB^35", "$SM 1 2^39", "$SO 1^29"),
    *("$SR 1^34", "$SZ 1^3C", "$Z1^4F", "$T0 5^55", "$A0^55", "$FF Q 0^45", "$FF Q 1^44", "$FF D 2^52", "$FF D^40"),
    *("$FF^24", "$F0^52", "$FB^20", "$FP 0 0^32", "$F2^50", "$FC^21", "$FX^3A", "$SC 1 2 3^24", "$SC^34"),
]


@pytest.mark.parametrize(("sent", "reply"), [*QUERIES, *((line, "$NK^21") for line in REFUSED)])
def test_queries_and_refusals_in_state_01(idle: Line, sent: str, reply: str) -> None:
    assert idle.say(sent) == [reply]


def test_the_chip_id_has_six_raw_bytes_and_eight_digits(idle: Line) -> None:
    (reply,) = idle.say("$GI^2A")
    assert reply.startswith("$OK  ")
    assert len(reply) == len("$OK  ") + 6 + 8 + 3


def test_the_clock_is_told_and_set(idle: Line) -> None:
    assert idle.ask("$GT")[0].startswith("$OK 27 1 15 8 0 ")
    idle.ask("$S1 26 11 20 12 30 13")
    assert idle.ask("$GT") == ["$OK 26 11 20 12 30 13^24"]


CURRENTS = [
    ("$SC 16^13", ["$OK 16^07", "$AT 01 01 16 0200^34"], "$OK 6 32 16 16^17"),
    ("$SC 5^21", ["$NK 6^37", "$AT 01 01 6 0200^05"], "$OK 6 32 6 6^17"),
    ("$SC 40^10", ["$NK 32^00"], "$OK 6 32 32 32^17"),
    ("$SC 16 V^65", ["$OK 16^07", "$AT 01 01 16 0200^34"], "$OK 6 32 16 32^11"),
    ("$SC 40 V^66", ["$NK 32^00"], "$OK 6 32 32 32^17"),
    ("$SC 0^24", ["$NK 6^37", "$AT 01 01 6 0200^05"], "$OK 6 32 6 6^17"),
    ("$SC 0 V^52", ["$NK 6^37", "$AT 01 01 6 0200^05"], "$OK 6 32 6 32^20"),
    ("$SC 262^22", ["$OK 6^36", "$AT 01 01 6 0200^05"], "$OK 6 32 6 6^17"),
    ("$SC 300^27", ["$NK 32^00"], "$OK 6 32 32 32^17"),
    ("$SC 255^26", ["$NK 32^00"], "$OK 6 32 32 32^17"),
    ("$SC 256^25", ["$NK 6^37", "$AT 01 01 6 0200^05"], "$OK 6 32 6 6^17"),
    ("$SC x^6C", ["$NK 32^00"], "$OK 6 32 32 32^17"),
    ("$SC -1^08", ["$NK 32^00"], "$OK 6 32 32 32^17"),
    ("$SC 16.5^08", ["$NK 32^00"], "$OK 6 32 32 32^17"),
    ("$SC +16^38", ["$OK 28^0A", "$AT 01 01 28 0200^39"], None),
    ("$SC  16^33", ["$NK 6^37", "$AT 01 01 6 0200^05"], "$OK 6 32 6 32^20"),
    ("$SC 16 ^33", ["$OK 16^07", "$AT 01 01 16 0200^34"], "$OK 6 32 16 32^11"),
    ("$SC 0016^13", ["$OK 16^07", "$AT 01 01 16 0200^34"], "$OK 6 32 16 16^17"),
    ("$SC 16 v^45", ["$OK 16^07", "$AT 01 01 16 0200^34"], "$OK 6 32 16 32^11"),
    ("$SC 12 X^6F", ["$OK 12^03", "$AT 01 01 12 0200^30"], "$OK 6 32 12 32^15"),
    ("$SC 33 M^79", ["$NK 32^00"], "$OK 6 32 32 32^17"),
    ("$SC 5 M^4C", ["$NK 32^00"], "$OK 6 32 32 32^17"),
]


@pytest.mark.parametrize(("sent", "replies", "capacity"), CURRENTS)
def test_setting_the_current(idle: Line, sent: str, replies: list[str], capacity: str | None) -> None:
    assert idle.say(sent) == replies
    if capacity is not None:
        assert idle.say("$GC^20") == [capacity]


def test_a_volatile_current_cannot_pass_the_stored_one(idle: Line) -> None:
    assert idle.say("$SC 10^15")[0] == "$OK 10^01"
    assert idle.say("$SC 20 V^60") == ["$NK 10^00"]


def test_the_same_current_twice_is_announced_once(idle: Line) -> None:
    assert len(idle.say("$SC 16 V^65")) == 2
    assert idle.say("$SC 16 V^65") == ["$OK 16^07"]


def test_the_hardware_maximum_burns_once(idle: Line) -> None:
    idle.plug()
    assert idle.say("$SC 12 M^7A") == ["$OK 12^03", "$AT 02 02 12 0700^35"]
    assert idle.say("$GC^20") == ["$OK 6 12 12 12^15"]
    for line in ("$SC 16^13", "$SC 14 M^7C", "$SC 10 M^78"):
        assert idle.say(line) == ["$NK 12^02"]


CHECKS = [("B", "8021^2A"), ("D", "0023^20"), ("F", "0221^20"), ("G", "0029^2A"), ("R", "0031^23"), ("T", "0421^26")]


@pytest.mark.parametrize(("letter", "flags"), [*CHECKS, ("V", "0025^26")])
def test_safety_checks_switch_off_and_on(idle: Line, letter: str, flags: str) -> None:
    assert idle.ask(f"$FF {letter} 0") == ["$OK^20"]
    assert idle.say("$GE^26") == [f"$OK 32 {flags}"]
    assert idle.ask(f"$FF {letter} 1") == ["$OK^20"]
    assert idle.say("$GE^26") == ["$OK 32 0021^22"]


SETTINGS = [
    (("$SV 231000^01",), "$GG^24", "$OK 0 231000^10"),
    (("$SA 210 5^30",), "$GA^22", "$OK 210 5^26"),
    (("$SK 12345^2D",), "$GU^36", "$OK 0 12345^21"),
    (("$SK^3C",), "$GU^36", "$OK 0 49^1D"),
    (("$S0 0^57",), "$GE^26", "$OK 32 0121^23"),
    (("$S0 0^57", "$S0 1^56"), "$GE^26", "$OK 32 0021^22"),
    (("$S5 M^2F",), "$G5^56", "$OK 0 M^5D"),
    (("$S5 M^2F",), "$GS^30", "$OK 01 0 01 8200^1A"),
    (("$S5 M^2F", "$S5 A^23"), "$G5^56", "$OK 0 A^51"),
    (("$SL 1^2A",), "$GE^26", "$OK 12 0020^21"),
    (("$SL 1^2A",), "$GC^20", "$OK 6 24 12 12^10"),
    (("$SL 1^2A",), "$GG^24", "$OK 0 120000^13"),
    (("$SC 16 V^65", "$SL 1^2A", "$SL 2^29"), "$GC^20", "$OK 6 32 32 32^17"),
    (("$ST 1 0 2 0^20",), "$GD^27", "$OK 1 0 2 0^23"),
]


@pytest.mark.parametrize(("sent", "query", "reply"), SETTINGS)
def test_settings_take_effect(idle: Line, sent: tuple[str, ...], query: str, reply: str) -> None:
    for line in sent:
        assert idle.say(line)[0] in ("$OK^20", "$OK 16^07")
    assert idle.say(query) == [reply]


def test_the_manual_lock_pulses(idle: Line) -> None:
    idle.ask("$S5 M")
    assert idle.say("$S5 1^53", 400) == ["$OK^20"]
    assert idle.say("$G5^56") == ["$OK 1 M^5C"]
    assert idle.say("$S5 0^52", 400) == ["$OK^20"]
    assert idle.say("$G5^56") == ["$OK 0 M^5D"]


def test_the_delay_timer_puts_to_sleep_and_stays_asleep_when_switched_off(idle: Line) -> None:
    assert idle.say("$ST 1 0 2 0^20") == ["$OK^20", "$AT fe 01 32 1200^31"]
    assert idle.say("$FE^27") == ["$OK^20", "$AT 01 01 32 1200^33"]
    idle.run(1100)
    assert idle.frames[-1][1] == "$AT fe 01 32 1200^31"
    assert idle.say("$ST 0 0 0 0^23") == ["$OK^20"]
    idle.run(1500)
    assert idle.say("$GS^30") == ["$OK fe 0 01 0200^10"]


def test_text_of_the_relay_parameters_comes_before_the_reply(idle: Line) -> None:
    assert idle.say("$Z0 100 255^4D") == ["\nZ0 100 255", "\n$OK^20"]


def test_echo_cannot_be_switched_off(idle: Line) -> None:
    assert idle.say("$FF E 1^50") == ["$OK^20"]
    assert idle.say("$GV^35") == ["\n$GV^35", "$OK 8.2.3.EU 5.2.1^11"]
    assert idle.say("$FF E 0^51") == ["\n$FF E 0^51", "$OK^20"]
    assert idle.say("$GV^35") == ["\n$GV^35", "$OK 8.2.3.EU 5.2.1^11"]


# section 4


def test_power_up_stream_of_a_good_start() -> None:
    board = Board()
    board.power_on()
    stream = b""
    for now_ms in range(1, 4000):
        board.advance(now_ms)
        stream += board.take_output()
    assert stream == (
        b"\nrelayCloseMs: 100\r\nrelayHoldPwm: 255\r\n$AT 00 00 0 0200^03\r$AB 00 8.2.3.EU^20\r$AT 01 01 32 0200^32\r"
    )


def test_power_up_times_and_waiting_commands() -> None:
    line = Line(settle_ms=1000)
    assert line.say("$GS^30", 3000) == [
        "\nrelayCloseMs: 100",
        "\nrelayHoldPwm: 255",
        "\n$AT 00 00 0 0200^03",
        "$AB 00 8.2.3.EU^20",
        "$OK 00 0 00 0200^12",
        "$AT 01 01 32 0200^32",
    ]
    line.expect("$AB 00 8.2.3.EU^20", 0, 3290, 3290)
    line.expect("$OK 00 0 00 0200^12", 0, 3320, 3320)
    line.expect("$AT 01 01 32 0200^32", 0, 3350, 3350)


@pytest.mark.parametrize(
    ("load", "message", "at_ms"),
    [(Load.B, "$AT 02 02 32 0700^37", 3650), (Load.C, "$AT 02 03 32 0700^36", 3650)],
)
def test_power_up_with_a_vehicle(load: Load, message: str, at_ms: int) -> None:
    line = Line(load=load, settle_ms=6000)
    line.expect(message, 0, at_ms, at_ms)
    if load is Load.C:
        line.relay_change(True, 0, 4990, 4990)
        line.expect("$AT 03 03 32 0540^31", 0, 5010, 5010)


FAILED_START = [
    ("$GE", "$OK 0 0020^12"),
    ("$GC", "$OK 6 24 0 12^23"),
    ("$GG", "$OK 0 0^20"),
    ("$GU", "$OK 0 0^20"),
    ("$GF", "$OK 0 0 0^30"),
    ("$G0", "$OK 0^30"),
    ("$GY", "$OK 0 0 0^30"),
    ("$GP", "$OK 250 -2560 0^2B"),
    ("$FE", "$OK^20"),
]


def _failed_start(**inputs: bool) -> Line:
    line = Line(settle_ms=0)
    for name, value in inputs.items():
        setattr(line.board.inputs, name, value)
    line.run(6000)
    return line


@pytest.mark.parametrize(
    ("fault", "postcode", "message", "status", "at_ms"),
    [
        ("welded", "$AB 08 8.2.3.EU^28", "$AT 08 00 0 0200^0B", "$OK 08 0 00 0200^1A", 2260),
        ("self_test_fails", "$AB 09 8.2.3.EU^29", "$AT 09 00 0 0200^0A", "$OK 09 0 00 0200^1B", 4290),
        ("ground_fault", "$AB 09 8.2.3.EU^29", "$AT 09 00 0 0200^0A", "$OK 09 0 00 0200^1B", 3280),
    ],
)
def test_power_up_with_a_failed_self_test(fault: str, postcode: str, message: str, status: str, at_ms: int) -> None:
    line = _failed_start(**{fault: True})
    line.expect(postcode, 0, at_ms, at_ms)
    assert line.frames[-1][1] == message
    assert line.ask("$GS") == [status]
    for body, reply in FAILED_START:
        assert line.ask(body) == [reply]


def test_a_failed_self_test_can_be_covered() -> None:
    line = _failed_start(welded=True)
    assert line.ask("$SC 16") == ["$OK 16^07", "$AT 08 00 16 0200^3C"]
    assert line.ask("$FD", 400) == ["$OK^20", "$AT ff 00 16 0200^34"]
    assert line.ask("$FE") == ["$OK^20"]
    assert line.ask("$GS") == ["$OK 00 0 00 0200^12"]


def test_each_disabled_check_delays_the_start_by_a_second_and_a_half() -> None:
    line = Line(Eeprom(ecf=0x0023), settle_ms=6000)
    line.expect("$AB 00 8.2.3.EU^20", 0, 4800, 4800)


# section 9


def test_a_session_line_by_line(idle: Line) -> None:
    start = idle.now_ms
    idle.plug(Load.B)
    idle.expect("$AT 02 02 32 0700^37", start, 360, 400)
    assert idle.say("$GS^30") == ["$OK 02 0 02 0700^17"]
    assert idle.say("$G0^53") == ["$OK 1^31"]
    assert idle.say("$G5^56") == ["$OK 1 A^50"]
    assert idle.say("$SC 10 V^63") == ["$OK 10^01", "$AT 02 02 10 0700^37"]
    start = idle.now_ms
    idle.board.inputs.load = Load.C
    idle.run(100)
    assert idle.say("$GS^30") == ["$OK 02 0 02 0700^17"]
    idle.run(1300)
    idle.relay_change(True, start, 1320, 1360)
    idle.expect("$AT 03 03 10 0540^31", start, 1380, 1380)
    idle.board.inputs.current_ma = 10_000
    assert idle.say("$GS^30") == ["$OK 03 0 03 0540^11"]
    assert idle.say("$GG^24") == ["$OK 0 230000^11"]
    idle.run(2700)
    assert idle.say("$GG^24") == ["$OK 9900 230000^21"]
    idle.say("$SC 6 V^54")
    start = idle.now_ms
    idle.board.inputs.load, idle.board.inputs.current_ma = Load.B, 0
    idle.run(500)
    idle.relay_change(False, start, 270, 320)
    idle.expect("$AT 02 02 6 0500^02", start, 280, 320)
    assert idle.say("$GG^24") == ["$OK 0 230000^11"]
    start = idle.now_ms
    idle.board.inputs.load = Load.C
    idle.run(1500)
    idle.relay_change(True, start, 1320, 1360)
    idle.expect("$AT 03 03 6 0540^06", start, 1380, 1380)
    start = idle.now_ms
    idle.board.inputs.load = Load.A
    idle.run(600)
    idle.relay_change(False, start, 350, 390)
    idle.expect("$AT 01 01 6 0200^05", start, 350, 390)
    assert idle.say("$G0^53") == ["$OK 0^30"]
    assert idle.say("$GS^30") == ["$OK 01 3 01 0200^11"]
    idle.plug(Load.B)
    assert idle.say("$GS^30") == ["$OK 02 0 02 0700^17"]


def test_straight_to_c(idle: Line) -> None:
    idle.say("$SC 16 V^65")
    start = idle.now_ms
    idle.board.inputs.load = Load.C
    idle.run(2500)
    idle.expect("$AT 02 03 16 0700^30", start, 390, 390)
    idle.relay_change(True, start, 1720, 1720)
    idle.expect("$AT 03 03 16 0540^37", start, 1750, 1750)


def test_manual_lock_opens_sooner_and_stays_locked(idle: Line) -> None:
    idle.plug()
    idle.charge(10)
    idle.say("$S5 M^2F")
    start = idle.now_ms
    idle.board.inputs.load = Load.A
    idle.run(300)
    idle.relay_change(False, start, 46, 85)
    idle.expect("$AT 01 01 10 8200^3A", start, 46, 85)
    assert idle.say("$G5^56") == ["$OK 1 M^5C"]
    assert idle.say("$S5 A^23", 500) == ["$OK^20"]
    assert idle.say("$G5^56") == ["$OK 0 A^51"]


def test_energy_is_added_to_the_total_at_unplug(idle: Line) -> None:
    idle.plug()
    idle.charge()
    idle.run(20_000)
    session_ws = idle.board.state.session_ws
    assert 2277 * 19 < session_ws < 2277 * 24
    idle.board.inputs.load = Load.A
    idle.run(600)
    after_ws, total_wh = (int(word) for word in idle.say("$GU^36")[0].split("^")[0].split()[1:])
    assert after_ws >= session_ws
    assert total_wh == after_ws // 3600 > 0


@pytest.mark.parametrize(("drawn_ma", "shown"), [(20_900, "$OK 20680 230000^1D"), (10_000, "$OK 9900 230000^21")])
def test_the_ammeter_moves_in_steps(idle: Line, drawn_ma: int, shown: str) -> None:
    idle.plug()
    idle.charge(16, drawn_ma)
    assert idle.say("$GG^24") == [shown]


def test_commands_of_a_dead_time_are_answered_in_order_afterwards(idle: Line) -> None:
    idle.plug()
    idle.board.inputs.load = Load.C
    idle.run(600)
    first = len(idle.frames)
    for number in (1, 2, 3):
        idle.board.receive(frame(b"$GS :%02X" % number))
    idle.run(1200)
    texts = [text for _, text in idle.frames[first:]]
    assert texts[0] == "$AT 03 03 32 0540^31"
    assert [text.split(":")[1][:2] for text in texts[1:]] == ["01", "02", "03"]
