"""The OpenEVSE driver and a scripted board on a pseudo-terminal: orders, lost replies, restart, silence."""

import queue
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from agent.core.events import BoardFailed, BoardFound, BoardReported, Event, Pilot
from agent.drivers.board_openevse import OpenEvseBoard
from unit.driver_peers import ALLOWED, BoardPeer, Heard, board_frame, clock_at


@dataclass(frozen=True)
class Settings:
    poll_ms: int = 1000
    heartbeat_s: int = 20
    fallback_ma: int = 6_000


@dataclass
class Bench:
    peer: BoardPeer
    heard: Heard
    board: OpenEvseBoard


@pytest.fixture
def peer() -> Iterator[BoardPeer]:
    """A board; afterwards every byte that the driver ever sent is checked: queries, volatile limits, sleep and wake."""
    peer = BoardPeer()
    peer.start()
    yield peer
    peer.close()
    frames = bytes(peer.sent_by_driver).decode("ascii").split("\r")
    for frame in frames[:-1]:
        assert ALLOWED.fullmatch(frame.partition("^")[0]), f"{frame} could write the board's EEPROM"


@pytest.fixture
def bench(peer: BoardPeer) -> Iterator[Bench]:
    heard = Heard()
    board = OpenEvseBoard(peer.path, heard.post, clock_at(0.1), 0.1, Settings(), reply_s=0.3)
    yield Bench(peer, heard, board)
    board.stop()


def test_board_is_identified_and_read_before_anything_is_changed(bench: Bench) -> None:
    bench.peer.ecf = 0x0021 | 0x0002 | 0x0008
    bench.board.start()
    found = bench.heard.until(BoardFound)
    assert found.identity.firmware == "8.2.3.EU"
    assert found.identity.protections_off == ("diode", "ground")
    assert found.identity.stored_max_ma == 32_000
    first = bench.heard.until(BoardReported).status
    assert (first.pilot, first.plugged, first.closed, first.asleep, first.fault) == (Pilot.A, False, False, False, None)
    bench.peer.until("FS")
    assert bench.peer.commands[:4] == ["GV", "GE", "GC", "GS"]
    assert bench.peer.heartbeat == ["20", "6"]


def test_awake_open_board_is_put_to_sleep_unasked(bench: Bench) -> None:
    bench.board.start()
    assert bench.heard.until(BoardReported, lambda event: event.status.asleep).status.closed is False


@pytest.mark.req("P1-S1.6")
def test_plugging_in_is_reported_at_once_as_pilot_b(bench: Bench) -> None:
    bench.board.start()
    bench.heard.until(BoardReported, lambda event: event.status.asleep)
    bench.peer.plug()
    status = bench.heard.until(BoardReported, lambda event: event.status.plugged is True).status
    assert (status.pilot, status.asleep, status.closed) == (Pilot.B, True, False)


@pytest.mark.req("P1-S1.6", "P1-F7")
@pytest.mark.parametrize(("limit_ma", "amps"), [(12_000, 12), (15_999, 15), (32_000, 32), (6_000, 6)])
def test_asked_board_gets_volatile_limit_first_and_closes(bench: Bench, limit_ma: int, amps: int) -> None:
    bench.peer.wants_power = True
    bench.board.start()
    bench.heard.until(BoardReported, lambda event: event.status.asleep)
    bench.peer.plug()
    bench.board.ask_to_close(limit_ma)
    status = bench.heard.until(BoardReported, lambda event: event.status.closed is True).status
    assert (status.pilot, status.limit_ma) == (Pilot.C, amps * 1000)
    assert bench.peer.commands.index(f"SC {amps} V") < bench.peer.commands.index("FE")


def test_open_order_puts_the_board_to_sleep(bench: Bench) -> None:
    close(bench)
    bench.board.open_contactor()
    status = bench.heard.until(BoardReported, lambda event: event.status.closed is False).status
    assert (status.asleep, status.plugged) == (True, True)


def close(bench: Bench) -> None:
    bench.peer.wants_power = True
    bench.board.start()
    bench.peer.until("FS")
    bench.peer.plug()
    bench.board.ask_to_close(16_000)
    bench.heard.until(BoardReported, lambda event: event.status.closed is True)


def test_board_that_stays_closed_asleep_is_disabled_then_put_back_to_sleep(bench: Bench) -> None:
    bench.peer.opens_when_asleep = False
    close(bench)
    bench.board.open_contactor()
    bench.peer.until("FD")
    disabled = bench.heard.until(BoardReported, lambda event: event.status.closed is False).status
    assert disabled.pilot is Pilot.F
    assert disabled.plugged is None
    status = bench.heard.until(BoardReported, lambda event: event.status.plugged is True).status
    assert (status.pilot, status.closed, status.asleep) == (Pilot.B, False, True)


def test_open_order_does_not_wait_for_a_lost_reply(peer: BoardPeer) -> None:
    heard = Heard()
    board = OpenEvseBoard(peer.path, heard.post, clock_at(0.1), 0.1, Settings(), reply_s=3600)
    bench = Bench(peer, heard, board)
    close(bench)
    peer.lose = {"SC 10 V"}
    board.ask_to_close(10_000)
    peer.until("SC 10 V")
    board.open_contactor()
    heard.until(BoardReported, lambda event: event.status.closed is False)
    assert peer.commands.count("SC 10 V") == 1
    board.stop()


def test_opening_beats_a_closing_order_that_came_before_it(bench: Bench) -> None:
    bench.peer.wants_power = True
    bench.peer.plug()
    bench.board.ask_to_close(16_000)
    bench.board.open_contactor()
    bench.board.start()
    bench.heard.until(BoardReported, lambda event: event.status.asleep)
    bench.peer.until("GS", 4)
    assert "FE" not in bench.peer.commands


def test_limit_can_be_lowered_and_raised_while_charging(bench: Bench) -> None:
    close(bench)
    bench.board.ask_to_close(10_000)
    bench.heard.until(BoardReported, lambda event: event.status.limit_ma == 10_000)
    bench.board.ask_to_close(20_000)
    assert bench.heard.until(BoardReported, lambda event: event.status.limit_ma == 20_000).status.closed is True


def test_clamped_limit_is_reported_as_it_is_and_not_asked_for_again(bench: Bench) -> None:
    bench.peer.grants_a = 13
    bench.peer.amps = 13
    close(bench)
    polls = bench.peer.commands.count("GS")
    bench.peer.until("GS", polls + 4)
    bench.heard.until(BoardReported, lambda event: event.status.limit_ma == 13_000)
    assert bench.peer.commands.count("SC 16 V") == 1


def test_limit_that_jumps_to_the_stored_maximum_is_set_again(bench: Bench) -> None:
    close(bench)
    bench.peer.become(0x03, 0x03, 0x0540, 32)
    bench.heard.until(BoardReported, lambda event: event.status.limit_ma == 32_000)
    bench.heard.until(BoardReported, lambda event: event.status.limit_ma == 16_000)


def test_missed_heartbeat_is_acknowledged_and_the_limit_set_again(bench: Bench) -> None:
    close(bench)
    bench.peer.trigger, bench.peer.amps = 2, 6
    bench.peer.until("SY 165")
    bench.peer.until("SC 16 V", 2)
    after = bench.peer.commands[bench.peer.commands.index("SY 165"):]
    assert after[1] == "SC 16 V"


def test_heartbeat_already_stored_is_not_written_again(bench: Bench) -> None:
    bench.peer.heartbeat = ["20", "6"]
    bench.board.start()
    bench.peer.until("SY", 2)
    assert "SY 20 6" not in bench.peer.commands


def test_closed_contactor_at_start_is_reported_and_left_to_the_station(bench: Bench) -> None:
    bench.peer.state, bench.peer.pilot, bench.peer.vflags = 0x03, 0x03, 0x0540
    bench.peer.trigger, bench.peer.amps, bench.peer.heartbeat = 2, 6, ["20", "6"]
    bench.board.start()
    status = bench.heard.until(BoardReported).status
    assert (status.pilot, status.closed) == (Pilot.C, True)
    bench.peer.until("SY")
    bench.peer.until("GS", 4)
    assert not {"FS", "FD", "FE", "SY 165"} & set(bench.peer.commands), "6 A must not become the stored maximum"
    bench.board.ask_to_close(16_000)
    bench.heard.until(BoardReported, lambda event: event.status.limit_ma == 16_000)
    assert not {"FS", "FD", "FE"} & set(bench.peer.commands)


def test_closed_contactor_at_start_is_opened_when_the_station_says_so(bench: Bench) -> None:
    bench.peer.state, bench.peer.pilot, bench.peer.vflags = 0x03, 0x03, 0x0540
    bench.board.start()
    bench.heard.until(BoardReported, lambda event: event.status.closed is True)
    bench.board.open_contactor()
    bench.heard.until(BoardReported, lambda event: event.status.closed is False)


@pytest.mark.parametrize("order", ["close", "open", "none"])
def test_restarted_board_is_set_up_again_and_gets_the_last_order(bench: Bench, order: str) -> None:
    if order == "close":
        close(bench)
    else:
        bench.board.start()
        bench.peer.until("FS")
        if order == "open":
            bench.board.open_contactor()
            bench.peer.until("FS", 2)
    heartbeats = bench.peer.commands.count("GY")
    before = len(bench.peer.commands)
    bench.peer.reboot()
    bench.peer.until("GY", heartbeats + 1)
    bench.peer.until("GS", bench.peer.commands.count("GS") + 2)
    after = bench.peer.commands[before:]
    assert ("SC 16 V" in after) == (order == "close")
    assert ("FS" in after) == (order != "close")


def test_lost_reply_is_asked_again(bench: Bench) -> None:
    bench.peer.lose = {"GV", "GS", "FS"}
    bench.board.start()
    bench.heard.until(BoardReported, lambda event: event.status.asleep)
    assert not [event for event in bench.heard.all if isinstance(event, BoardFailed)]


def test_command_that_arrived_damaged_is_asked_again(bench: Bench) -> None:
    bench.peer.damage = {"GV", "GC", "GS", "FS", "SY 20 6"}
    bench.board.start()
    bench.heard.until(BoardReported, lambda event: event.status.asleep)
    assert not [event for event in bench.heard.all if isinstance(event, BoardFailed)]


@pytest.mark.parametrize("junk", [
    b"\n", b"\nrelayCloseMs: 100\r\n", b"\xff\x00\x80$O", b"$OK 03 0 03 0540^00\r", board_frame("$OK 03 0 03 0540 :7F"),
    b"noise$AT zz^11\r", board_frame("$AN 0") + board_frame("$WF 1"), b"x" * 5000])
def test_junk_before_replies_changes_nothing(bench: Bench, junk: bytes) -> None:
    bench.peer.before_reply = junk
    bench.board.start()
    bench.heard.until(BoardReported, lambda event: event.status.asleep)
    statuses = [event.status for event in bench.heard.drained() if isinstance(event, BoardReported)]
    assert not any(status.closed for status in statuses)


def test_silent_board_fails_once_and_is_found_again_with_its_order(bench: Bench) -> None:
    close(bench)
    bench.peer.silent = True
    failed = bench.heard.until(BoardFailed)
    assert failed.cause == f"{bench.peer.path}: the board is silent: check its power and the cable"
    polls = bench.peer.commands.count("GV")
    bench.peer.until("GV", polls + 4)  # a whole attempt to come back has failed
    bench.peer.silent = False
    bench.peer.amps = 6
    bench.heard.until(BoardFound)
    bench.heard.until(BoardReported, lambda event: event.status.limit_ma == 16_000 and event.status.closed is True)
    assert sum(isinstance(event, BoardFailed) for event in bench.heard.all) == 1


def test_latched_fault_is_told_also_while_the_board_covers_it(bench: Bench) -> None:
    close(bench)
    bench.peer.become(0x06, 0x00, 0x0580)
    bench.heard.until(BoardReported, lambda event: event.status.fault == "06 ground fault")
    bench.board.open_contactor()
    status = bench.heard.until(BoardReported, lambda event: event.status.asleep).status
    assert status.fault == "06 ground fault"
    bench.peer.become(0xFE, 0x00, 0x0280)
    bench.heard.until(BoardReported, lambda event: event.status.fault is None)


def test_hard_fault_is_not_covered_by_sleep(bench: Bench) -> None:
    close(bench)
    bench.peer.become(0x05, 0x05, 0x0502)
    bench.heard.until(BoardReported, lambda event: event.status.fault is not None)
    sleeps = bench.peer.commands.count("FS")
    bench.board.open_contactor()
    bench.peer.until("GS", bench.peer.commands.count("GS") + 3)
    assert bench.peer.commands.count("FS") == sleeps
    bench.peer.become(0x01, 0x01, 0x0200)
    bench.heard.until(BoardReported, lambda event: event.status.asleep and event.status.fault is None)


def test_missing_port_is_one_clear_sentence_told_once() -> None:
    heard = Heard()
    board = OpenEvseBoard("/dev/ttyNOTHERE", heard.post, clock_at(0.001), 0.001, Settings())
    board.start()
    failed = heard.until(BoardFailed)
    board.stop()
    assert failed.cause == "/dev/ttyNOTHERE: no such device: plug the adapter in or name another port"
    assert len(heard.drained()) == 1


def test_full_inbox_delays_found_and_loses_no_order(peer: BoardPeer) -> None:
    heard = Heard()
    refusals = 3

    def post(event: Event) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise queue.Full
        heard.post(event)

    board = OpenEvseBoard(peer.path, post, clock_at(0.01), 0.01, Settings(), reply_s=0.5)
    board.start()
    heard.until(BoardReported, lambda event: event.status.asleep)
    board.stop()
    assert isinstance(heard.all[0], BoardFound)


def test_too_small_a_limit_is_the_callers_error(bench: Bench) -> None:
    with pytest.raises(ValueError, match="a pilot begins at 6000 mA"):
        bench.board.ask_to_close(5_999)


def test_stop_carries_out_a_waiting_order_to_open(bench: Bench) -> None:
    close(bench)
    bench.board.open_contactor()
    bench.board.stop()
    assert bench.peer.state == 0xFE


def test_order_given_while_the_board_was_away_waits_for_a_look_at_it(bench: Bench) -> None:
    close(bench)
    bench.peer.silent = True
    bench.heard.until(BoardFailed)
    bench.board.open_contactor()
    before = len(bench.peer.commands)
    bench.peer.silent = False
    bench.heard.until(BoardReported, lambda event: event.status.closed is True)
    bench.heard.until(BoardReported, lambda event: event.status.closed is False and event.status.asleep)
    after = [command for command in bench.peer.commands[before:] if command != "GV"]
    assert after[:4] == ["GE", "GC", "GS", "FS"]


def test_news_right_behind_a_reply_is_not_overwritten_by_it(bench: Bench) -> None:
    """A fault that arises between the board's `$GS` and the agent's read: both are in one chunk of bytes."""
    close(bench)
    bench.peer.after_status = (0x05, 0x05, 0x0502)
    bench.heard.until(BoardReported, lambda event: event.status.fault is not None)
    sleeps = bench.peer.commands.count("FS")
    bench.board.open_contactor()
    bench.peer.until("GS", bench.peer.commands.count("GS") + 2)
    faults = [event.status.fault for event in bench.heard.drained() if isinstance(event, BoardReported)]
    assert all(faults[faults.index("05 diode missing, or pilot shorted"):])
    assert bench.peer.commands.count("FS") == sleeps
