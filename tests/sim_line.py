"""A host on the simulated board's serial line, in virtual time; for the tests of firmware_sim's board."""

from firmware_sim.board_openevse import Board
from firmware_sim.board_state import Eeprom, Load
from firmware_sim.rapi_wire import frame


class Line:
    """A host on the board's serial line, in virtual time. `frames` are (ms, text) of everything that came."""

    def __init__(self, eeprom: Eeprom | None = None, load: Load = Load.A, settle_ms: int = 4000) -> None:
        self.board = Board(eeprom)
        self.board.inputs.load = load
        self.frames: list[tuple[int, str]] = []
        self.relay: list[tuple[int, bool]] = []
        self._partial = b""
        self.board.power_on()
        self.run(settle_ms)

    @property
    def now_ms(self) -> int:
        return self.board.now_ms

    def run(self, ms: int) -> None:
        end_ms = self.now_ms + ms
        closed = self.board.state.relay_closed
        while self.now_ms < end_ms:
            self.board.advance(min(end_ms, self.now_ms + 1))
            self._collect()
            if self.board.state.relay_closed != closed:
                closed = not closed
                self.relay.append((self.now_ms, closed))

    def _collect(self) -> None:
        self._partial += self.board.take_output()
        while b"\r" in self._partial:
            one, self._partial = self._partial.split(b"\r", 1)
            self.frames.append((self.now_ms, one.decode("latin-1")))

    def send(self, line: str) -> None:
        self.board.receive(line.encode("latin-1") + b"\r")

    def say(self, line: str, ms: int = 70) -> list[str]:
        """Everything that came in the time after the line was sent."""
        first = len(self.frames)
        self.send(line)
        self.run(ms)
        return [text for _, text in self.frames[first:]]

    def ask(self, body: str, ms: int = 70) -> list[str]:
        """As `say`, with the checksum made here."""
        return self.say(frame(body.encode()).decode("latin-1").rstrip("\r"), ms)

    def plug(self, load: Load = Load.B) -> None:
        self.board.inputs.load = load
        self.run(600)

    def charge(self, amps: int = 16, drawn_ma: int = 10_000) -> None:
        """Charging for more than 2 s at the volatile limit."""
        self.ask(f"$SC {amps} V")
        self.board.inputs.load = Load.C
        self.run(2500)
        assert self.board.state.relay_closed
        self.board.inputs.current_ma = drawn_ma
        self.run(3000)

    def expect(self, text: str, after_ms: int, low_ms: int, high_ms: int) -> None:
        """The frame came once, within [low, high] after the moment."""
        found = [at for at, seen in self.frames if seen == text and at >= after_ms]
        assert found, f"{text} never came: {self.frames[-5:]}"
        assert low_ms - 30 <= found[0] - after_ms <= high_ms + 30

    def relay_change(self, closed: bool, after_ms: int, low_ms: int, high_ms: int) -> None:
        found = [at for at, state in self.relay if state is closed and at >= after_ms]
        assert found, "the relay did not move"
        assert low_ms - 30 <= found[0] - after_ms <= high_ms + 30
