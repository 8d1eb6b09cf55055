"""Device side of delivery: what to send next, and what may be forgotten (P1-S3.1).

Only the utility's application acknowledgement forgets a record; a broker's does not. At most WINDOW batches are under
way; when no acknowledgement comes within retry_ms, everything after the last acknowledged record is sent again.
"""

from dataclasses import dataclass

from agent.core.effects import Forget, SendBatch

BATCH = 200
WINDOW = 8


@dataclass(slots=True)
class Outbox:
    """Where delivery stands in this epoch."""

    epoch: int
    last_seq: int
    acked_seq: int
    retry_ms: int
    connected: bool = False
    sent_seq: int = 0
    retry_at_ms: int | None = None

    @property
    def waiting(self) -> int:
        """Records that the utility has not acknowledged."""
        return self.last_seq - self.acked_seq

    def on_opened(self) -> None:
        """Connected (again): what was under way may be lost, so it counts as unsent."""
        self.connected, self.sent_seq, self.retry_at_ms = True, self.acked_seq, None

    def on_lost(self) -> None:
        """Nothing can be sent."""
        self.connected, self.retry_at_ms = False, None

    def on_written(self, epoch: int, last_seq: int) -> None:
        """The journal grew."""
        assert epoch == self.epoch and last_seq >= self.last_seq, "a journal never shrinks or changes its epoch"
        self.last_seq = last_seq

    def on_ack(self, epoch: int, seq: int, mono_ms: int) -> list[Forget]:
        """What may be forgotten: nothing for another epoch, an old acknowledgement or one that we never sent."""
        if epoch != self.epoch or seq <= self.acked_seq or seq > self.last_seq:
            return []
        self.acked_seq = seq
        self.sent_seq = max(self.sent_seq, seq)
        self.retry_at_ms = mono_ms + self.retry_ms if self.sent_seq > seq else None
        return [Forget(seq)]

    def due(self, mono_ms: int) -> list[SendBatch]:
        """Batches to send now."""
        if not self.connected:
            return []
        if self.retry_at_ms is not None and mono_ms >= self.retry_at_ms:
            self.sent_seq, self.retry_at_ms = self.acked_seq, None
        batches: list[SendBatch] = []
        while self.sent_seq < self.last_seq and self.sent_seq - self.acked_seq < WINDOW * BATCH:
            count = min(BATCH, self.last_seq - self.sent_seq)
            batches.append(SendBatch(self.sent_seq + 1, count))
            self.sent_seq += count
        if batches and self.retry_at_ms is None:
            self.retry_at_ms = mono_ms + self.retry_ms
        return batches

    def next_wake_ms(self) -> int | None:
        """When a silent utility is asked again."""
        return self.retry_at_ms if self.connected else None
