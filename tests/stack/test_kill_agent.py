"""kill -9 of the agent, again and again at random instants while a vehicle charges, and of the gateway in between.

Real processes: mosquitto, SQLite, one-minute intervals at 150 times real time. PLUGBIND_SEED repeats the instants; the
machine's own timing is what it is.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import threading
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hil.processes import Ear
from stack.main_job_world import Account, Utility, once, utility

SCALE, KILLS = 150, 6
BEGIN_UTC = "2025-07-16T01:00:00Z"  # no price changes while this runs


@dataclass(frozen=True, slots=True)
class Survived:
    """What is left after the kills. `adopted`: the session that each restarted agent showed, with its contactor."""

    seed: int
    device: str
    session: str
    adopted: list[tuple[object, object]]
    epochs: set[object]
    account: Account
    records: list[dict[str, Any]]


class Killer:
    """Kills and restarts, at instants that a seed chooses."""

    def __init__(self, plant: Utility, ear: Ear, chance: random.Random) -> None:
        self._plant, self._ear, self._chance = plant, ear, chance
        self._pause = threading.Event()  # never set
        self.adopted: list[tuple[object, object]] = []
        self.epochs: set[object] = set()

    def kill_agent(self) -> None:
        """At some instant of its work; sometimes a second time, while it starts."""
        plant, since = self._plant, self._ear.position
        plant.see("some work", "agent", "recorded", since, record="interval")
        self._pause.wait(self._chance.uniform(0.0, 0.5))
        plant.crew.kill("agent")
        if self._chance.random() < 0.5:
            plant.start_agent()
            self._pause.wait(self._chance.uniform(0.05, 0.6))
            plant.crew.kill("agent")
        since = self._ear.position
        plant.start_agent()
        ready = plant.see("the agent is ready", "agent", "agent ready", since)
        self.epochs.add(ready.fields["epoch"])
        plant.until("it charges on", lambda: plant.status().get("contactor") == "closed")
        self.adopted.append((plant.status().get("session"), plant.status().get("binding")))

    def kill_gateway(self) -> None:
        """While records come in."""
        self._plant.see("some work", "gateway", "handled", self._ear.position, kind="records")
        self._pause.wait(self._chance.uniform(0.0, 0.1))
        self._plant.crew.kill("gateway")
        self._plant.start_gateway()


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory, mosquitto_bin: str) -> Survived:
    found = once(tmp_path_factory, "kill-agent", lambda folder: _survive(folder, mosquitto_bin))
    print(f"PLUGBIND_SEED={found.seed}")
    return found


def _survive(folder: Path, mosquitto: str) -> Survived:
    seed = int(os.environ.get("PLUGBIND_SEED") or random.SystemRandom().randrange(1_000_000))
    print(f"PLUGBIND_SEED={seed}")
    with utility(folder, mosquitto) as (plant, ear):
        plant.open(interval_min=1)
        plant.begin(SCALE, BEGIN_UTC, seed)
        _, since = plant.plug("leaf")
        plant.see("the contactor", "agent", "board changed", since, closed="True")
        plant.until("the session shows", lambda: bool(plant.status().get("session")))
        session = str(plant.status()["session"])
        killer = Killer(plant, ear, random.Random(seed))
        for number in range(KILLS):
            killer.kill_agent()
            if number == KILLS // 2:
                killer.kill_gateway()
        plant.unplug("leaf")
        plant.see("the first idle interval", "agent", "recorded", ear.position, record="interval")
        plant.drained()
        return Survived(seed, plant.device, session, killer.adopted, killer.epochs, plant.account(),
                        _journal(plant.agent_dir))


def _journal(agent_dir: Path) -> list[dict[str, Any]]:
    database = sqlite3.connect(f"file:{agent_dir / 'journal.db'}?mode=ro", uri=True)
    try:
        rows = database.execute("SELECT seq, kind, body FROM record ORDER BY seq").fetchall()
    finally:
        database.close()
    return [{"seq": seq, "kind": kind, "body": json.loads(body)} for seq, kind, body in rows]


@pytest.mark.req("P1-S3.1")
def test_after_every_kill_the_agent_adopts_the_session_and_charges_on(survived: Survived) -> None:
    assert survived.adopted == [(survived.session, "bound")] * KILLS
    assert list(survived.account.receipts) == [survived.session]


@pytest.mark.req("P1-S3.1")
def test_no_energy_is_lost_or_doubled_by_kills(survived: Survived) -> None:
    device = survived.account.device(survived.device)
    assert survived.account.delta_wh > 0
    assert survived.account.delta_wh == device["metered_wh"] == device["posted_wh"] + device["exception_wh"]
    assert device["posted_wh"] == device["ledger_wh"] and survived.account.whole["whole"]


@pytest.mark.req("P1-S3.1", "P1-N1")
def test_the_intervals_follow_each_other_without_gap_or_overlap(survived: Survived) -> None:
    intervals = [one["body"] for one in survived.records if one["kind"] == "interval"]
    assert all(left["end"] == right["start"] for left, right in pairwise(intervals))
    assert all(left["register_end_wh"] == right["register_start_wh"] for left, right in pairwise(intervals))


@pytest.mark.req("P1-S3.1")
def test_the_journal_goes_on_with_the_next_number_in_the_same_epoch(survived: Survived) -> None:
    assert [one["seq"] for one in survived.records] == list(range(1, len(survived.records) + 1))
    assert len(survived.epochs) == 1


@pytest.mark.req("P1-S3.3")
def test_debits_are_credits_and_the_receipt_is_the_bill(survived: Survived) -> None:
    assert survived.account.balance["debit_cents"] == survived.account.balance["credit_cents"] > 0
    billed = survived.account.billed(survived.session)
    assert survived.account.receipts[survived.session]["total_cents"] == billed["cents"] == billed["receipt_cents"]
