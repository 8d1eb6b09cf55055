"""The log: one JSON object a line on standard error, for journald. A constant message, and data in fields.

It shortens every VIN to its last four characters. Times are the machine's, also where world time runs otherwise.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

LINE_LIMIT: Final = 4096
_VIN: Final = re.compile(r"(?<![A-Za-z0-9])[A-HJ-NPR-Z0-9]{13}([A-HJ-NPR-Z0-9]{4})(?![A-Za-z0-9])")
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One line for each record: at, level, from, event, then the fields given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline and at most LINE_LIMIT characters of each field."""
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "level": record.levelname,
            "from": record.name,
            "event": _clean(record.getMessage()),
        }
        for name, value in vars(record).items():
            if name not in _OWN:
                free = f"{name}_" if name in line else name
                line[free] = value if isinstance(value, int | None) else _clean(str(value))
        if record.exc_info:
            line["traceback"] = _clean(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def setup(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Sends everything from `level` on to the stream (default: standard error), and nothing anywhere else."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("pymodbus", "paho"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))


def short_pev(pev: str) -> str:
    """`…1234`: enough of a VIN to recognise one's own, too little to name a stranger's."""
    return f"…{pev[-4:]}" if pev else ""


def _clean(text: str) -> str:
    short = _VIN.sub(lambda found: short_pev(found[0]), text)
    return short.encode("utf-8", "replace").decode() if len(short) <= LINE_LIMIT else short[-LINE_LIMIT:]
