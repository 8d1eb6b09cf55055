"""RAPI codec: round trip, byte by byte, garbage raises nothing, the bounds hold."""

import functools
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.events import Pilot
from agent.drivers import rapi

CHARS = st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="$^*:")
WORDS = st.text(CHARS, min_size=1, max_size=6)


def as_board_sends(body: str) -> bytes:
    """The board's own framing, written from its description: XOR of all characters before the mark."""
    return b"%s^%02X\r" % (body.encode("latin-1"), functools.reduce(operator.xor, body.encode("latin-1")))


@given(st.lists(WORDS, max_size=4), st.booleans(), st.none() | st.integers(1, 255))
def test_reply_comes_back_as_it_was_sent(words: list[str], ok: bool, sequence: int | None) -> None:
    body = " ".join(["$OK" if ok else "$NK", *words] + ([] if sequence is None else [f":{sequence:02X}"]))
    assert rapi.Decoder().feed(as_board_sends(body)) == [rapi.Reply(ok, tuple(words), sequence)]


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 80), st.integers(0, 0xFFFF))
def test_change_comes_back_as_it_was_sent(state: int, pilot: int, amps: int, vflags: int) -> None:
    frame = as_board_sends(f"$AT {state:02x} {pilot:02x} {amps} {vflags:04x}")
    assert rapi.Decoder().feed(frame) == [rapi.Changed(state, pilot, amps, vflags)]


@given(st.binary(max_size=600), st.data())
def test_pieces_of_a_stream_give_what_the_whole_gives(stream: bytes, data: st.DataObject) -> None:
    stream += as_board_sends("$OK 01 0 01 0200 :A7") + b"\n" + as_board_sends("$AB 00 8.2.3.EU")
    whole = rapi.Decoder().feed(stream)
    cut = data.draw(st.integers(0, len(stream)))
    halves, single = rapi.Decoder(), rapi.Decoder()
    assert halves.feed(stream[:cut]) + halves.feed(stream[cut:]) == whole
    assert [frame for byte in stream for frame in single.feed(bytes([byte]))] == whole


@given(st.lists(st.binary(max_size=100), max_size=50))
def test_garbage_raises_nothing_and_the_buffer_is_bounded(chunks: list[bytes]) -> None:
    decoder = rapi.Decoder()
    for chunk in chunks:
        decoder.feed(chunk)
        assert len(decoder._buffer) <= rapi.BUFFER_BYTES
    decoder.feed(b"\r")
    assert decoder.feed(as_board_sends("$OK")) == [rapi.Reply(True, (), None)]


@given(st.lists(WORDS, max_size=5), st.integers(0, 0xFF), st.integers(1, 7))
def test_one_wrong_bit_in_a_frame_is_noticed(words: list[str], place: int, flip: int) -> None:
    frame = bytearray(as_board_sends(" ".join(["$OK", *words])))
    index = 1 + place % (len(frame) - 5)
    frame[index] ^= 1 << flip - 1
    if frame[index] in b"$^\r":
        return
    decoder = rapi.Decoder()
    assert decoder.feed(bytes(frame)) == []
    assert decoder.bad_frames == 1


def test_noise_is_not_a_bad_frame_and_an_endless_frame_is() -> None:
    decoder = rapi.Decoder()
    assert decoder.feed(b"relayCloseMs: 100\r\n" + b"x" * 1000) == []
    assert decoder.bad_frames == 0
    assert decoder.feed(b"$" + b"x" * 1000) == []
    assert decoder.bad_frames == 1


@pytest.mark.parametrize("body", ["$AT 01 01 32", "$AT 1 01 32 0200", "$AT 01 01 x 0200", "$AT 01 01 32 0200 7",
                                  "$AB 00", "$AB zz 8.2.3", "$AN 2", "$XX", "$",
                                  "$AT 01 01 -1 0200", "$AT 01 01 3² 0200"])
def test_frame_with_wrong_fields_is_dropped_and_counted(body: str) -> None:
    decoder = rapi.Decoder()
    assert decoder.feed(as_board_sends(body)) == []
    assert decoder.bad_frames == 1


def test_frame_of_31_characters_is_sent_and_32_are_refused() -> None:
    assert len(rapi.encode("FP", "0", "0", "x" * 16, sequence=1)) == rapi.MAX_FRAME_CHARS + 1
    with pytest.raises(ValueError, match="has 32 characters"):
        rapi.encode("FP", "0", "0", "x" * 17, sequence=1)


@pytest.mark.parametrize("word", ["", "a b", "a\r", "$GS", "^", "*", "é", "\n"])
def test_word_that_would_break_a_frame_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="is not a RAPI word"):
        rapi.encode("SC", word)


@pytest.mark.parametrize("sequence", [0, 256, -1])
def test_sequence_id_outside_1_to_255_is_refused(sequence: int) -> None:
    with pytest.raises(ValueError, match=r"is not 1\.\.255"):
        rapi.encode("GS", sequence=sequence)


@given(st.lists(st.text(max_size=8), max_size=6))
def test_interpreters_give_none_for_what_is_not_theirs(words: list[str]) -> None:
    status = rapi.status(words)
    assert status is None or len(words) == 4
    assert rapi.capacity(words) is None or len(words) == 4
    assert rapi.ecf_flags(words) is None or len(words) == 2


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 0xFFFF))
def test_every_number_the_board_could_send_has_a_meaning(state: int, pilot: int, vflags: int) -> None:
    seen = rapi.pilot(state, pilot, vflags)
    assert (rapi.is_plugged(state, vflags) is None) == (state in (0x00, 0xFF))
    if rapi.is_asleep(state) or state in (0, 1, 2, 3):
        assert rapi.fault(state) is None
    else:
        assert str(rapi.fault(state)).startswith(f"{state:02x} ")
    if state in (1, 2, 3, 0xFE):
        assert (seen is Pilot.A) == (not vflags & 0x0100)


@pytest.mark.req("P1-S1.6")
@pytest.mark.parametrize(("text", "pilot", "plugged", "closed"), [
    ("01 01 0200", Pilot.A, False, False), ("01 01 0300", Pilot.B, True, False), ("01 02 0700", Pilot.B, True, False),
    ("02 02 0700", Pilot.B, True, False), ("02 03 0700", Pilot.C, True, False), ("03 03 0540", Pilot.C, True, True),
    ("03 04 0540", Pilot.D, True, True), ("03 03 0640", Pilot.A, False, True), ("fe 03 0540", Pilot.B, True, True),
    ("fe 03 0200", Pilot.A, False, False), ("ff 03 0500", Pilot.F, None, False),
    ("00 00 0200", Pilot.UNKNOWN, None, None), ("06 00 0580", Pilot.UNKNOWN, True, False),
    ("08 02 0502", Pilot.B, True, None)])
def test_state_triples_mean(text: str, pilot: Pilot, plugged: bool | None, closed: bool | None) -> None:
    state, pilot_state, vflags = (int(word, 16) for word in text.split())
    assert rapi.pilot(state, pilot_state, vflags) is pilot
    assert rapi.is_plugged(state, vflags) is plugged
    assert rapi.is_closed(state, vflags) is closed


def test_protections_are_named() -> None:
    assert rapi.protections_off(0x0021) == ()
    assert rapi.protections_off(0x061F) == ("diode", "ventilation", "ground", "stuck-relay", "ground-fault-self-test",
                                            "temperature")


@pytest.mark.parametrize(("state", "vflags", "is_boot"), [
    (0x09, 0x0200, True), (0x08, 0x0200, True), (0x07, 0x0200, True), (0x07, 0x0500, False), (0x08, 0x0282, False),
    (0x08, 0x0202, False), (0x06, 0x0280, False)])
def test_failed_self_test_is_told_from_later_faults(state: int, vflags: int, is_boot: bool) -> None:
    assert rapi.is_boot_fault(state, vflags) is is_boot
