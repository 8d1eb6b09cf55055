"""What systemd is told: READY=1, WATCHDOG=1, STATUS=, STOPPING=1 (sd_notify(3)). Silent outside systemd."""

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)


class SystemdNotifier:
    """Sends datagrams to the socket in NOTIFY_SOCKET; does nothing when that is unset. Never raises."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name  # "@" is systemd's mark of the abstract space
        self._failed = False

    def ready(self) -> None:
        """The agent is up."""
        self._send("READY=1")

    def alive(self) -> None:
        """The station's loop goes round; silence for WatchdogSec makes systemd restart the agent."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("STATUS=" + text.replace("\n", " "))

    def stopping(self) -> None:
        """The agent is on its way out."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
                connection.setblocking(False)
                connection.sendto(text.encode(), self._address)
        except OSError as error:
            if not self._failed:
                log.warning("systemd cannot be told", extra={"error": str(error)})
            self._failed = True
        else:
            self._failed = False


def watchdog_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds of real time between two calls of `alive`: half of what systemd allows. None: no watchdog."""
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 2_000_000 if text.isascii() and text.isdigit() and int(text) > 0 else None
