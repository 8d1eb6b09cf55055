"""A PostgreSQL server of a test's own, on a Unix socket only."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FAST = "-c listen_addresses='' -c fsync=off -c full_page_writes=off -c synchronous_commit=off"


@contextmanager
def postgres_url(binaries: Path) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh server, which is stopped at the end. As root it runs as the user postgres."""
    home = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short, and readable for postgres
    as_root = os.geteuid() == 0
    user = "postgres" if as_root else None
    if as_root:
        account = pwd.getpwnam("postgres")
        os.chown(home, account.pw_uid, account.pw_gid)

    def run(program: str, *arguments: str) -> None:
        subprocess.run([str(binaries / program), *arguments], user=user, cwd=home, check=True, timeout=60,
                       stdout=subprocess.DEVNULL)

    try:
        run("initdb", "-D", str(home / "data"), "-U", "plugbind", "-A", "trust", "--no-sync")
        run("pg_ctl", "-D", str(home / "data"), "-w", "-l", str(home / "log"), "-o", f"-k {home} {FAST}", "start")
        try:
            yield f"postgresql+psycopg://plugbind@/postgres?host={home}"
        finally:
            run("pg_ctl", "-D", str(home / "data"), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home)
