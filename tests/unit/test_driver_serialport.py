"""The serial port: what it says when it cannot be used, and that a reader can be woken."""

import os
import tempfile
import threading
import tty
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.drivers.serialport import PortError, SerialPort


@pytest.fixture
def pty() -> Iterator[tuple[int, str]]:
    master, slave = os.openpty()
    tty.setraw(slave)
    yield master, os.ttyname(slave)
    os.close(slave)
    os.close(master)


def test_bytes_pass_both_ways(pty: tuple[int, str]) -> None:
    master, path = pty
    with SerialPort(path, 115_200) as port:
        port.write(b"ask\r")
        assert os.read(master, 100) == b"ask\r"
        os.write(master, b"\x00\xff\r\n")
        assert port.read(5) == b"\x00\xff\r\n"
        assert port.read(0) == b""


def test_reader_is_woken(pty: tuple[int, str]) -> None:
    with SerialPort(pty[1], 115_200) as port:
        waker = threading.Thread(target=port.wake)
        waker.start()
        assert port.read(3600) == b""
        waker.join()
        for _ in range(100_000):
            port.wake()  # nobody reads: does not block
        assert port.read(3600) == b""


def test_closed_port_is_woken_without_harm(pty: tuple[int, str]) -> None:
    port = SerialPort(pty[1], 115_200)
    port.close()
    port.close()
    port.wake()


def test_missing_device_says_what_to_do() -> None:
    with pytest.raises(PortError) as error:
        SerialPort("/dev/ttyNOTHERE", 9600)
    assert str(error.value) == "/dev/ttyNOTHERE: no such device: plug the adapter in or name another port"


def test_port_in_use_says_what_to_do(pty: tuple[int, str]) -> None:
    with SerialPort(pty[1], 9600), pytest.raises(PortError) as error:
        SerialPort(pty[1], 9600)
    assert str(error.value) == f"{pty[1]}: in use by another program: stop that program"


def test_file_or_folder_is_not_a_port(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (tmp_path, file):
        with pytest.raises(PortError, match="not a serial port: name the adapter's device"):
            SerialPort(str(path), 9600)


def test_forbidden_port_says_what_to_do() -> None:
    """In a child that has given up the superuser's rights, so that it runs in CI, too."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder) / "port"
        path.touch(mode=0)
        Path(folder).chmod(0o755)
        assert "no permission: add the user to the group" in _opened_by_nobody(str(path))


def _opened_by_nobody(path: str) -> str:
    """What PortError says to a user without rights; empty when the port opened."""
    readable, writable = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads; the child uses none
        child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        try:
            SerialPort(path, 9600)
        except PortError as error:
            os.write(writable, str(error).encode())
        finally:
            os._exit(0)
    os.close(writable)
    os.waitpid(child, 0)
    with os.fdopen(readable) as stream:
        return stream.read()


def test_adapter_pulled_out_is_told() -> None:
    master, slave = os.openpty()
    port = SerialPort(os.ttyname(slave), 9600)
    os.close(slave)
    os.close(master)
    with pytest.raises(PortError, match="the adapter is gone: plug it in again"):
        port.read(5)
    port.close()
