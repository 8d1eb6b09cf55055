"""The power part of the station: who is plugged in, may the contactor close, at which limit, and what bars it.

The agent may ask to close and may always open; the board is the safety layer. In doubt: open (DESIGN section 2).
"""

from agent.core.clock import Now
from agent.core.effects import AskToClose, Effect, OpenContactor
from agent.core.events import BoardFound, BoardIdentity, BoardStatus, MeterRead
from agent.core.limits import Limit, Ruling, ruling
from agent.core.metering import record
from agent.core.pilot import MAY_CLOSE, Permission, Presence, Step, next_permission, next_presence, seen
from agent.core.session import Memory
from esci.reasons import Reason
from esci.records import Happening

OPENING_LIMIT_MS = 10_000  # OpenEVSE needs up to 3.1 s (openevse-observed section 10)
OPEN_SETTLED_MS = 15_000
OPEN_POWER_W = 200
REPEAT_MS = 5_000
NOT_HEARD = "not heard yet"
LATCHED = frozenset({Reason.CONTACTOR_WELDED, Reason.ENERGY_WHILE_OPEN})  # until a person has looked


class Power:
    """Presence, permission and limits. `bars` says what forbids power, each with its reason; empty is free."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.presence = Presence.UNKNOWN
        self.permission = Permission.OPEN
        self.status: BoardStatus | None = None
        self.identity: BoardIdentity | None = None
        self.bars: dict[Reason, str] = {Reason.BOARD_SILENT: NOT_HEARD, **memory.latched}
        self._asked_ma = 0
        self._open_since_ms: int | None = None
        self._opening_since_ms: int | None = None
        self._told_open_ms: int | None = None

    def on_found(self, event: BoardFound, now: Now) -> list[Effect]:
        """The board answers, perhaps after a start of its own that forgot what it was asked: ask again."""
        self.identity, self._asked_ma = event.identity, 0
        if event.identity.protections_off:
            return self._bar(Reason.BOARD_UNPROTECTED, ", ".join(event.identity.protections_off), now)
        self.bars.pop(Reason.BOARD_UNPROTECTED, None)
        return []

    def on_failed(self, cause: str, now: Now) -> list[Effect]:
        """The board is silent: nothing is known of the contactor, and nothing may be asked."""
        self.status, self._open_since_ms = None, None
        if self.bars.get(Reason.BOARD_SILENT) == NOT_HEARD:
            del self.bars[Reason.BOARD_SILENT]  # now it is known why, and that is recorded
        return self._bar(Reason.BOARD_SILENT, cause[:120], now)

    def on_reported(self, status: BoardStatus, now: Now) -> list[Effect]:
        """Take in a report. `presence` is up to date afterwards; the contactor follows in `watch`."""
        self.status = status
        self.presence = next_presence(self.presence, seen(status))
        if Reason.BOARD_SILENT in self.bars:
            del self.bars[Reason.BOARD_SILENT]
        if status.fault is not None:
            return self._bar(Reason.BOARD_FAULT, status.fault, now)
        self.bars.pop(Reason.BOARD_FAULT, None)
        return []

    def on_stop(self) -> None:
        """The agent is to stop: nobody would meter."""
        self.bars[Reason.RESTARTED] = "the agent stops"

    def on_power(self, event: MeterRead, now: Now) -> list[Effect]:
        """Cross-check the meter against the contactor: power while open is a weld or a bypass."""
        if Reason.ENERGY_WHILE_OPEN in self.bars or self._open_since_ms is None:
            return []
        power_w = event.reading.power_w
        if power_w is None or power_w < OPEN_POWER_W or event.read_at.mono_ms - self._open_since_ms < OPEN_SETTLED_MS:
            return []
        return self._bar(Reason.ENERGY_WHILE_OPEN, f"{power_w} W", now)

    def ruling(self, now: Now) -> Ruling:
        """Which limit rules at this moment."""
        return ruling([Limit("circuit", self._memory.settings.circuit_max_ma)], now.mono_ms)

    def decide(self, allowed: bool, now: Now) -> list[Effect]:
        """Ask, open or leave as it is. Called after each event; gives no order before the board was read."""
        if self.bars.get(Reason.BOARD_SILENT) == NOT_HEARD:
            return []
        if self.bars:
            return self._forbid(now)
        if self.permission is Permission.BARRED:
            return self._move(Step.CLEARED, now)
        rule = self.ruling(now)
        if not allowed or rule.limit_ma == 0:
            return self._move(Step.WITHDRAWN, now) if self.permission in MAY_CLOSE else []
        if self.permission is Permission.OPEN or (self.permission in MAY_CLOSE and rule.limit_ma != self._asked_ma):
            self.permission = next_permission(self.permission, Step.ALLOWED)
            self._asked_ma, self._open_since_ms = rule.limit_ma, None
            return [AskToClose(rule.limit_ma)]
        return []

    def watch(self, now: Now) -> list[Effect]:
        """Hold what the board says of the contactor against what was asked."""
        closed = None if self.status is None else self.status.closed
        if closed is None:
            return []
        effects = self._move(Step.SAW_CLOSED if closed else Step.SAW_OPEN, now)
        if not closed and self.permission not in MAY_CLOSE:
            self._opening_since_ms = None
            if self._open_since_ms is None:
                self._open_since_ms = now.mono_ms
        if closed and self.permission in (Permission.OPENING, Permission.BARRED):
            effects += self._still_closed(now)
        return effects

    def _still_closed(self, now: Now) -> list[Effect]:
        self._open_since_ms = None
        if self._opening_since_ms is None:
            self._opening_since_ms = now.mono_ms
        effects: list[Effect] = []
        if self._told_open_ms is None or now.mono_ms - self._told_open_ms >= REPEAT_MS:
            self._told_open_ms = now.mono_ms
            effects.append(OpenContactor(None))
        late = now.mono_ms - self._opening_since_ms >= OPENING_LIMIT_MS
        if late and Reason.CONTACTOR_WELDED not in self.bars:
            effects += self._bar(Reason.CONTACTOR_WELDED, "closed although told to open", now)
        return effects

    def _forbid(self, now: Now) -> list[Effect]:
        if self.permission is Permission.BARRED:
            return []
        return self._move(Step.FORBIDDEN, now)

    def _move(self, event: Step, now: Now) -> list[Effect]:
        before = self.permission
        self.permission = next_permission(before, event)
        if self.permission is before:
            return []
        if self.permission in (Permission.OPENING, Permission.BARRED):
            self._asked_ma, self._told_open_ms, self._opening_since_ms = 0, now.mono_ms, now.mono_ms
            return [OpenContactor(next(iter(self.bars), None))]
        return []

    def _bar(self, reason: Reason, detail: str, now: Now) -> list[Effect]:
        known = self.bars.get(reason)
        self.bars[reason] = detail
        if reason in LATCHED:
            self._memory.latched[reason] = detail
            self._memory.dirty = True
        if known is not None:
            return []
        session = self._memory.session
        body = Happening(code=reason, session=session.id if session else "", detail={"detail": detail})
        return [record("event", body, now)]
