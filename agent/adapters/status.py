"""The status socket: whoever of the agent's group connects gets the latest state as one JSON line (towards P1-F17).

It only tells; it must not take an order.
"""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

ANSWER_LIMIT: Final = 65_536
PATIENCE_S: Final = 2.0

log = logging.getLogger(__name__)


class StatusError(Exception):
    """The status cannot be told or asked; the text says what, where and what to do."""


class StatusServer:
    """Answers each connection with latest() and a newline, then closes it. `latest` must be safe in another thread."""

    def __init__(self, path: Path, latest: Callable[[], str]) -> None:
        self._path, self._latest = path, latest
        self._stopping = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._serve, name="status", daemon=True)

    def start(self) -> None:
        """Opens the socket with mode 0660; one that a dead agent left is replaced. Raises StatusError."""
        try:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            before = os.umask(0o117)
            try:
                self._listener.bind(str(self._path))
            finally:
                os.umask(before)
            self._listener.listen(8)
        except OSError as error:
            raise StatusError(f"{self._path} cannot be opened ({error.strerror or error}): create its folder, and"
                              " give it to the agent's user") from error
        self._thread.start()

    def stop(self) -> None:
        """Closes the socket and removes it."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as error:  # out of file handles, or stopped
                if not self._stopping.wait(1.0):
                    log.warning("status socket cannot accept", extra={"error": str(error)})
                continue
            with connection:
                connection.settimeout(PATIENCE_S)
                with contextlib.suppress(OSError):  # whoever does not read gets nothing
                    connection.sendall(self._latest().encode() + b"\n")


def ask(path: Path) -> str:
    """The running agent's state, a JSON text. Raises StatusError when none answers."""
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(str(path))
            while len(answer) <= ANSWER_LIMIT and (part := connection.recv(ANSWER_LIMIT)):
                answer += part
    except PermissionError as error:
        raise StatusError(f"{path}: not allowed: run this as root or as a member of the agent's group") from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise StatusError(f"{path}: the agent is not running: start it with `systemctl start evse-agent`") from error
    except OSError as error:
        raise StatusError(f"{path}: the agent does not answer ({error}): look at `journalctl -u evse-agent`") from error
    if not answer.endswith(b"\n") or len(answer) > ANSWER_LIMIT:
        raise StatusError(f"{path}: the agent's answer broke off: ask again, or look at `journalctl -u evse-agent`")
    return answer.decode("utf-8", "replace").rstrip("\n")
