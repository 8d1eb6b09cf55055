"""Joins the station with its devices and the world: the only place that reads clocks and does effects, in one thread.

Drivers and adapters post events from their threads; the loop takes one, lets the station decide, and does what it says,
records first. Must not decide anything. The meter was started before (`agent.begin`), so that readings begin at once.
"""

import logging
import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from agent.adapters import logs
from agent.adapters.journal import Journal
from agent.adapters.keys import KeyFolder, load_public, load_signer
from agent.adapters.mqtt import MqttUplink
from agent.adapters.pevlink import PevLinkServer
from agent.adapters.sdnotify import SystemdNotifier
from agent.adapters.status import StatusServer
from agent.begin import Begun
from agent.clocks import Clocks
from agent.config import AgentConfig, load
from agent.core.clock import Now
from agent.core.effects import (
    AskToClose,
    Effect,
    Forget,
    KeepTariff,
    OpenContactor,
    Record,
    Remember,
    Send,
    SendBatch,
    ShowState,
    TellPev,
)
from agent.core.events import (
    BoardFailed,
    BoardReported,
    BoardStatus,
    Event,
    MeterFailed,
    MeterRead,
    PevIdentified,
    Received,
    RecordsWritten,
    StopAsked,
    UplinkLost,
    Woke,
)
from agent.core.pilot import Permission
from agent.core.session import Settings, Snapshot
from agent.core.station import Start, Station
from agent.drivers.board_openevse import OpenEvseBoard
from agent.drivers.meter import open_poller
from agent.ports import BoardDriver, PevPort, Uplink
from esci import topics
from esci.messages import BATCH_RECORDS, Message
from esci.records import batch_text
from esci.seal import Signer, canonical, seal, seal_canonical
from esci.tariff import TariffDocument
from esci.units import format_utc

IDLE_S = 1.0  # longest sleep of the loop, real time: the watchdog is fed from it
STOP_S = 5.0
FORGET_S = 0.1
VOLTS = 240
log = logging.getLogger("agent")


@dataclass(slots=True)
class Hands:
    """Everything through which effects are done. The uplink may come later than the first reading."""

    journal: Journal
    signer: Signer
    board: BoardDriver
    uplink: Uplink
    pevlink: PevPort
    device: str
    now: Callable[[], Now]
    latest_state: str = "{}"
    written_seq: int | None = None
    forgettable_seq: int = 0
    forget_at_s: float | None = None

    def forget_if_due(self) -> None:
        """Tell the journal what it may forget, once for many acknowledgements: a lost one only means a repeat."""
        if self.forget_at_s is not None and time.monotonic() >= self.forget_at_s:
            self.forget_now()

    def forget_now(self) -> None:
        """As `forget_if_due`, at once."""
        if self.forget_at_s is not None:
            self.forget_at_s = None
            self.journal.forget(self.forgettable_seq)
            log.info("acknowledged", extra={"seq": self.forgettable_seq})

    def do(self, effects: Sequence[Effect]) -> None:
        """Do effects in order; records and the snapshot that follow each other in one transaction."""
        records: list[Record] = []
        for effect in effects:
            if isinstance(effect, Record):
                records.append(effect)
                continue
            if isinstance(effect, Remember):
                self._write(records, effect.snapshot)
                records = []
                continue
            assert not records, "the station puts its records first, with a snapshot after them"
            self._do(effect)

    def _write(self, records: list[Record], snapshot: str) -> None:
        """What cannot be written must not be done: without its journal the agent ends, and opens on its way out."""
        self.journal.append(records, snapshot)
        if records:
            self.written_seq = self.journal.last_seq
        for item in records:
            log.info("recorded", extra={"record": item.kind, "body": item.body.model_dump_json()})

    def _do(self, effect: Effect) -> None:
        match effect:
            case AskToClose(limit_ma=limit_ma):
                log.info("asked to close", extra={"limit_ma": limit_ma})
                self.board.ask_to_close(limit_ma)
            case OpenContactor(reason=reason):
                log.info("opened", extra={"reason": reason})
                self.board.open_contactor()
            case Send(message=message):
                log.info("sent", extra={"kind": message.kind, "id": message.id})
                self.uplink.publish(topics.up(self.device, message.kind),
                                    seal(message.model_dump(mode="json"), self.signer))
            case SendBatch(first_seq=first_seq, count=count):
                self._send_batch(first_seq, count)
            case Forget(seq=seq):
                self.forgettable_seq = seq
                if self.forget_at_s is None:
                    self.forget_at_s = time.monotonic() + FORGET_S
                if seq == self.journal.last_seq:
                    self.forget_now()
            case TellPev(message=to_pev):
                self.pevlink.tell(to_pev)
            case KeepTariff(code=code, version=tariff_version, document=document):
                self.journal.keep_tariff(code, tariff_version, document)
            case ShowState(state=state, publish=publish):
                self.latest_state = state.model_dump_json()
                if publish:
                    picture = canonical(state.model_dump(mode="json"))
                    self.uplink.publish(topics.state(self.device), picture, retain=True)
            case _:
                raise AssertionError(f"no hand for {effect!r}")

    def _send_batch(self, first_seq: int, count: int) -> None:
        """Publish what the journal gives, which may be less than count when records are large."""
        while count > 0:
            prev, items = self.journal.batch(first_seq, min(count, BATCH_RECORDS))
            head = Message(device=self.device, id=secrets.token_hex(16), at=format_utc(self.now().utc))
            body = batch_text(head, self.journal.epoch, first_seq, prev, items)
            self.uplink.publish(topics.up(self.device, "records"), seal_canonical(body, self.signer))
            first_seq, count = first_seq + len(items), count - len(items)


class EventLog:
    """One line for each event that a person may ask about; readings and unchanged reports are left out."""

    def __init__(self) -> None:
        self._status: BoardStatus | None = None

    def tell(self, event: Event) -> None:
        """Write the line, if the event has one."""
        match event:
            case MeterRead() | Woke() | RecordsWritten():
                return
            case BoardReported(status=status):
                if status != self._status:
                    self._status = status
                    log.info("board changed", extra={"pilot": status.pilot.value, "plugged": status.plugged,
                                                     "closed": status.closed, "limit_ma": status.limit_ma,
                                                     "fault": status.fault})
            case Received(message=message):
                log.info("received", extra={"kind": message.kind, "id": message.id})
            case PevIdentified(pev=pev, resumed=resumed):
                log.info("vehicle identified", extra={"pev": pev, "resumed": resumed})
            case BoardFailed(cause=cause) | MeterFailed(cause=cause) | UplinkLost(cause=cause):
                log.warning("lost", extra={"what": type(event).__name__, "cause": cause})
            case _:
                log.info("happened", extra={"what": type(event).__name__})


class Loop:
    """The only thread that touches the station."""

    def __init__(self, station: Station, hands: Hands, inbox: "queue.Queue[Event]", clock: Callable[[], Now],
                 pace: float) -> None:
        self._station, self._hands, self._inbox, self._clock, self._pace = station, hands, inbox, clock, pace
        self._stop_at_s: float | None = None
        self._is_stopping = False
        self._log = EventLog()

    def stop(self) -> None:
        """Ask for the end; safe in a signal handler, heard within IDLE_S."""
        self._is_stopping = True

    def run(self, alive: Callable[[], None]) -> None:
        """Handle events until a stop was asked for and the contactor is seen open, or STOP_S have passed.

        `alive` is called after each event: the watchdog is fed from the loop and from nowhere else.
        """
        while not self._is_over():
            self.run_once()
            alive()

    def run_once(self) -> None:
        """Wait for an event or for the wake time; let the station handle it; do what it says."""
        wake_ms = self._station.next_wake_ms()
        wait_s = IDLE_S if self._hands.forget_at_s is None else FORGET_S
        if wake_ms is not None:
            wait_s = min(wait_s, max(0.0, (wake_ms - self._clock().mono_ms) / 1000 * self._pace))
        event: Event
        if self._is_stopping and self._stop_at_s is None:
            event, self._stop_at_s = StopAsked(), time.monotonic() + STOP_S
        else:
            try:
                event = self._inbox.get(timeout=wait_s)
            except queue.Empty:
                event = Woke()
        self._hands.forget_if_due()
        now = self._clock()
        self._log.tell(event)
        self._hands.do(self._station.handle(event, now))
        while self._hands.written_seq is not None:
            self._hands.written_seq = None
            written = RecordsWritten(self._hands.journal.epoch, self._hands.journal.last_seq)
            self._hands.do(self._station.handle(written, now))
        if isinstance(event, Woke):
            again_ms = self._station.next_wake_ms()
            assert again_ms is None or wake_ms is None or now.mono_ms < wake_ms or again_ms > now.mono_ms, (
                f"woken at {now.mono_ms}, wants {again_ms}")

    def _is_over(self) -> bool:
        if self._stop_at_s is None:
            return False
        power = self._station.power
        barred = power.permission is Permission.BARRED
        seen_open = barred and power.status is not None and power.status.closed is False
        return seen_open or time.monotonic() >= self._stop_at_s


def run(path: Path, begun: Begun) -> None:
    """Run the agent until SIGTERM or SIGINT. Raises the typed errors of config, drivers and adapters."""
    logs.setup()
    try:
        config = load(path)
        if begun.meter is None:
            begun.meter = open_poller(config.meter, begun.inbox.put_nowait, begun.clocks.now, begun.clocks.pace)
            begun.meter.start()
        _run_with_journal(config, begun)
    finally:
        if begun.meter is not None:
            begun.meter.stop()


def _run_with_journal(config: AgentConfig, begun: Begun) -> None:
    journal = Journal(Path(config.state_dir) / "journal.db", lambda: secrets.randbits(48))
    try:
        station = _station(config, journal, begun.clocks.now())
        hands = _hands(config, journal, begun.inbox, begun.clocks)
        _serve(config, station, hands, begun)
    finally:
        journal.close()


def _serve(config: AgentConfig, station: Station, hands: Hands, begun: Begun) -> None:
    status = StatusServer(Path(config.state_dir) / "status.sock", lambda: hands.latest_state)
    systemd = SystemdNotifier()
    loop = Loop(station, hands, begun.inbox, begun.clocks.now, begun.clocks.pace)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    crashes: list[BaseException] = []

    def on_crash(crash: threading.ExceptHookArgs) -> None:
        """A bug in any thread ends the agent: half an agent is worse than none, and systemd starts a whole one."""
        if crash.exc_value is not None:
            crashes.append(crash.exc_value)
        loop.stop()

    threading.excepthook = on_crash
    links = (status, hands.pevlink, hands.uplink)
    started = 0
    try:
        hands.board.start()
        for link in links:
            link.start()
            started += 1
        log.info("agent ready", extra={"device": config.device, "pid": os.getpid(), "epoch": hands.journal.epoch})
        systemd.ready()
        loop.run(systemd.alive)
    finally:  # whatever happened, the opening comes first and waits for nothing that may fail
        systemd.stopping()
        hands.board.open_contactor()
        hands.board.stop()
        for link in reversed(links[:started]):
            link.stop()
        log.info("agent stopped")
    if crashes:
        raise crashes[0]


def _hands(config: AgentConfig, journal: Journal, inbox: "queue.Queue[Event]", clocks: Clocks) -> Hands:
    folder = KeyFolder.of(config.state_dir)
    post, device = inbox.put_nowait, config.device
    uplink = MqttUplink(config.uplink, device, folder.tls, load_public(folder.utility_seal), post,
                        lambda: clocks.now().utc)
    pevlink = PevLinkServer(config.pevlink, device, config.premises, folder.tls, folder.pev_ca, post)
    board = OpenEvseBoard(config.board.port, post, clocks.now, clocks.pace, config.board)
    return Hands(journal, load_signer(folder.tls.key), board, uplink, pevlink, device, clocks.now)


def _station(config: AgentConfig, journal: Journal, now: Now) -> Station:
    station = config.station
    phases = station.phases
    settings = Settings(
        device=config.device, premises=config.premises, software=version("plugbind"),
        circuit_max_ma=station.circuit_max_ma, power_max_w=station.circuit_max_ma * phases * VOLTS * 5 // 4_000,
        tolerance_s=max(10, 3 * config.meter.poll_ms // 1000), retry_s=config.uplink.retry_s)
    text = journal.snapshot()
    start = Start(settings, station.interval_s, station.binding_wait_s, station.charge_without_binding, journal.epoch,
                  journal.last_seq, journal.acked_seq,
                  [TariffDocument.model_validate_json(document) for document in journal.tariffs()],
                  None if text is None else Snapshot.model_validate_json(text))
    return Station(start, lambda: secrets.token_hex(16), now)
