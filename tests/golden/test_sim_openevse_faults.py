"""Sleep, faults, heartbeat, temperature and memory of the simulated board (facts/openevse-observed.md, 10 to 15)."""

from collections.abc import Callable

import pytest

from firmware_sim.board_openevse import Board
from firmware_sim.board_state import Eeprom, Load
from sim_line import Line

pytestmark = pytest.mark.req("P1-F7")


@pytest.fixture
def idle() -> Line:
    return Line()


@pytest.fixture
def charging() -> Line:
    """In 03 for more than 2 s, 16 A offered, 10 A drawn."""
    line = Line()
    line.plug()
    line.charge(16)
    return line


@pytest.fixture
def plugged() -> Line:
    """In 02."""
    line = Line()
    line.plug()
    return line


def unplug(line: Line) -> list[str]:
    first = len(line.frames)
    line.board.inputs.load, line.board.inputs.current_ma = Load.A, 0
    line.run(1000)
    return [text for _, text in line.frames[first:]]


# section 10


def test_disable_sleep_and_enable(idle: Line) -> None:
    idle.plug()
    idle.charge(16)
    start = idle.now_ms
    assert idle.say("$FD^26", 450) == ["$OK^20", "$AT ff 03 16 0500^30"]
    idle.relay_change(False, start, 30, 40)
    idle.expect("$OK^20", start, 310, 340)
    assert idle.say("$G0^53") == ["$OK 2^32"]
    assert idle.say("$G5^56") == ["$OK 0 A^51"]
    assert idle.say("$SC 10 V^63") == ["$OK 10^01", "$AT ff 03 10 0500^36"]
    assert idle.board.state.duty_ppm == 0
    assert idle.say("$FS^31") == ["$OK^20", "$AT fe 03 10 0500^35"]
    idle.run(1000)
    start = idle.now_ms
    assert idle.say("$FE^27", 3000) == ["$OK^20", "$AT 02 03 10 0500^34", "$AT 03 03 10 0540^31"]
    idle.expect("$AT 02 03 10 0500^34", start, 310, 370)
    idle.relay_change(True, start, 1640, 1640)


def test_sleep_opens_after_three_seconds_or_when_the_vehicle_lets_go(idle: Line) -> None:
    idle.plug()
    idle.charge(10)
    start = idle.now_ms
    assert idle.say("$FS^31", 3500) == ["$OK^20", "$AT fe 03 10 0540^31"]
    idle.relay_change(False, start, 3000, 3080)
    assert idle.say("$FS^31") == ["$OK^20"]
    idle.board.inputs.load = Load.A
    idle.run(500)
    assert idle.frames[-1][1] == "$AT fe 03 10 0600^36"
    idle.board.inputs.load = Load.B
    idle.run(500)
    assert idle.frames[-1][1] == "$AT fe 03 10 0300^33"
    assert idle.say("$GS^30") == ["$OK fe 0 03 0700^17"]
    start = idle.now_ms
    assert idle.say("$FE^27", 600) == ["$OK^20", "$AT 02 02 10 0700^37"]
    idle.expect("$AT 02 02 10 0700^37", start, 300, 340)


def test_asleep_the_relay_opens_when_the_vehicle_goes_to_b(idle: Line) -> None:
    idle.plug()
    idle.charge(10)
    idle.say("$FS^31")
    start = idle.now_ms
    idle.board.inputs.load = Load.B
    idle.run(200)
    idle.relay_change(False, start, 10, 40)


def test_enable_in_a_and_b_from_sleep_is_quick(idle: Line) -> None:
    assert idle.say("$F1^53") == ["$OK^20", "$AT fe 01 32 0200^30"]
    assert idle.say("$F1^53", 120) == ["$OK^20", "$AT 01 01 32 0200^32"]
    idle.plug()
    idle.say("$FS^31")
    assert idle.say("$FE^27", 120) == ["$OK^20", "$AT 02 02 32 0700^37"]
    idle.ask("$SC 10 V")
    assert idle.say("$FD^26", 450) == ["$OK^20", "$AT ff 02 10 0700^35"]


# section 11


def test_ground_fault_while_charging_opens_at_once_and_closes_again_after_300_s(charging: Line) -> None:
    start = charging.now_ms
    charging.board.set_ground_fault(True)
    assert not charging.board.state.relay_closed
    charging.run(400)
    charging.expect("$AT 06 03 16 0580^3E", start, 30, 60)
    charging.expect("$AT 06 00 16 0580^3D", start, 290, 330)
    assert charging.say("$GF^25") == ["$OK 1 0 0^31"]
    charging.board.set_ground_fault(False)
    charging.run(298_000)
    assert not charging.board.state.relay_closed
    charging.run(5_000)
    charging.expect("$AT 02 03 16 0580^3A", start, 300_200, 300_500)
    charging.expect("$AT 03 03 16 05c0^60", start, 301_500, 301_900)


def test_ground_fault_still_there_at_the_retry_is_hard(charging: Line) -> None:
    charging.board.set_ground_fault(True)
    charging.run(301_000)
    assert charging.frames[-1][1] == "$AT 06 00 16 0582^3F"


def test_ground_fault_within_two_seconds_of_closing_is_hard(plugged: Line) -> None:
    plugged.ask("$SC 16 V")
    plugged.board.inputs.load = Load.C
    plugged.run(2000)
    plugged.board.set_ground_fault(True)
    plugged.run(200)
    assert plugged.frames[-1][1] == "$AT 06 03 16 0582^3C"
    assert plugged.say("$FS^31") == ["$OK^20", "$AT fe 03 16 0582^39"]


def test_a_hard_ground_fault_is_entered_once_more_on_the_way_out(plugged: Line) -> None:
    plugged.ask("$SC 16 V")
    plugged.board.inputs.load = Load.C
    plugged.run(2000)
    plugged.board.set_ground_fault(True)
    plugged.run(200)
    plugged.board.set_ground_fault(False)
    assert unplug(plugged) == ["$AT 06 00 16 0280^3A", "$AT 01 01 16 0280^3C"]
    assert plugged.say("$GF^25") == ["$OK 2 0 0^32"]


def test_ground_fault_before_closing(plugged: Line) -> None:
    first = len(plugged.frames)
    plugged.board.set_ground_fault(True)
    plugged.run(400)
    assert [text for _, text in plugged.frames[first:]] == ["$AT 06 02 32 0780^3B", "$AT 06 00 32 0780^39"]


@pytest.mark.parametrize(
    ("command", "status", "connected"),
    [("$FS", "$OK fe 0 02 0780^1E", "$OK 1^31"), ("$FD", "$OK ff 0 02 0780^1D", "$OK 1^31")],
)
def test_a_ground_fault_hides_under_sleep_and_disable(plugged: Line, command: str, status: str, connected: str) -> None:
    plugged.ask(command, 500)
    plugged.board.set_ground_fault(True)
    first = len(plugged.frames)
    plugged.run(500)
    assert len(plugged.frames) == first
    assert plugged.say("$GS^30") == [status]
    assert plugged.say("$G0^53") == [connected]
    assert plugged.ask("$FE", 900) == ["$OK^20", "$AT 06 02 32 0780^3B", "$AT 06 00 32 0780^39"]


def test_a_soft_ground_fault_comes_back_after_sleep_or_disable(charging: Line) -> None:
    charging.board.set_ground_fault(True)
    charging.run(500)
    assert charging.say("$FS^31") == ["$OK^20", "$AT fe 00 16 0580^38"]
    assert charging.say("$FE^27", 200) == ["$OK^20", "$AT 06 00 16 0580^3D"]
    assert charging.say("$FD^26", 500) == ["$OK^20", "$AT ff 00 16 0580^3B"]
    assert charging.say("$FE^27", 600) == ["$OK^20", "$AT 06 00 16 0580^3D"]


def no_diode(line: Line) -> None:
    line.board.inputs.diode = False


def load(which: Load) -> Callable[[Line], None]:
    def act(line: Line) -> None:
        line.board.inputs.load = which

    return act


@pytest.mark.parametrize(
    ("act", "message", "low_ms", "high_ms"),
    [
        (no_diode, "$AT 05 05 16 0502^31", 290, 330),
        (load(Load.D), "$AT 04 04 16 0502^31", 290, 330),
        (load(Load.SHORT), "$AT 05 05 16 0502^31", 290, 330),
    ],
)
def test_pilot_faults_while_charging_are_hard(
    charging: Line, act: Callable[[Line], None], message: str, low_ms: int, high_ms: int
) -> None:
    start = charging.now_ms
    act(charging)
    charging.run(600)
    charging.relay_change(False, start, low_ms, high_ms)
    assert charging.frames[-1][1] == message
    assert charging.board.state.duty_ppm == 1_000_000
    assert charging.say("$FE^27") == ["$OK^20"]
    assert charging.ask("$FP 0 0 hi") == ["$NK^21"]
    charging.board.inputs.diode = True
    charging.board.inputs.load = Load.C
    charging.run(500)
    assert charging.board.state.hard_fault
    start = charging.now_ms
    assert unplug(charging) == ["$AT 01 01 16 0200^34"]
    charging.expect("$AT 01 01 16 0200^34", start, 360, 440)


@pytest.mark.parametrize("act", [no_diode, load(Load.SHORT)])
def test_diode_and_short_before_closing(plugged: Line, act: Callable[[Line], None]) -> None:
    plugged.ask("$SC 16 V")
    start = plugged.now_ms
    act(plugged)
    plugged.run(600)
    plugged.expect("$AT 05 05 16 0702^33", start, 290, 330)


def test_a_short_without_a_vehicle_looks_like_ventilation() -> None:
    line = Line()
    line.ask("$SC 16 V")
    line.board.inputs.load = Load.SHORT
    line.run(900)
    assert line.frames[-1][1] == "$AT 04 04 16 0702^33"
    assert unplug(line) == ["$AT 01 01 16 0200^34"]


def test_without_the_ventilation_check_it_goes_on_charging(charging: Line) -> None:
    charging.ask("$FF V 0")
    charging.board.inputs.load = Load.D
    charging.run(600)
    assert charging.frames[-1][1] == "$AT 03 04 16 0540^30"
    assert charging.board.state.relay_closed


def test_ground_lost_while_charging(charging: Line) -> None:
    start = charging.now_ms
    charging.board.inputs.ground = False
    charging.run(600)
    charging.relay_change(False, start, 30, 60)
    charging.expect("$AT 07 03 16 0500^37", start, 30, 80)
    charging.expect("$AT 07 00 16 0500^34", start, 300, 360)
    charging.board.inputs.ground = True
    charging.run(303_000)
    assert charging.board.state.relay_closed
    assert charging.say("$GF^25") == ["$OK 0 1 0^31"]


@pytest.mark.parametrize("cause", ["ground", "relay_dead"])
def test_no_ground_or_a_dead_relay_is_found_a_second_after_closing(plugged: Line, cause: str) -> None:
    plugged.ask("$SC 16 V")
    setattr(plugged.board.inputs, cause, cause != "ground")
    plugged.board.inputs.load = Load.C
    plugged.run(3000)
    closed = next(at for at, state in plugged.relay if state)
    plugged.expect("$AT 07 03 16 0502^35", closed, 1030, 1080)


def test_over_current_opens_after_about_thirteen_seconds(charging: Line) -> None:
    start = charging.now_ms
    charging.board.inputs.current_ma = 22_000
    charging.run(15_000)
    charging.relay_change(False, start, 12_300, 13_900)
    assert charging.frames[-1][1] == "$AT 0b 03 16 0502^60"


def test_slightly_too_much_current_is_no_fault(charging: Line) -> None:
    charging.board.inputs.current_ma = 20_900
    charging.run(20_000)
    assert charging.board.state.relay_closed


def test_a_failing_self_test_never_closes(plugged: Line) -> None:
    plugged.ask("$SC 16 V")
    plugged.board.inputs.self_test_fails = True
    start = plugged.now_ms
    plugged.board.inputs.load = Load.C
    plugged.run(3000)
    plugged.expect("$AT 09 03 16 0702^39", start, 2250, 2330)
    assert not plugged.relay


def test_a_weld_is_seen_a_second_after_opening_and_only_a_restart_clears_it(charging: Line) -> None:
    charging.board.inputs.welded = True
    start = charging.now_ms
    charging.board.inputs.load, charging.board.inputs.current_ma = Load.B, 0
    charging.run(2000)
    opened = next(at for at, closed in charging.relay if not closed and at >= start)
    charging.expect("$AT 08 02 16 0502^3B", opened, 1000, 1080)
    assert charging.board.state.duty_ppm == 266_000
    charging.board.inputs.welded = False
    assert unplug(charging) == []
    status, message = charging.say("$GS^30")
    assert status.startswith("$OK 08 ")
    assert status.split("^")[0].endswith(" 02 0202")
    assert message == "$AT 08 02 16 0202^3C"
    assert charging.ask("$FD", 500) == ["$OK^20", "$AT ff 02 16 0202^34"]
    assert charging.ask("$FE") == ["$OK^20"]
    assert charging.ask("$FS") == ["$OK^20", "$AT fe 02 16 0202^37"]
    charging.send("$FR^30")
    charging.run(6000)
    assert charging.frames[-1][1] == "$AT 01 01 32 0200^32"


# section 12


def heartbeat_on(line: Line) -> Line:
    line.ask("$SC 16 V")
    assert line.say("$SY 5 6^2D") == ["$OK 5 6 0^33"]
    return line


def test_heartbeat_replies_in_time() -> None:
    line = Line()
    assert line.say("$SY^2E") == ["$OK 0 0 0^30"]
    heartbeat_on(line)
    for sent, reply in (
        ("$SY^2E", "$OK 5 6 0^33"),
        ("$SY 1^3F", "$NK 5 6 0^32"),
        ("$SY 165^3C", "$OK 5 6 0^33"),
        ("$SY 5^3B", "$NK 5 6 0^32"),
        ("$SY 5 6 7^3A", "$NK 5 6 0^32"),
        ("$SY 70 6^1F", "$OK 70 6 0^01"),
        ("$SY 40000 6^2C", "$OK -25536 6 0^1C"),
        ("$SY 70000 6^2F", "$OK 4464 6 0^04"),
        ("$SY 60 300^1B", "$OK 60 44 0^36"),
        ("$SY 0 0^2E", "$OK 0 0 0^30"),
    ):
        assert line.say(sent) == [reply]


def test_a_missed_heartbeat_lowers_the_current_and_the_order_of_recovery() -> None:
    line = heartbeat_on(Line())
    start = line.now_ms
    line.run(5200)
    line.expect("$AT 01 01 6 0200^05", start, 4950, 5050)
    assert line.say("$GY^3A") == ["$OK 5 6 2^31"]
    assert line.say("$GC^20") == ["$OK 6 32 6 32^20"]
    assert line.say("$SY 1^3F") == ["$NK 5 6 2^30"]
    assert line.say("$SY^2E") == ["$NK 5 6 2^30"]
    assert line.say("$SC 16 V^65") == ["$OK 16^07", "$AT 01 01 16 0200^34"]
    line.run(5100)
    assert line.frames[-1][1] == "$AT 01 01 6 0200^05"
    assert line.say("$SY 165^3C") == ["$OK 5 6 1^32", "$AT 01 01 32 0200^32"]
    assert line.say("$SY^2E") == ["$OK 5 6 1^32"]
    assert line.say("$SY 0 0^2E") == ["$OK 0 0 0^30"]


@pytest.mark.parametrize(("interval_s", "fires_ms"), [(100, 34_464), (66, 464)])
def test_the_interval_wraps_in_sixteen_bits(interval_s: int, fires_ms: int) -> None:
    line = Line()
    start = line.now_ms
    line.ask(f"$SY {interval_s} 6")
    line.run(fires_ms + 200)
    line.expect("$AT 01 01 6 0200^05", start, fires_ms, fires_ms + 80)


@pytest.mark.parametrize(
    ("command", "reply", "message"),
    [
        ("$SY 3 8^25", "$OK 3 8 0^3B", "$AT 03 03 8 0540^08"),
        ("$SY 3 0^2D", "$OK 3 0 0^33", "$AT 03 03 6 0540^06"),
    ],
)
def test_a_missed_heartbeat_never_opens(charging: Line, command: str, reply: str, message: str) -> None:
    assert charging.say(command) == [reply]
    charging.run(3200)
    assert charging.frames[-1][1] == message
    assert charging.board.state.relay_closed


def test_a_fallback_above_the_setting_changes_nothing_but_the_trigger(charging: Line) -> None:
    charging.ask("$SC 10 V")
    charging.ask("$SY 3 20")
    first = len(charging.frames)
    charging.run(3200)
    assert len(charging.frames) == first
    assert charging.say("$GY^3A") == ["$OK 3 20 2^03"]
    assert charging.say("$SY 165^3C") == ["$OK 3 20 1^00", "$AT 03 03 32 0540^31"]


# section 13


def heat(line: Line, celsius: int) -> list[str]:
    first = len(line.frames)
    line.board.inputs.temperature_mc = celsius * 1000
    line.run(1200)
    return [text for _, text in line.frames[first:]]


def test_the_temperature_ladder_follows_the_stored_maximum(charging: Line) -> None:
    charging.ask("$SC 10 V")
    assert heat(charging, 66) == ["$AT 03 03 16 0540^37"]
    assert charging.say("$SC 32^15") == ["$NK 16^06"]
    assert charging.say("$SC 10 V^63")[0] == "$OK 10^01"
    assert charging.say("$SC 12 V^61") == ["$NK 10^00"]
    assert heat(charging, 68) == ["$AT 03 03 8 0540^08"]
    assert heat(charging, 65) == ["$AT 03 03 16 0540^37"]
    assert heat(charging, 62) == ["$AT 03 03 32 0540^31"]


@pytest.mark.parametrize(("temperature_mc", "shown"), [(64_750, 647), (21_250, 212), (-500, -5), (-5000, -50)])
def test_temperatures_are_cut_towards_zero(temperature_mc: int, shown: int) -> None:
    line = Line()
    line.board.inputs.temperature_mc = temperature_mc
    assert line.say("$GP^33")[0].startswith(f"$OK {shown} 0 -2560^")


def test_without_a_clock_chip() -> None:
    line = Line()
    line.board.inputs.clock_chip = False
    assert line.say("$GP^33") == ["$OK -2560 0 -2560^30"]
    assert line.say("$GT^37") == ["$OK 165 165 165 165 165 85^1F"]


def test_panic_waits_five_seconds_without_serial_service_and_opens(charging: Line) -> None:
    start = charging.now_ms
    charging.board.inputs.temperature_mc = 72_000
    charging.run(2000)
    first = len(charging.frames)
    charging.send("$GS^30")
    charging.run(6000)
    texts = [text for _, text in charging.frames[first:]]
    assert texts[0] == "$AT 0a 03 16 0502^63"
    assert texts[1].startswith("$OK 0a ")
    charging.relay_change(False, start, 5000, 6050)
    assert charging.ask("$FE") == ["$OK^20"]
    assert heat(charging, 20) == []
    assert unplug(charging) == ["$AT 01 01 16 0200^34"]


def test_panic_without_a_vehicle_repeats_until_cool() -> None:
    line = Line()
    line.ask("$SC 16 V")
    first = len(line.frames)
    line.board.inputs.temperature_mc = 72_000
    line.run(12_000)
    assert [text for _, text in line.frames[first:]] == ["$AT 0a 01 16 0202^66", "$AT 0a 00 16 0202^67"]
    line.board.inputs.temperature_mc = 25_000
    line.run(6000)
    assert line.frames[-1][1] == "$AT 01 01 16 0200^34"


# section 15


def test_a_stored_delay_timer_starts_asleep() -> None:
    line = Line(Eeprom(timer=(1, 0, 2, 0)))
    line.expect("$AT fe 00 32 1200^30", 0, 3340, 3340)
    line.plug()
    assert line.frames[-1][1] == "$AT fe 00 32 1300^31"


def test_what_survives_a_power_cycle() -> None:
    line = Line()
    for body in ("$SC 16", "$SY 5 6", "$FF D 0", "$SK 777", "$S5 M", "$SV 231000", "$SA 210 3"):
        line.ask(body)
    line.board.power_off()
    line.run(500)
    assert line.board.state.duty_ppm == 0
    line.board.power_on()
    line.run(12_000)
    for query, reply in (
        ("$GE", "$OK 6 0023^17"),
        ("$GC", "$OK 6 32 6 16^26"),
        ("$GY", "$OK 5 6 2^31"),
        ("$GU", "$OK 0 777^27"),
        ("$G5", "$OK 0 A^51"),
        ("$GG", "$OK 0 230000^11"),
        ("$GA", "$OK 210 3^20"),
    ):
        assert line.ask(query) == [reply]
    assert line.ask("$SY 165") == ["$OK 5 6 1^32", "$AT 01 01 16 0200^34"]


def test_a_board_without_power_is_silent() -> None:
    board = Board(Eeprom())
    board.receive(b"$GS^30\r")
    board.advance(5000)
    assert board.take_output() == b""
