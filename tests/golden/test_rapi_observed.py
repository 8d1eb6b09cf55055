"""Every frame observed on the serial port of OpenEVSE 8.2.3 decodes, and what the agent sends is what was accepted."""

import os
import re
from pathlib import Path

import pytest

from agent.drivers import rapi

SHARED = Path(os.environ.get("PLUGBIND_SHARED", Path(__file__).parents[2].parent / "shared"))
OBSERVED = SHARED / "facts" / "openevse-observed.md"


def observed() -> str:
    """The reference, which is not part of the project."""
    if not OBSERVED.is_file():
        pytest.skip(f"{OBSERVED} is not here: set PLUGBIND_SHARED to the folder that holds facts/")
    return OBSERVED.read_text(encoding="utf-8")


def frames(start: str) -> list[str]:
    """Frames with a checksum that begin like this, as written in the reference."""
    return re.findall(rf"(\$(?:{start})[^`|$\n<>^]*\^[0-9A-F]{{2}})(?![0-9A-Za-z])", observed())


def test_every_observed_reply_decodes() -> None:
    texts = frames("OK|NK")
    assert len(texts) > 200
    for text in texts:
        decoder = rapi.Decoder()
        [frame] = decoder.feed(text.encode("latin-1") + b"\r")
        assert isinstance(frame, rapi.Reply)
        assert frame.ok == text.startswith("$OK")
        assert decoder.bad_frames == 0


def test_every_observed_message_decodes() -> None:
    texts = frames("AT|AB")
    assert len(texts) > 80
    for text in texts:
        [frame] = rapi.Decoder().feed(text.encode() + b"\r")
        words = text.partition("^")[0].split(" ")
        if words[0] == "$AT":
            assert frame == rapi.Changed(int(words[1], 16), int(words[2], 16), int(words[3]), int(words[4], 16))
        else:
            assert frame == rapi.Booted(int(words[1], 16), words[2])


def test_observed_power_up_stream_decodes_through_its_text_lines() -> None:
    stream = ("\nrelayCloseMs: 100\r\nrelayHoldPwm: 255\r\n$AT 00 00 0 0200^03\r$AB 00 8.2.3.EU^20\r"
              "$AT 01 01 32 0200^32\r")
    decoder = rapi.Decoder()
    assert decoder.feed(stream.encode()) == [
        rapi.Changed(0, 0, 0, 0x0200), rapi.Booted(0, "8.2.3.EU"), rapi.Changed(1, 1, 32, 0x0200)]
    assert decoder.bad_frames == 0


@pytest.mark.parametrize(("words", "sequence", "frame"), [
    (["GS"], None, "$GS^30"), (["GS"], 0xA7, "$GS :A7^5C"), (["GV"], 1, "$GV :01^2E"), (["GC"], 0xFF, "$GC :FF^3A"),
    (["SC", "16", "V"], None, "$SC 16 V^65"), (["SC", "6", "V"], None, "$SC 6 V^54"), (["FE"], None, "$FE^27"),
    (["FS"], None, "$FS^31"), (["FD"], None, "$FD^26"), (["SY", "5", "6"], None, "$SY 5 6^2D"),
    (["SY"], None, "$SY^2E"),
    (["SY", "165"], None, "$SY 165^3C"), (["GE"], None, "$GE^26"), (["GY"], None, "$GY^3A")])
def test_commands_are_the_bytes_that_the_board_took(words: list[str], sequence: int | None, frame: str) -> None:
    assert rapi.encode(words[0], *words[1:], sequence=sequence) == frame.encode() + b"\r"


@pytest.mark.parametrize(("frame", "words", "sequence"), [
    (b"$OK 01 0 01 0200 :A7^7E\r", ("01", "0", "01", "0200"), 0xA7), (b"$OK 8.2.3.EU 5.2.1 :01^0A\r",
                                                                     ("8.2.3.EU", "5.2.1"), 1)])
def test_observed_replies_carry_their_sequence_id(frame: bytes, words: tuple[str, ...], sequence: int) -> None:
    assert rapi.Decoder().feed(frame) == [rapi.Reply(True, words, sequence)]


def test_every_observed_state_triple_has_a_meaning() -> None:
    table = observed().partition("## Appendix A")[2].partition("## Appendix B")[0]
    triples = re.findall(r"^\| `([0-9a-f]{2}) ([0-9a-f]{2}) ([0-9a-f]{4})`", table, re.M)
    assert len(triples) > 60
    for state, pilot, vflags in triples:
        status = rapi.status([state, "0", pilot, vflags])
        assert status is not None
        rapi.pilot(status.state, status.pilot, status.vflags)
        hidden = rapi.is_asleep(status.state) or status.state == 0
        assert (rapi.fault(status.state) is not None) == (int(state, 16) >= 4 and not hidden)


def test_replies_of_capacity_and_flags_are_read() -> None:
    assert rapi.capacity(("6", "32", "16", "32")) == rapi.Capacity(6, 32, 16, 32)
    assert rapi.ecf_flags(("32", "0021")) == 0x0021
    assert rapi.capacity(("6", "32", "16")) is None
