"""No bytes on the board's serial line, and no order of events around it, bring the simulated board down."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_sim.board_openevse import Board
from firmware_sim.board_state import Load, Pilot, State
from firmware_sim.rapi_wire import frame, parse, xor_sum

pytestmark = pytest.mark.req("P1-F7")

LETTERS = st.sampled_from("GSFZTA")
SECOND = st.sampled_from("0123456789ABCDEFGHIKLMOPSRTUVXYZ")
WORD = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=6)


def running(load: Load = Load.A) -> Board:
    board = Board()
    board.inputs.load = load
    board.power_on()
    for _ in range(20):
        board.advance(board.now_ms + 200)
    board.take_output()
    return board


def advance(board: Board, ms: int) -> None:
    end_ms = board.now_ms + ms
    while board.now_ms < end_ms:
        board.advance(end_ms)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=6))
def test_any_bytes_leave_a_board_that_still_answers(parts: list[bytes]) -> None:
    board = running()
    for part in parts:
        board.receive(part)
        advance(board, 500)
    board.take_output()
    board.receive(b"\r" + frame(b"$GV"))
    advance(board, 6000)
    if not board.state.restart_asked:
        assert b"$OK 8.2.3.EU 5.2.1^11\r" in board.take_output()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LETTERS, SECOND, st.lists(WORD, max_size=6)), max_size=6), st.sampled_from(list(Load)))
def test_any_command_with_any_words_is_answered(commands: list[tuple[str, str, list[str]]], load: Load) -> None:
    board = running(load)
    for first, second, words in commands:
        board.receive(frame(("$" + " ".join([first + second, *words])).encode("latin-1")))
        advance(board, 1500)
        for line in board.take_output().replace(b"\n", b"").split(b"\r"):
            if line.startswith((b"$OK", b"$NK", b"$AT")):
                body, _, digits = line.rpartition(b"^")
                assert int(digits, 16) == xor_sum(body)


DEEDS = st.sampled_from(
    ["A", "B", "C", "D", "short", "ground_fault", "no_ground", "welded", "diode", "hot", "$FE", "$FD", "$FS", "$SY 3 6"]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(DEEDS, st.integers(10, 4000)), max_size=12))
def test_the_relay_is_closed_only_while_a_vehicle_asks_or_just_did(deeds: list[tuple[str, int]]) -> None:
    board = running()
    for deed, ms in deeds:
        inputs = board.inputs
        if deed.startswith("$"):
            board.receive(frame(deed.encode()))
        elif deed in {load.value for load in Load}:
            inputs.load = Load(deed)
        elif deed == "ground_fault":
            board.set_ground_fault(not inputs.ground_fault)
        elif deed == "no_ground":
            inputs.ground = not inputs.ground
        elif deed == "hot":
            inputs.temperature_mc = 97_000 - inputs.temperature_mc
        else:
            setattr(inputs, deed, not getattr(inputs, deed))
        advance(board, ms)
        if board.state.relay_closed:
            assert board.state.state in (State.C, State.SLEEPING) or board.state.pilot is Pilot.P12
            assert not board.state.hard_fault
    board.inputs.load = Load.A
    advance(board, 12_000)
    assert not board.state.relay_closed


@given(st.binary(max_size=60))
def test_any_line_is_a_request(line: bytes) -> None:
    request = parse(b"$" + line)
    assert 0 <= request.sequence_id <= 0xFF
