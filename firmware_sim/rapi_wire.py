"""RAPI framing as the board does it: bytes in, words out; text in, frame out.

Written from the observed board alone (facts/openevse-observed.md, sections 2 and 3); it shares nothing with the agent's
codec, so that the two can disagree. No I/O, no clock, no meaning of commands.
"""

from dataclasses import dataclass, field

RECEIVE_LIMIT = 63
LINE_LIMIT = 31
WORD_LIMIT = 10
_HEX = "0123456789abcdefABCDEF"


def xor_sum(data: bytes) -> int:
    """XOR of all bytes, 0..255."""
    total = 0
    for byte in data:
        total ^= byte
    return total


def frame(body: bytes) -> bytes:
    """`body` (with its `$`) closed by `^XX` and CR, digits in upper case."""
    return body + b"^%02X\r" % xor_sum(body)


def number(word: str) -> int:
    """A decimal word as the firmware reads it: every character adds its code minus 48, nothing is refused; 32 bits."""
    value = 0
    for character in word:
        value = value * 10 + ord(character) - 48
    return value & 0xFFFFFFFF


def _hex_pair(text: str) -> int | None:
    """The number in the first two hex digits, or None when there are no two."""
    if len(text) < 2 or text[0] not in _HEX or text[1] not in _HEX:
        return None
    return int(text[:2], 16)


@dataclass(frozen=True, slots=True)
class Request:
    """One accepted or refused line. `words` is None when the line must be answered `$NK` without an id."""

    words: tuple[str, ...] | None
    sequence_id: int  # 0: none


def parse(line: bytes) -> Request:
    """The request in `line` (from `$`, without CR), by the rules of section 2."""
    text = line.decode("latin-1")
    cut = next((i for i in range(2, len(text)) if text[i] in "^*"), None)
    if cut is not None:
        summed = line[:cut]
        expected = xor_sum(summed) if text[cut] == "^" else sum(summed) & 0xFF
        if _hex_pair(text[cut + 1 :]) != expected:
            return Request(None, 0)
        text = text[:cut]
    parts = text[2:].split(" ")  # the character after `$` belongs to the command whatever it is
    parts[0] = text[1:2] + parts[0]
    if len(parts) > WORD_LIMIT:
        return Request(None, 0)
    sequence_id = 0
    if len(parts) > 1 and parts[-1].startswith(":"):
        sequence_id = _hex_pair(parts[-1][1:]) or 0
        parts.pop()
    return Request(tuple(parts), sequence_id)


def reply(accepted: bool, text: bytes, sequence_id: int, echo: bool) -> bytes:
    """The answer's bytes; with echo on they end in CR LF."""
    body = b"$OK" if accepted else b"$NK"
    if text:
        body += b" " + text
    if sequence_id:
        body += b" :%02X" % sequence_id
    return frame(body) + (b"\n" if echo else b"")


@dataclass(slots=True)
class Receiver:
    """The board's receive buffer and line collector. Bytes beyond 63 waiting ones are lost without a sign."""

    waiting: bytearray = field(default_factory=bytearray)
    _line: bytearray = field(default_factory=bytearray)

    def push(self, data: bytes) -> None:
        """Puts what fits into the buffer."""
        self.waiting += data[: RECEIVE_LIMIT - len(self.waiting)]

    def take(self) -> int | None:
        """The next waiting byte, or None."""
        return self.waiting.pop(0) if self.waiting else None

    def collect(self, byte: int) -> bytes | None:
        """A finished line from `$` up to its CR, or None. A line over 31 characters vanishes."""
        line = self._line
        if byte == 0x24:
            line[:] = b"$"
        elif line:
            if len(line) > LINE_LIMIT:
                line.clear()
            elif byte == 0x0D:
                finished = bytes(line)
                line.clear()
                return finished
            else:
                line.append(byte)
        return None
