"""Pseudo-terminals with stable names, and files that are never half written.

The only module of the simulator that makes terminals and writes files of the state directory. No clock, no world.
"""

import json
import os
import tty
from pathlib import Path


class Terminal:
    """One pseudo-terminal; the agent opens `link`, which points at its far end."""

    def __init__(self, link: Path | None) -> None:
        self.fd, self._far_fd = os.openpty()
        tty.setraw(self._far_fd)
        os.set_blocking(self.fd, False)
        self.name = os.ttyname(self._far_fd)
        self._link = link
        if link is not None:
            draft = link.with_name(link.name + ".new")
            draft.unlink(missing_ok=True)
            draft.symlink_to(self.name)
            draft.replace(link)

    def read(self) -> bytes:
        """What has arrived; empty when nothing has."""
        try:
            return os.read(self.fd, 4096)
        except OSError:  # nothing there, or the far end is being closed
            return b""

    def write(self, data: bytes) -> None:
        """Sends; what nobody takes is lost, as on a wire."""
        while data:
            try:
                data = data[os.write(self.fd, data) :]
            except BlockingIOError:
                return

    def close(self) -> None:
        """Closes both ends and removes the name."""
        if self._link is not None and self._link.is_symlink() and os.readlink(self._link) == self.name:
            self._link.unlink()
        os.close(self.fd)
        os.close(self._far_fd)


def write_json(path: Path, content: dict[str, object]) -> None:
    """Replaces the file as a whole."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(content) + "\n", encoding="utf-8")
    draft.replace(path)
