"""`./run` gives one sentence, which says what to type, for each way in which a bare machine is not ready.

The outputs that it must recognise were captured: pip 23 and uv 0.13 in a network namespace without a network, pip of
Debian 12 outside a venv, `python3 -m venv` of a Debian 12 without python3-venv.
"""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from architecture.house import ROOT, call

NO_VENV = """\
The virtual environment was not created successfully because ensurepip is not
available.  On Debian/Ubuntu systems, you need to install the python3-venv
package using the following command.

    apt install python3.11-venv

You may need to use sudo with that command.  After installing the python3-venv
package, recreate your virtual environment.

Failing command: /srv/plugbind/.venv/bin/python3
"""
PEP_668 = """\
error: externally-managed-environment

× This environment is externally managed
╰─> To install Python packages system-wide, try apt install
    python3-xyz, where xyz is the package you are trying to
    install.
"""
PIP_NO_NETWORK = """\
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by \
'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f8c93f33990>: Failed to establish \
a new connection: [Errno -3] Temporary failure in name resolution')': /simple/pyserial/
ERROR: Could not find a version that satisfies the requirement pyserial (from versions: none)
ERROR: No matching distribution found for pyserial
"""
UV_NO_NETWORK = """\
error: Request failed after 3 retries in 7.2s
  cause: Failed to fetch: https://pypi.org/simple/pyserial/
  cause: error sending request for url (https://pypi.org/simple/pyserial/)
  cause: client error (Connect)
  cause: dns error
"""


@pytest.fixture
def run(tmp_path: Path) -> ModuleType:
    """The script as a module, with its folders moved into a directory of the test."""
    loader = SourceFileLoader("plugbind_run", str(ROOT / "run"))
    spec = spec_from_loader("plugbind_run", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    (tmp_path / ".run").mkdir()
    for name, path in {"ROOT": "", "VENV": ".venv", "STATE": ".run", "SETUP_LOG": ".run/setup.log"}.items():
        setattr(module, name, str(tmp_path / path))
    return module


def test_it_parses_on_python_3_6_and_needs_only_the_standard_library() -> None:
    tree = ast.parse((ROOT / "run").read_text("utf-8"), feature_version=(3, 6))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names
    assert "__future__" not in imported
    assert (ROOT / "run").stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (NO_VENV, r"venv module is missing: type `.*apt-get install -y python3\.11-venv`, then `\./run .*`\.$"),
        ("/usr/bin/python3: No module named venv\n", r"venv module is missing: .* python3-venv`"),
        (PEP_668, r"\(PEP 668\): type `rm -rf \.venv`, then `\./run .*`\.$"),
        (PIP_NO_NETWORK, r"cannot be reached.*HTTPS_PROXY.*then type `\./run .*`\.$"),
        (UV_NO_NETWORK, r"cannot be reached.*HTTPS_PROXY.*then type `\./run .*`\.$"),
        ("OSError: [Errno 28] No space left on device", r"disk is full.*then type `\./run .*`\.$"),
        ("", r"set-up failed \(no output\): read \.run/setup\.log"),
        ("error: Failed to parse `uv.lock`", r"Failed to parse `uv\.lock`.*read \.run/setup\.log"),
    ],
)
def test_each_failure_has_its_sentence(run: ModuleType, output: str, sentence: str) -> None:
    said = run.failure_sentence(output)
    assert re.search(sentence, said), said
    assert "\n" not in said


@pytest.mark.parametrize("version", [(3, 6), (3, 9), (3, 10)])
def test_an_old_python_gets_a_sentence(run: ModuleType, version: tuple[int, int], capfd: pytest.CaptureFixture[str],
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv(run.REEXECUTED, "1")
    with pytest.raises(SystemExit) as left:
        run.use_new_python(version)
    assert left.value.code == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert f"this is {version[0]}.{version[1]}" in said
    assert "type `" in said


def test_a_new_python_is_taken_as_it_is(run: ModuleType) -> None:
    run.use_new_python((3, 11))
    run.use_new_python((3, 14))


def test_a_missing_venv_module_leaves_no_half_made_folder(run: ModuleType, tmp_path: Path,
                                                          capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """The Python here does what Debian's does without python3-venv: it prints, leaves a folder behind, and fails."""
    python = tmp_path / "python3"
    python.write_text(f"#!/bin/sh\nmkdir -p {tmp_path}/.venv/bin\ncat <<'END'\n{NO_VENV}END\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(SystemExit) as left:
        run.make_venv(str(python))
    assert left.value.code == 2
    assert not (tmp_path / ".venv").exists()
    assert "venv module is missing" in capfd.readouterr().err


def test_a_program_that_is_on_path_but_does_not_work_is_not_there(run: ModuleType, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """As a pyenv shim of a Python that is not switched on."""
    shim = tmp_path / "uv"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run.working(["uv", "--version"]) is None
    assert run.working(["absent"]) is None


def test_pip_gets_the_versions_of_the_lock_file(run: ModuleType) -> None:
    lines = run.locked_versions(str(ROOT / "uv.lock")).splitlines()
    assert len(lines) > 50
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][\w.+!]*", line) for line in lines)
    assert "plugbind" not in {line.partition("==")[0] for line in lines}


def test_without_root_and_sudo_it_says_which_tests_are_skipped(run: ModuleType, capfd: pytest.CaptureFixture[str],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(run, "missing_parts", lambda: ["mosquitto", "postgresql"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "/nowhere")
    run.install_real_parts()
    assert re.search(r"mosquitto and postgresql missing: tests that need them are skipped", capfd.readouterr().err)


def test_a_moved_venv_is_made_anew(run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/nowhere/python3.11")
    monkeypatch.setattr(run, "VENV_PYTHON", str(tmp_path / ".venv" / "bin" / "python"))
    run.forget_broken_venv()
    assert not (tmp_path / ".venv").exists()


def test_an_unknown_verb_is_refused_in_one_sentence() -> None:
    done = call(ROOT / "run", "tset")
    assert done.returncode == 2
    assert done.stdout == "run: there is no verb 'tset': type ./run --help to see the five there are.\n"


def test_help_needs_no_set_up(tmp_path: Path) -> None:
    script = tmp_path / "run"
    script.write_bytes((ROOT / "run").read_bytes())
    done = subprocess.run([sys.executable, script, "--help"], text=True, stdout=subprocess.PIPE, check=True)
    assert "usage: ./run VERB" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_ci_calls_run_test_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text("utf-8").splitlines() if line and line[0] != "#"]
    assert lines[-1] == 'exec ./run test "$@"'
    assert len(lines) <= 4
