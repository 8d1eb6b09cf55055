"""OpenEVSE board: one thread that asks, listens, keeps the board asleep unless asked, and posts what it reports.

Decides no policy: it makes the board match the station's last order. Writes no setting to the board's EEPROM: limits
are volatile (`$SC n V`); only the heartbeat is stored, and only when it differs. Carries P1-S1.6, P1-S2.1, P1-F7.

Rules from the board's observed behaviour: one command outstanding, with checksum and id; no reply in REPLY_S is a lost
reply, three in a row (6 s) a lost board; `$FE` always says OK, so every order is verified with `$GS`; the board powers
up enabled and may jump to its stored maximum by itself, so sleep and limit are restored whenever they drift.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from agent.core.events import BoardFailed, BoardFound, BoardIdentity, BoardReported, BoardStatus
from agent.drivers import rapi
from agent.drivers.serialport import PortError, SerialPort
from agent.ports import Clock, Post

BAUD: Final = 115_200
REPLY_S: Final = 2.0  # real time; the board's longest ordinary silence is 1.3 s
ATTEMPTS: Final = 3
MIN_A, MAX_A = 6, 80  # what `$SC` takes
OPENS_WITHIN_MS: Final = 4_000  # asleep the board opens within 3.1 s; later it is disabled
RETRY_MS: Final = 1_000  # until a command that did not work is sent again
FIRST_BACKOFF_MS, LAST_BACKOFF_MS = 500, 10_000
STOP_S: Final = 5.0
_RAISED: Final = "2"  # heartbeat trigger: missed and not acknowledged


class BoardFailedError(Exception):
    """The board is silent or refuses; the text says which and what to check."""


class _Interrupted(Exception):  # noqa: N818 - not an error: an order to open is in a hurry
    """The wait for a reply was given up."""


class BoardSettings(Protocol):
    """What the driver needs of `[board]`."""

    @property
    def poll_ms(self) -> int: ...
    @property
    def heartbeat_s(self) -> int: ...
    @property
    def fallback_ma(self) -> int: ...


class _Order(Enum):
    NONE = auto()  # the station has not decided: a closed contactor is left alone, an open one is kept open
    OPEN = auto()
    CLOSE = auto()


@dataclass(frozen=True, slots=True)
class _Wanted:
    order: _Order
    amps: int = 0  # only with CLOSE


@dataclass(frozen=True, slots=True)
class _Seen:
    state: int
    pilot: int
    vflags: int

    @property
    def is_hard_fault(self) -> bool:
        return bool(self.vflags & rapi.HARD_FAULT)


class _Link:
    """The port with the rule of one command outstanding. Used by the driver's thread only."""

    def __init__(self, port: SerialPort, heard: Callable[[rapi.Frame], None], clock: Clock, pace: float,
                 reply_s: float) -> None:
        self._port = port
        self._heard = heard
        self._clock = clock
        self._pace = pace
        self._reply_s = reply_s
        self._decoder = rapi.Decoder()
        self._waiting: deque[rapi.Frame] = deque()  # came in one read with a reply, but after it; at most one read long
        self._sequence = 0

    def ask(self, command: str, *params: str, give_up: Callable[[], bool] = lambda: False) -> rapi.Reply:
        """The reply to a command that may be repeated. Raises BoardFailedError, PortError, _Interrupted."""
        damaged = False
        for _ in range(ATTEMPTS):
            reply = self._once(command, params, give_up)
            if reply is not None and reply.sequence is not None:
                return reply
            damaged = damaged or reply is not None
        if damaged:
            raise BoardFailedError(f"{self._port.path}: the board reads ${command} as damaged: check the cable")
        raise BoardFailedError(f"{self._port.path}: the board is silent: check its power and the cable")

    def listen(self, wait_s: float) -> None:
        """Hands on what comes, for at most wait_s real seconds or until something came."""
        if not self._waiting:
            self._waiting.extend(self._decoder.feed(self._port.read(wait_s)))
        while self._waiting:
            frame = self._waiting.popleft()
            if not isinstance(frame, rapi.Reply):
                self._heard(frame)

    def _once(self, command: str, params: tuple[str, ...], give_up: Callable[[], bool]) -> rapi.Reply | None:
        """The reply; None when it is lost. What the board says after it stays for later: news is never overwritten."""
        self._sequence = self._sequence % 0xFF + 1
        self._port.write(rapi.encode(command, *params, sequence=self._sequence))
        deadline_s = self._elapsed_s() + self._reply_s
        while True:
            while self._waiting:
                frame = self._waiting.popleft()
                if not isinstance(frame, rapi.Reply):
                    self._heard(frame)
                elif frame.sequence == self._sequence or (frame.sequence is None and not frame.ok):
                    return frame  # another sequence is a late reply to a command given up
            left_s = deadline_s - self._elapsed_s()
            if left_s <= 0:
                return None
            if give_up():
                raise _Interrupted
            self._waiting.extend(self._decoder.feed(self._port.read(left_s)))

    def _elapsed_s(self) -> float:
        return self._clock().mono_ms * self._pace / 1000


class OpenEvseBoard:
    """BoardDriver for OpenEVSE 8.2.3. The order's fields are shared under a lock; the rest belongs to the thread."""

    def __init__(self, port_path: str, post: Post, clock: Clock, pace: float, config: BoardSettings, *,
                 reply_s: float = REPLY_S) -> None:
        """`pace` is real seconds for each world second."""
        self._path = port_path
        self._post = post
        self._clock = clock
        self._pace = pace
        self._config = config
        self._reply_s = reply_s
        self._thread = threading.Thread(target=self._run, name="board", daemon=True)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._wanted = _Wanted(_Order.NONE)
        self._open_first = False
        self._port: SerialPort | None = None

        self._seen = _Seen(rapi.STARTING, 0, 0)
        self._amps = 0
        self._asked_amps: int | None = None  # the limit last asked for; None: ask (again)
        self._granted_amps: int | None = None  # what the board made of it
        self._fault: str | None = None  # sleep, disable and restart of the self test cover a fault: remembered
        self._boot_fault: str | None = None
        self._needs_set_up = True
        self._is_known = False  # reports follow the identity
        self._opening_since_ms: int | None = None
        self._polled_at_ms = self._poll_due_ms = self._pulse_due_ms = 0
        self._last_step: tuple[str, ...] | None = None
        self._retry_due_ms = 0
        self._found_owed: BoardFound | None = None
        self._is_lost_told = False
        self._backoff_ms = FIRST_BACKOFF_MS

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Carries out a waiting order to open, then ends the thread; the board stays as it is."""
        self._stopping.set()
        self._nudge()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def ask_to_close(self, limit_ma: int) -> None:
        """Queues: offer at most limit_ma, whole amperes, rounded down. Raises ValueError below 6000 mA."""
        if limit_ma < MIN_A * 1000:
            raise ValueError(f"{limit_ma} mA cannot be offered: a pilot begins at {MIN_A * 1000} mA")
        with self._lock:
            self._wanted = _Wanted(_Order.CLOSE, min(limit_ma // 1000, MAX_A))
        self._nudge()

    def open_contactor(self) -> None:
        """Queues: withdraw the permission. Goes before everything else, also before the reply now waited for."""
        with self._lock:
            self._wanted = _Wanted(_Order.OPEN)
            self._open_first = True
        self._nudge()

    def _nudge(self) -> None:
        with self._lock:
            if self._port is not None:
                self._port.wake()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with SerialPort(self._path, BAUD) as port:
                    with self._lock:
                        self._port = port
                    self._serve(_Link(port, self._heard, self._clock, self._pace, self._reply_s))
            except (PortError, BoardFailedError) as error:
                self._is_lost_told = self._is_lost_told or self._posted(BoardFailed(str(error)))
            finally:
                with self._lock:
                    self._port = None
            self._stopping.wait(self._backoff_ms / 1000 * self._pace)
            self._backoff_ms = min(self._backoff_ms * 2, LAST_BACKOFF_MS)

    def _serve(self, link: _Link) -> None:
        self._is_known = False
        self._seen = _Seen(rapi.STARTING, 0, 0)
        self._found_owed = BoardFound(self._identity(link))
        self._is_known = True
        self._poll(link, lambda: False)  # look before anything is changed
        self._needs_set_up = True
        self._backoff_ms = FIRST_BACKOFF_MS
        while not self._stopping.is_set() or self._open_first:
            try:
                if self._open_first:
                    self._withdraw(link)
                if self._needs_set_up:
                    self._set_up(link)
                self._cycle(link)
            except _Interrupted:
                continue

    def _identity(self, link: _Link) -> BoardIdentity:
        version = link.ask("GV")
        flags = rapi.ecf_flags(link.ask("GE").words)
        capacity = rapi.capacity(link.ask("GC").words)
        if not version.ok or not version.words or flags is None or capacity is None:
            raise BoardFailedError(f"{self._path}: not an OpenEVSE board, or a kind not known: check the port's name")
        self._amps = capacity.now_a
        return BoardIdentity(version.words[0], rapi.protections_off(flags), capacity.stored_max_a * 1000)

    def _set_up(self, link: _Link) -> None:
        """After the board was found or has restarted: look first, then heartbeat, then the order once more."""
        self._asked_amps = self._last_step = self._opening_since_ms = None
        self._needs_set_up = False
        try:
            self._poll(link)
            self._read_amps(link)
            self._set_heartbeat(link)
        except _Interrupted:
            self._needs_set_up = True
            raise
        self._pulse_due_ms = self._clock().mono_ms

    def _cycle(self, link: _Link) -> None:
        now_ms = self._clock().mono_ms
        if now_ms >= self._poll_due_ms or now_ms >= self._opening_check_ms():
            self._poll(link)
        self._converge(link)
        if self._clock().mono_ms >= self._pulse_due_ms:
            self._pulse(link)
        due_ms = min(self._poll_due_ms, self._pulse_due_ms, self._opening_check_ms())
        if self._last_step is not None:
            due_ms = min(due_ms, self._retry_due_ms)
        wait_ms = due_ms - self._clock().mono_ms
        if wait_ms > 0 and not self._open_first and not self._needs_set_up:
            link.listen(wait_ms / 1000 * self._pace)

    def _opening_check_ms(self) -> int:
        """When to look whether the board has opened; the next poll's time when it need not be looked at."""
        if self._opening_since_ms is None or self._polled_at_ms >= self._opening_since_ms + OPENS_WITHIN_MS:
            return self._poll_due_ms
        return self._opening_since_ms + OPENS_WITHIN_MS

    def _withdraw(self, link: _Link) -> None:
        """Sleep at once, whatever was seen: a command given up may still be on its way to the board."""
        with self._lock:
            self._open_first = False
        if not self._seen.is_hard_fault:  # open already, and sleep would cover the fault
            link.ask("FS")
        self._done(("FS",))

    def _poll(self, link: _Link, give_up: Callable[[], bool] | None = None) -> None:
        asked_at_ms = self._clock().mono_ms
        status = rapi.status(link.ask("GS", give_up=give_up or self._is_hurried).words)
        if status is None:
            raise BoardFailedError(f"{self._path}: the board's status makes no sense: its firmware should be 8.2.3")
        self._polled_at_ms = asked_at_ms
        self._poll_due_ms = asked_at_ms + self._config.poll_ms
        self._note(_Seen(status.state, status.pilot, status.vflags))

    def _converge(self, link: _Link) -> None:
        """One command towards the order, verified by the next poll; repeated each RETRY_MS while it does not work."""
        step = self._next_step()
        if step is None:
            self._last_step = None
            return
        if step == self._last_step and self._clock().mono_ms < self._retry_due_ms:
            return
        if step[0] == "SC":
            self._limit(link, int(step[1]))
        else:
            link.ask(*step, give_up=self._is_hurried)
        self._done(step)

    def _done(self, step: tuple[str, ...]) -> None:
        now_ms = self._clock().mono_ms
        self._last_step = step
        self._retry_due_ms = now_ms + RETRY_MS
        self._poll_due_ms = now_ms

    def _next_step(self) -> tuple[str, ...] | None:
        """The command that brings the board nearer to the order; None: it matches, or only waiting helps."""
        wanted = self._wanted
        state = self._seen.state
        closed = rapi.is_closed(state, self._seen.vflags)
        if wanted.order is _Order.CLOSE:
            if self._asked_amps != wanted.amps or self._amps != self._granted_amps:
                return ("SC", str(wanted.amps), "V")
            return ("FE",) if rapi.is_asleep(state) else None
        if wanted.order is _Order.NONE and closed is not False:
            return None
        if state == rapi.SLEEPING:
            since_ms = self._opening_since_ms
            return ("FD",) if since_ms is not None and self._polled_at_ms >= since_ms + OPENS_WITHIN_MS else None
        if state == rapi.DISABLED:
            return None if closed else ("FS",)  # asleep, vehicles can be seen again
        if self._seen.is_hard_fault or state not in (0x01, 0x02, 0x03, 0x06, 0x07):
            return None
        return ("FS",)

    def _limit(self, link: _Link, amps: int) -> None:
        """Offers amps, volatile; the board may grant less."""
        reply = link.ask("SC", str(amps), "V", give_up=self._is_hurried)
        granted = int(reply.words[0]) if len(reply.words) == 1 and reply.words[0].isdecimal() else None
        if granted is None or granted > amps or (reply.ok and granted != amps):
            raise BoardFailedError(f"{self._path}: the board answers {' '.join(reply.words)!r} to a limit of {amps} A: "
                                   "check its firmware, 8.2.3 is known")
        self._asked_amps = amps
        self._granted_amps = self._amps = granted

    def _set_heartbeat(self, link: _Link) -> None:
        want = (str(self._config.heartbeat_s), str(max(self._config.fallback_ma // 1000, MIN_A)))
        if link.ask("GY").words[:2] != want and link.ask("SY", *want).words[:2] != want:
            raise BoardFailedError(f"{self._path}: the board does not take a heartbeat of {want[0]} s and {want[1]} A: "
                                   "check its firmware, 8.2.3 is known")

    def _pulse(self, link: _Link) -> None:
        """Heartbeat. A miss is acknowledged only once an order is there, for that makes the board offer its maximum."""
        pulse = link.ask("SY", give_up=self._is_hurried)
        self._pulse_due_ms = self._clock().mono_ms + self._config.heartbeat_s * 1000 // 3
        if pulse.words[-1:] == (_RAISED,):
            wanted = self._wanted
            if wanted.order is not _Order.NONE:
                link.ask("SY", "165")
                self._asked_amps = None
                if wanted.order is _Order.CLOSE:
                    self._limit(link, wanted.amps)
        elif pulse.words[:1] != (str(self._config.heartbeat_s),):
            self._set_heartbeat(link)
        self._read_amps(link)

    def _read_amps(self, link: _Link) -> None:
        capacity = rapi.capacity(link.ask("GC", give_up=self._is_hurried).words)
        if capacity is not None and capacity.now_a != self._amps:
            self._amps = capacity.now_a
            self._report()

    def _is_hurried(self) -> bool:
        return self._open_first or self._stopping.is_set()

    def _heard(self, frame: rapi.Frame) -> None:
        match frame:
            case rapi.Changed(state, pilot, amps, vflags):
                self._amps = amps
                self._note(_Seen(state, pilot, vflags))
            case rapi.Booted(postcode):
                self._needs_set_up = True
                self._fault = None
                self._boot_fault = rapi.fault(postcode)
                with self._lock:
                    if self._wanted.order is _Order.NONE:  # the board now is awake and was not asked
                        self._wanted = _Wanted(_Order.OPEN)

    def _note(self, seen: _Seen) -> None:
        self._seen = seen
        self._remember_fault(seen)
        is_opening = seen.state == rapi.SLEEPING and rapi.is_closed(seen.state, seen.vflags)
        if not is_opening or self._wanted.order is not _Order.OPEN:
            self._opening_since_ms = None
        elif self._opening_since_ms is None:
            self._opening_since_ms = self._clock().mono_ms
        self._report()

    def _remember_fault(self, seen: _Seen) -> None:
        fault = rapi.fault(seen.state)
        if rapi.is_boot_fault(seen.state, seen.vflags):
            self._boot_fault = fault
        elif fault is not None:
            self._fault = fault
        elif seen.is_hard_fault:
            self._fault = self._fault or "hard fault, cause not seen"
        elif seen.state in (0x01, 0x02, 0x03):
            self._fault = self._boot_fault = None
        elif seen.state == rapi.SLEEPING and not seen.vflags & rapi.CONNECTED:
            self._fault = None  # unplugging ends every fault but that of a failed self test

    def _report(self) -> None:
        if not self._is_known:
            return
        if self._found_owed is not None:
            if not self._posted(self._found_owed):
                return
            self._found_owed = None
            self._is_lost_told = False
        seen = self._seen
        self._posted(BoardReported(BoardStatus(
            pilot=rapi.pilot(seen.state, seen.pilot, seen.vflags),
            plugged=rapi.is_plugged(seen.state, seen.vflags),
            closed=rapi.is_closed(seen.state, seen.vflags),
            asleep=rapi.is_asleep(seen.state),
            fault=rapi.fault(seen.state) or self._boot_fault or self._fault,
            limit_ma=self._amps * 1000)))

    def _posted(self, event: BoardFound | BoardReported | BoardFailed) -> bool:
        """False when the inbox is full: the next poll reports again, a found or failed board is told again."""
        try:
            self._post(event)
        except queue.Full:
            return False
        return True
