"""The meter's part of the station: readings become interval records, with the session and tariff they belong to.

Unknown is never zero: a silent meter is said to be silent, and the energy it counted meanwhile is one interval with
flag `gap` when it is back (P1-B6, S3.1, F20, F24, N1).
"""

from datetime import datetime, timedelta

from agent.core.binding import State
from agent.core.clock import STEP_S, Now
from agent.core.effects import Record
from agent.core.events import MeterRead
from agent.core.intervals import IntervalClosed, IntervalRecorder, MeterJumped, Outcome, Reading
from agent.core.session import KeptInterval, Memory
from esci.messages import Wire
from esci.reasons import Reason
from esci.records import Happening, Interval
from esci.tariff import next_change
from esci.units import format_utc, parse_utc

UNKNOWN_AGE_MS = 86_400_000  # so much may have passed that no rise of the register is called a jump


def record(kind: str, body: Wire, now: Now) -> Record:
    """A record of this moment, with its clock quality."""
    return Record(kind, body, format_utc(now.utc), now.quality)


def on_clock_of(now: Now, read_at: Now) -> Now:
    """The moment read_at as the present clock tells it: utc may have been set while the reading was under way."""
    utc = now.utc - timedelta(milliseconds=now.mono_ms - read_at.mono_ms)
    if abs((utc - read_at.utc).total_seconds()) <= STEP_S:
        return read_at
    return Now(read_at.mono_ms, utc.replace(microsecond=0), now.synced)


class Metering:
    """Holds the recorder and the meter's health. Shares `Memory` with the rest of the station."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        settings = memory.settings
        self.recorder = IntervalRecorder(memory.interval_s, settings.tolerance_s, settings.power_max_w, self._cut)
        self.silent: str | None = "not read yet"
        self._silence_recorded = False
        self.last: MeterRead | None = None
        self.energy_while_open = False

    def _cut(self, moment: datetime) -> datetime | None:
        ref = self._memory.ref_in_force()
        tariff = None if ref is None else self._memory.tariff(ref)
        return None if tariff is None else next_change(tariff, moment)

    @property
    def register_wh(self) -> int | None:
        """The register, when the meter speaks."""
        return None if self.silent is not None or self.last is None else self.last.reading.import_wh

    def on_read(self, event: MeterRead, now: Now) -> list[Record]:
        """The records that a reading leads to."""
        records: list[Record] = []
        if self._silence_recorded:
            records.append(self._happened(Reason.METER_SILENT, {"cause": None}, now))
        self.silent, self.last, self._silence_recorded = None, event, False
        if self._memory.session is not None and not self._memory.session.metered:
            self._memory.session.metered = True
            self._memory.dirty = True
        first = self.recorder.last is None
        read_at = on_clock_of(now, event.read_at)
        records += self._written(self.recorder.on_reading(event.reading.import_wh, read_at), now)
        self._memory.dirty |= first
        return records

    def on_failed(self, cause: str, now: Now) -> list[Record]:
        """The meter fell silent: recorded once; its return is recorded as the same code with cause None."""
        self.silent = cause
        if self._silence_recorded:
            return []
        self._silence_recorded = True
        return [self._happened(Reason.METER_SILENT, {"cause": cause[:120]}, now)]

    def edge(self, now: Now) -> list[Record]:
        """Close the running interval at the last reading, under the session and tariff that held until now."""
        return self._written(self.recorder.cut_now(), now)

    def on_clock_step(self, step_s: int, now: Now) -> list[Record]:
        """utc was set by step_s seconds."""
        closed = self._written(self.recorder.on_clock_step(step_s, now.quality == "synced"), now)
        return [*closed, self._happened(Reason.CLOCK_STEPPED, {"seconds": step_s}, now)]

    def kept(self) -> KeptInterval | None:
        """The running interval, for the snapshot."""
        start, boundary = self.recorder.start, self.recorder.boundary
        if start is None or boundary is None:
            return None
        return KeptInterval(utc=format_utc(start.utc), register_wh=start.register_wh, boundary=format_utc(boundary),
                            flags=sorted(self.recorder.flags))

    def restore(self, kept: KeptInterval | None, now: Now) -> None:
        """Go on from the last written boundary. Energy since then is not lost: the register has it.

        Its age is taken from utc. A beginning in the future means that the clock was set back: nobody knows how long
        ago the register was read, so the interval begins anew and its energy waits for a person.
        """
        self.recorder.interval_s = self._memory.interval_s
        if kept is None:
            return
        begun = parse_utc(kept.utc)
        age_ms = round((now.utc - begun).total_seconds() * 1000)
        if begun > now.utc:
            anew = Reading(now.utc, kept.register_wh, now.mono_ms - UNKNOWN_AGE_MS)
            self.recorder.resume(anew, None, {*kept.flags, "clock-stepped", "gap"})
            return
        start = Reading(begun, kept.register_wh, now.mono_ms - age_ms)
        self.recorder.resume(start, parse_utc(kept.boundary), set(kept.flags))

    def _written(self, outcomes: list[Outcome], now: Now) -> list[Record]:
        records: list[Record] = []
        for outcome in outcomes:
            self._memory.dirty = True
            if isinstance(outcome, IntervalClosed):
                records.append(record("interval", self._interval(outcome), now))
            else:
                code = Reason.METER_JUMP if isinstance(outcome, MeterJumped) else Reason.METER_RESET
                detail: dict[str, str | int | None] = {"before_wh": outcome.before_wh, "after_wh": outcome.after_wh}
                records.append(self._happened(code, detail, now))
        return records

    def _interval(self, closed: IntervalClosed) -> Interval:
        memory = self._memory
        session, binding = memory.session, memory.binding
        bound = binding.bound if session is not None and binding.state is State.BOUND else None
        unbound = session is not None and binding.state is State.UNBOUND
        flags = set(closed.flags) | ({"energy-while-open"} if self.energy_while_open else set())
        interval = Interval.model_validate({
            "session": session.id if session else "", "binding": bound.binding if bound else "",
            "pev": binding.pev if session else "", "premises": memory.settings.premises,
            "tariff": memory.ref_in_force(), "rate_reason": binding.reason if unbound else None,
            "start": format_utc(closed.start), "end": format_utc(closed.end),
            "register_start_wh": closed.register_start_wh, "register_end_wh": closed.register_end_wh,
            "energy_wh": closed.register_end_wh - closed.register_start_wh, "flags": sorted(flags)})
        if session is not None:
            session.receipt.add(interval, memory.tariff)
        return interval

    def _happened(self, code: Reason, detail: dict[str, str | int | None], now: Now) -> Record:
        session = self._memory.session
        return record("event", Happening(code=code, session=session.id if session else "", detail=detail), now)
