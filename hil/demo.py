"""The main job as a story of about 90 seconds: enrol, plug in, bind, meter, lose the broker, sync, bill.

Broker, utility, simulator and agent are separate processes; the story only plugs, unplugs, kills, waits for what they
say, and asks them at the end. Each step names the requirement that it shows. A step that does not come fails the run.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hil.plant import Plant
from hil.processes import BenchError, Crew, Ear, Heard
from hil.show import Show

BEGIN_UTC = "2025-07-16T03:36:00Z"  # 20:36 on a summer Tuesday in Los Angeles; the evening peak ends at 21:00
PRICE_CHANGE_UTC = "2025-07-16T04:00:00Z"
STEP_S = 20.0


def dollars(cents: int) -> str:
    """`12.34`."""
    return f"{cents // 100}.{cents % 100:02d}"


@dataclass(frozen=True, slots=True)
class Effort:
    """What a binding took."""

    messages: int
    milliseconds: int


@dataclass(slots=True)
class Story:
    """The demonstration. `run` returns True only when every figure of the final statement holds."""

    plant: Plant
    crew: Crew
    ear: Ear
    show: Show
    scale: int
    seed: int

    def run(self) -> bool:
        """Tell it from beginning to end. Raises BenchError when a step does not happen."""
        self._found()
        self._begin()
        first = self._first_session()
        again = self._second_session()
        self.show.step("F28", f"re-binding took {again.messages} messages and {again.milliseconds} ms; "
                              f"the first binding {first.messages} and {first.milliseconds} ms")
        self._third_session()
        self._fourth_session()
        shorter = again.messages * 2 <= first.messages and again.milliseconds < first.milliseconds
        return self._final_statement(shorter, f"re-binding {again.messages} of {first.messages} messages, "
                                              f"{again.milliseconds} of {first.milliseconds} ms")

    # ---- chapters

    def _found(self) -> None:
        show, plant = self.show, self.plant
        show.chapter("The utility is founded, a customer enrols, a charger is commissioned")
        plant.found_utility()
        show.step("", "utility: keys, certificates, database, tariffs")
        plant.enrol()
        show.step("S1.1-4", "enrolled: account A-1001, premises P-1001, vehicle on program PRIME (SCE TOU-D-PRIME)")
        since = self.ear.position
        plant.start_broker()
        plant.start_api()
        self._see("the broker listens", "broker", "broker ready", since)
        self._see("the API listens", "api", "api ready", since)
        show.step("", f"broker on port {plant.ports.broker}, API on port {plant.ports.api}: own processes, mutual TLS")
        plant.commission()
        show.step("S1.5", f"commissioned: {plant.device} made its key, the utility certified it")

    def _begin(self) -> None:
        since = self.ear.position
        self.plant.start_world(self.scale, BEGIN_UTC, self.seed)
        self._see("the agent is ready", "agent", "agent ready", since)
        self._see("the agent found the board", "agent", "happened", since, what="BoardFound")
        self._see("the utility's parameters", "agent", "received", since, kind="params")
        self._until("the meter is read", lambda: self.plant.status().get("register_wh") is not None)
        self.show.step("", f"world time runs {self.scale}x from {BEGIN_UTC}, 20:36 in Los Angeles; new price at 21:00")

    def _first_session(self) -> Effort:
        show, ear, plant = self.show, self.ear, self.plant
        show.chapter("First plug-in: set-up and binding (P1 scenario 1)")
        since = ear.position
        plant.do("plug", vehicle="leaf")
        plugged = self._see("On-Plug", "agent", "board changed", since, plugged="True")
        show.step("S1.6", "On-Plug: the board reports the vehicle, the pilot is not yet offered")
        self._see("the TLS session", "sim", "pev link secured", since, vehicle="leaf")
        show.step("S1.7", "vehicle and charger opened a mutual TLS 1.3 session")
        self._see("the PEV I.D.", "agent", "vehicle identified", since, resumed="False")
        show.step("S1.8", "the vehicle sent its PEV I.D.; it fits its certificate")
        self._see("the request", "agent", "sent", since, kind="bind.request")
        show.step("S1.9", "charger asked the utility: PEV I.D. and premises I.D., sealed by the device key")
        self._see("the validation", "gateway", "handled", since, kind="bind.request")
        show.step("S1.10", "utility proved seal, PEV and premises")
        self._see("the confirmation", "agent", "received", since, kind="bind.confirm")
        show.step("S1.11", "utility confirmed the binding with program, tariff version and ticket")
        self._see("the vehicle's parameters", "sim", "pev link received", since, kind="confirm")
        show.step("S1.12", "the vehicle stored its parameters")
        bound = self._see("the binding", "agent", "recorded", since, record="session.bound")
        self._see("the vehicle's acknowledgement", "agent", "sent", since, kind="bind.ack")
        show.step("S1.13", "the vehicle acknowledged; bound")
        self._see("the detection message", "agent", "received", since, kind="eumd.detect")
        show.step("S1.14", "utility sent the detection message to the meter role: rate program, interval 5 min")
        self._see("the meter's acknowledgement", "agent", "sent", since, kind="eumd.ack")
        show.step("S1.15", "parameters stored by the EUMD")
        done = self._see("the utility hears it", "gateway", "handled", since, kind="eumd.ack")
        show.step("S1.16", "EUMD acknowledged; the utility shows it as set up")
        effort = self._effort(since, plugged, bound, done)
        self._see("the contactor", "agent", "board changed", since, closed="True")
        show.step("S2.7", "contactor closed, 32 A offered")
        self._lose_broker()
        self._until("21:11 world time", lambda: self._world_time() >= "2025-07-16T04:11:00Z")
        self._unplug("leaf")
        return effort

    def _lose_broker(self) -> None:
        show, plant = self.show, self.plant
        self._until("20:47 world time", lambda: self._world_time() >= "2025-07-16T03:47:00Z")
        show.chapter("The broker is killed while the vehicle charges")
        before = self._waiting()
        since = self.ear.position
        self.crew.kill("broker")
        self._see("the agent notices", "agent", "lost", since, what="UplinkLost")
        show.step("", f"kill -9 of the broker; {before} records were waiting")
        self._until("two more records", lambda: self._waiting() >= before + 2)
        grown = self._waiting()
        show.step("B4", f"charging and metering go on ({self._power_flows()}); the journal holds {grown} records")
        self._until("21:00, the price change", lambda: self._world_time() >= "2025-07-16T04:02:00Z")
        grown = self._waiting()
        show.step("", f"21:00: the price changes while the utility is away; {grown} records wait")
        since = self.ear.position
        plant.start_broker()
        self._see("the broker is back", "broker", "broker ready", since)
        self._see("the acknowledgement", "agent", "acknowledged", since)
        self._until("the journal is drained", lambda: self._waiting() == 0)
        show.step("S3.1", f"broker back: {grown} records delivered and acknowledged, the journal is drained")

    def _second_session(self) -> Effort:
        show, ear = self.show, self.ear
        show.chapter("Second plug-in: re-binding (P1 scenario 2)")
        since = ear.position
        self.plant.do("plug", vehicle="leaf")
        plugged = self._see("On-Plug", "agent", "board changed", since, plugged="True")
        self._see("the PEV I.D.", "agent", "vehicle identified", since, resumed="True")
        show.step("S2.1-3", "On-Plug; TLS session resumed, discovery skipped; PEV I.D. with its ticket")
        bound = self._see("the binding", "agent", "recorded", since, record="session.bound")
        show.step("S2.4-6", "utility validated and confirmed the binding")
        done = self._see("the vehicle hears it", "sim", "pev link received", since, kind="confirm")
        effort = self._effort(since, plugged, bound, done)
        self._see("the contactor", "agent", "board changed", since, closed="True")
        show.step("S2.7", f"charging on the enrolled program: {self._power_flows()}")
        self._charge_s(330)
        self._unplug("leaf")
        return effort

    def _third_session(self) -> None:
        self.show.chapter("Third plug-in: a vehicle that nobody enrolled")
        since = self.ear.position
        self.plant.do("plug", vehicle="stranger")
        self._see("the refusal", "agent", "received", since, kind="bind.reject")
        self._see("the contactor", "agent", "board changed", since, closed="True")
        reason = self.plant.status().get("reason")
        self.show.step("B4", f"refused: {reason}; charging goes on at the premises' default rate: "
                              f"{self._power_flows()}")
        self._charge_s(330)
        self._unplug("stranger")

    def _fourth_session(self) -> None:
        show = self.show
        show.chapter("Fourth plug-in: the meter is unplugged")
        since = self.ear.position
        self.plant.do("meter_unplug")
        self._see("the agent notices", "agent", "lost", since, what="MeterFailed")
        self.plant.do("plug", vehicle="leaf")
        self._see("the contactor", "agent", "board changed", since, closed="True")
        status = self.plant.status()
        if status.get("power_w") is not None or status.get("register_wh") is not None:
            raise BenchError(f"the meter is silent, and yet the agent shows {status.get('power_w')} W")
        show.step("B6", "charging; power and register are shown as unavailable, not as zero")
        self._charge_s(180)
        self._unplug("leaf")

    def _charge_s(self, world_s: int) -> None:
        begun_s = self._world_s()
        self._until("some charging", lambda: self._world_s() >= begun_s + world_s)

    def _unplug(self, vehicle: str) -> None:
        since = self.ear.position
        self.plant.do("unplug", vehicle=vehicle)
        self._see("the session's end", "agent", "recorded", since, record="session.ended")
        self.show.step("", "unplugged; the charger's receipt:")
        self.show.quote(self.plant.agent("receipt"))

    # ---- the end

    def _final_statement(self, shorter: bool, efforts: str) -> bool:
        show, plant = self.show, self.plant
        show.chapter("Final statement")
        self._until("everything is acknowledged", lambda: self._waiting() == 0)
        bill = json.loads(plant.cloud("bill", "--premises", "P-1001", "--json"))
        whole = json.loads(plant.cloud("reconcile", "--json"))
        sessions = json.loads(plant.agent("sessions", "--json"))
        receipts = {one["session"]: json.loads(plant.agent("receipt", one["session"], "--json")) for one in sessions}
        world = plant.world()
        checks = [*self._check_bill(bill, receipts), (shorter, efforts), *self._check_energy(bill, whole, world)]
        show.quote(plant.cloud("bill", "--premises", "P-1001"))
        for ok, text in checks:
            show.verdict(ok, text)
        return all(ok for ok, _ in checks)

    def _check_bill(self, bill: Mapping[str, Any], receipts: Mapping[str, Any]) -> list[tuple[bool, str]]:
        billed = {one["session"]: one for one in bill["sessions"] if one["session"]}
        metered = [name for name in receipts if not receipts[name]["unmetered"]]
        checks = [(len(receipts) == 4 and set(receipts) == set(billed), f"sessions: {len(receipts)} on the charger, "
                                                                        f"{len(billed)} on the bill")]
        for name in metered:
            shown, posted = receipts[name]["total_cents"], billed[name]["cents"]
            checks.append((shown == posted == billed[name]["receipt_cents"] and shown > 0,
                           f"session {name[:8]}: receipt {dollars(shown)} = bill {dollars(posted)} USD"))
        first = receipts[next(iter(receipts))]
        periods = {line["period"] for line in first["lines"]}
        checks.append((len(periods) == 2, f"first session has two prices: {', '.join(sorted(map(str, periods)))}"))
        cut = any(line["end"] == PRICE_CHANGE_UTC for line in first["lines"])
        checks.append((cut, "an interval ends exactly at the price change"))
        third, fourth = list(receipts.values())[2:4]
        why = third["rate_reason"]
        checks.append((why == "unknown-pev", f"third session: default rate, reason {why}"))
        unknown = fourth["energy_wh"] is None and billed[fourth["session"]]["cents"] is None
        checks.append((bool(fourth["unmetered"]) and unknown, "fourth session: unmetered, no energy and no amount"))
        return checks

    def _check_energy(self, bill: Mapping[str, Any], whole: Mapping[str, Any],
                      world: Mapping[str, Any]) -> list[tuple[bool, str]]:
        delta_wh = world["register_wh"] - world["register_start_wh"]
        (device,) = whole["devices"]
        intervals = sum(len(one["lines"]) for one in bill["sessions"])
        return [
            (delta_wh == device["metered_wh"] == device["posted_wh"] and device["exception_wh"] == 0 and delta_wh > 0,
             f"{intervals} intervals: register delta {delta_wh} Wh = recorded {device['metered_wh']} Wh = "
             f"posted {device['posted_wh']} Wh, in doubt {device['exception_wh']} Wh"),
            (bool(whole["whole"]) and whole["debit_cents"] == whole["credit_cents"],
             f"ledger: debits {dollars(whole['debit_cents'])} = credits {dollars(whole['credit_cents'])} USD"),
            (world["unmetered_wh"] > 0,
             f"{world['unmetered_wh']} Wh flowed past the unplugged meter: nobody is billed for them"),
        ]

    # ---- looking

    def _see(self, what: str, source: str, event: str, since: int, /, **fields: str) -> Heard:
        def wanted(line: Heard) -> bool:
            return line.source == source and line.event == event and all(
                str(line.fields.get(name)) == value for name, value in fields.items())

        return self.ear.wait(f"{what} ({source}: {event} {fields or ''})", wanted, since, STEP_S, self.crew.check)

    def _until(self, what: str, happened: Callable[[], bool], timeout_s: float = 60.0) -> None:
        self.ear.poll(what, happened, timeout_s, self.crew.check)

    def _effort(self, since: int, plugged: Heard, bound: Heard, done: Heard) -> Effort:
        """Messages between vehicle, charger and utility until both ends are set up, and the time until bound."""
        between = [line for line in self.ear.since(since) if line.number <= done.number]
        kinds = ("bind.request", "bind.ack", "eumd.ack", "bind.confirm", "eumd.detect")
        utility = sum(line.source == "agent" and line.event in ("sent", "received") and line.fields.get("kind") in kinds
                      for line in between)
        link = sum(line.source == "sim" and line.event in ("pev link sent", "pev link received") for line in between)
        return Effort(utility + link, round((bound.at_s - plugged.at_s) * 1000))

    def _waiting(self) -> int:
        found = self.plant.status().get("journal_waiting", 0)
        return found if isinstance(found, int) else 0

    def _world_time(self) -> str:
        return str(self.plant.world().get("utc", ""))

    def _world_s(self) -> int:
        found = self.plant.world().get("world_s", 0)
        return found if isinstance(found, int) else 0

    def _power_flows(self) -> str:
        """The power once the vehicle has taken it up."""
        self._until("power", lambda: int(str(self.plant.world().get("power_w", 0))) > 1_000)
        return f"{self.plant.world().get('power_w')} W"


def facts(plant: Plant) -> Mapping[str, str]:
    """What the live view shows beside the steps."""
    world, status = plant.world(), plant.status()
    if not world:
        return {"": "setting up"}
    power_w, register_wh, limit_ma = status.get("power_w"), status.get("register_wh"), status.get("limit_ma")
    return {
        "world time": str(world.get("utc", "")), "pilot": str(status.get("pilot", "unknown")),
        "contactor": str(status.get("contactor", "unknown")),
        "limit": f"{limit_ma // 1000} A ({status.get('limit_source', '')})" if isinstance(limit_ma, int) else "",
        "power": f"{power_w / 1000:.2f} kW" if isinstance(power_w, int) else "unavailable",
        "register": f"{register_wh / 1000:.3f} kWh" if isinstance(register_wh, int) else "unavailable",
        "binding": f"{status.get('binding', '')} {status.get('reason', '')}".strip() or "no vehicle",
        "journal": f"{status.get('journal_waiting', 0)} waiting",
    }
