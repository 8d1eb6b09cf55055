"""What the runtime asks of drivers and adapters. Each has two users: the real one and the tests' world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from agent.core.clock import Now
from agent.core.events import Event

if TYPE_CHECKING:  # drivers use these ports, and begin before the wire's models are loaded
    from agent.core.effects import Record
    from esci.pevlink import ToPev

Post = Callable[[Event], None]  # thread-safe; raises queue.Full when the inbox is full
Clock = Callable[[], Now]  # both clocks, world time


class MeterDriver(Protocol):
    """Reads the meter in its own thread and posts MeterRead and MeterFailed."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


class BoardDriver(Protocol):
    """Holds the pilot board in its own thread and posts BoardFound, BoardReported and BoardFailed.

    Orders never block: they are queued for the driver's thread, the newest of a kind wins, and opening goes first.
    """

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def ask_to_close(self, limit_ma: int) -> None: ...
    def open_contactor(self) -> None: ...


class Journal(Protocol):
    """The append-only stream that must not be lost. Every call is durable when it returns.

    Raises JournalUnavailableError (locked, full, read-only) when nothing was written.
    """

    @property
    def epoch(self) -> int: ...
    @property
    def last_seq(self) -> int: ...
    @property
    def acked_seq(self) -> int: ...
    def append(self, records: Sequence[Record], snapshot: str | None) -> int: ...
    def snapshot(self) -> str | None: ...
    def batch(self, first_seq: int, count: int) -> tuple[str, list[str]]: ...
    def forget(self, seq: int) -> None: ...
    def keep_tariff(self, code: str, version: str, document: str) -> None: ...
    def tariffs(self) -> list[str]: ...


class Uplink(Protocol):
    """The broker connection; posts UplinkOpened, UplinkLost and Received."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None: ...


class PevPort(Protocol):
    """The PEV link's server; posts PevIdentified, PevAcknowledged and PevGone."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def tell(self, message: ToPev) -> None: ...


