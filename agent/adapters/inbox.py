"""How an adapter's thread hands an event to the station when the inbox may be full. Must not drop anything."""

import logging
import queue
import threading

from agent.core.events import Event
from agent.ports import Post

RETRY_S = 0.05
log = logging.getLogger(__name__)


def deliver(post: Post, event: Event, stopping: threading.Event) -> bool:
    """True once the inbox has taken the event; False only when the adapter was stopped first.

    A full inbox holds the calling thread, so that its peer is held too and nothing is lost. A station that never
    empties its inbox again is the watchdog's business. The retry is in real time.
    """
    held = False
    while True:
        try:
            post(event)
        except queue.Full:
            if not held:
                log.warning("inbox is full, its sender waits", extra={"kind": type(event).__name__})
                held = True
            if stopping.wait(RETRY_S):
                return False
        else:
            return True
