"""Laws of delivery on the device: a bounded window, everything eventually, nothing forgotten unacknowledged."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.effects import Forget
from agent.core.outbox import BATCH, WINDOW, Outbox

EPOCH, RETRY_MS = 7, 20_000


@dataclass
class Line:
    """A utility behind a line that loses, doubles and reorders; it takes contiguous records only."""

    rng: random.Random
    taken: int = 0
    under_way: list[tuple[int, int]] = field(default_factory=list)
    acks: list[int] = field(default_factory=list)

    def carry(self, loss: float) -> None:
        """Deliver some of what is under way, in any order, any number of times."""
        self.rng.shuffle(self.under_way)
        for first, count in self.under_way:
            for _ in range(0 if self.rng.random() < loss else self.rng.choice([1, 1, 2])):
                if first - 1 <= self.taken:
                    self.taken = max(self.taken, first + count - 1)
                self.acks.append(self.taken)
        self.under_way.clear()


@pytest.mark.req("P1-S3.1")
@given(st.integers(0, 2**32), st.lists(st.integers(0, 900), min_size=1, max_size=8), st.booleans())
def test_everything_arrives_whatever_the_line_does(seed: int, growth: list[int], restarts: bool) -> None:
    rng = random.Random(seed)
    outbox, line, written, forgotten, now_ms = Outbox(EPOCH, 0, 0, RETRY_MS), Line(rng), 0, 0, 0
    growing = list(growth)
    outbox.on_opened()
    for turn in range(20_000):
        if growing:
            written += growing.pop()
            outbox.on_written(EPOCH, written)
        elif forgotten == written:
            break
        if restarts and rng.random() < 0.05:
            outbox = Outbox(EPOCH, written, forgotten, RETRY_MS)
            outbox.on_opened()
        if rng.random() < 0.1:
            outbox.on_lost()
            assert outbox.due(now_ms) == [] and outbox.next_wake_ms() is None
            outbox.on_opened()
        for batch in outbox.due(now_ms):
            assert outbox.acked_seq < batch.first_seq and batch.first_seq + batch.count - 1 <= written
            assert 1 <= batch.count <= BATCH
            line.under_way.append((batch.first_seq, batch.count))
        assert outbox.sent_seq - outbox.acked_seq < (WINDOW + 1) * BATCH
        assert outbox.due(now_ms) == [], "what is under way is not sent again at once"
        line.carry(loss=0.4 if turn < 200 else 0.0)
        rng.shuffle(line.acks)
        for ack in line.acks:
            for effect in outbox.on_ack(EPOCH, ack, now_ms):
                assert forgotten < effect.seq <= line.taken
                forgotten = effect.seq
        line.acks.clear()
        wake_ms = outbox.next_wake_ms()
        now_ms = now_ms + 1_000 if wake_ms is None or rng.random() < 0.3 else max(wake_ms, now_ms)
    assert forgotten == written == line.taken and outbox.waiting == 0


@pytest.mark.req("P1-S3.1")
@given(st.integers(1, 2_000), st.integers(1, 100_000))
def test_a_silent_utility_is_asked_again_after_the_retry_time_and_not_before(written: int, wait_ms: int) -> None:
    outbox = Outbox(EPOCH, written, 0, RETRY_MS)
    outbox.on_opened()
    first = outbox.due(0)
    assert first and outbox.next_wake_ms() == RETRY_MS
    again = outbox.due(wait_ms)
    assert again == (first if wait_ms >= RETRY_MS else [])


@pytest.mark.req("P1-S3.1")
@given(st.integers(0, 500), st.integers(0, 500), st.integers(5, 9), st.integers(0, 1_000))
def test_only_an_acknowledgement_of_this_epoch_and_of_written_records_forgets(
    written: int, acked: int, epoch: int, seq: int
) -> None:
    acked = min(acked, written)
    outbox = Outbox(EPOCH, written, acked, RETRY_MS)
    outbox.on_opened()
    forgets = outbox.on_ack(epoch, seq, 0)
    assert forgets == ([Forget(seq)] if epoch == EPOCH and acked < seq <= written else [])
    assert outbox.acked_seq == (seq if forgets else acked)


@pytest.mark.req("P1-S3.1")
def test_a_journal_that_shrinks_or_changes_its_epoch_is_a_bug() -> None:
    outbox = Outbox(EPOCH, 10, 3, RETRY_MS)
    for epoch, last_seq in ((EPOCH, 9), (EPOCH + 1, 11)):
        with pytest.raises(AssertionError, match="never shrinks"):
            outbox.on_written(epoch, last_seq)
