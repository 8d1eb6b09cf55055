"""The database: SQLite embedded by default, PostgreSQL by URL. One transaction for each request; nothing else here.

SQLite runs in WAL with synchronous=FULL, and each transaction takes the write lock at its start, so that two processes
(gateway, api) wait for each other instead of failing half-way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session

BUSY_TIMEOUT_MS = 10_000


class Base(DeclarativeBase):
    """Parent of every table."""


class DatabaseUnavailableError(Exception):
    """Locked, full, read-only or not to be reached; nothing was written."""


def engine_for(url: str) -> Engine:
    """An engine for `sqlite:///FILE` or `postgresql+psycopg://...`."""
    engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy's own BEGIN, below, instead of the driver's
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def create_schema(engine: Engine) -> None:
    """Make every table that is missing; the tables' modules must have been imported."""
    try:
        Base.metadata.create_all(engine)
    except OperationalError as error:
        raise DatabaseUnavailableError(_cause(error)) from error


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """A session whose work is committed at the end, or rolled back when anything is raised.

    Raises DatabaseUnavailableError when the database is locked, full or away.
    """
    try:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session
    except DatabaseError as error:
        if not isinstance(error, OperationalError) and type(error) is not DatabaseError:
            raise  # a broken constraint or a wrong statement is not an outage
        raise DatabaseUnavailableError(_cause(error)) from error


def _cause(error: DatabaseError) -> str:
    return str(error.orig).strip().splitlines()[0]
