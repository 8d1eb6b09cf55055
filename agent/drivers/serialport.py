"""The only door to pyserial: opens a port for itself alone, reads with a deadline, can be woken, says what is wrong.

Knows no protocol. Works on real adapters and on pseudo-terminals. Carries part of P1-S1.6 and P1-B6.
"""

import errno
import os
import select
import termios
import threading
from types import TracebackType
from typing import Final

import serial

READ_BYTES: Final = 4096
_WRITE_S: Final = 2.0
_ADVICE = {
    errno.ENOENT: "no such device: plug the adapter in or name another port",
    errno.ENODEV: "the adapter is gone: plug it in again",
    errno.ENXIO: "the adapter is gone: plug it in again",
    errno.EIO: "the adapter is gone: plug it in again",
    errno.EACCES: "no permission: add the user to the group that owns it (usually dialout)",
    errno.EPERM: "no permission: add the user to the group that owns it (usually dialout)",
    errno.EBUSY: "in use by another program: stop that program",
    errno.EAGAIN: "in use by another program: stop that program",
    errno.EISDIR: "not a serial port: name the adapter's device",
    errno.ENOTTY: "not a serial port: name the adapter's device",
}


class PortError(Exception):
    """The port cannot be used; the text names it and says what to do."""

    def __init__(self, path: str, advice: str) -> None:
        super().__init__(f"{path}: {advice}")
        self.path = path
        self.advice = advice


def open_line(path: str, baud: int, parity: str = "N", stop_bits: int = 1) -> serial.Serial:
    """A raw line, locked for this process, with an empty input buffer. Raises PortError."""
    try:
        return serial.Serial(path, baud, parity=parity, stopbits=stop_bits, timeout=0, write_timeout=_WRITE_S,
                             exclusive=True)
    except ValueError as error:
        raise PortError(path, f"does not take {baud} baud, parity {parity}, {stop_bits} stop bits: {error}") from error
    except (OSError, termios.error) as error:  # pyserial lets termios.error through
        raise PortError(path, advice(error)) from error


def advice(error: Exception) -> str:
    """What is wrong and what to do, for the errors a serial port gives."""
    cause = error.__context__  # pyserial wraps what the system said
    numbers = (getattr(error, "errno", None), *error.args[:1], *(cause.args[:1] if cause else ()))
    known = next((_ADVICE[number] for number in numbers if isinstance(number, int) and number in _ADVICE), None)
    return known or f"cannot be used ({error}): check the adapter"


class SerialPort:
    """One open port. `read` and `write` belong to one thread; `wake` may be called from any."""

    def __init__(self, path: str, baud: int) -> None:
        """Opens it. Raises PortError."""
        self.path = path
        self._line = open_line(path, baud)
        self._wake_lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._is_open = True

    def __enter__(self) -> "SerialPort":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Gives the port back; a second call does nothing."""
        with self._wake_lock:
            if not self._is_open:
                return
            self._is_open = False
            os.close(self._wake_read)
            os.close(self._wake_write)
        self._line.close()

    def read(self, timeout_s: float) -> bytes:
        """What has come, at most READ_BYTES. Empty: nothing in timeout_s real seconds, or woken. Raises PortError."""
        try:
            ready, _, _ = select.select([self._line.fileno(), self._wake_read], [], [], max(timeout_s, 0.0))
            if self._wake_read in ready:
                os.read(self._wake_read, READ_BYTES)
            if self._line.fileno() not in ready:
                return b""
            data = os.read(self._line.fileno(), READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise PortError(self.path, advice(error)) from error
        if not data:
            raise PortError(self.path, _ADVICE[errno.EIO])
        return data

    def write(self, data: bytes) -> None:
        """Sends all of it within two real seconds. Raises PortError."""
        try:
            self._line.write(data)
        except OSError as error:
            raise PortError(self.path, advice(error)) from error

    def wake(self) -> None:
        """Ends a running `read`, or the next one, at once."""
        with self._wake_lock:
            if self._is_open:
                try:
                    os.write(self._wake_write, b"w")
                except BlockingIOError:
                    return  # the pipe is full: the reader is woken already
