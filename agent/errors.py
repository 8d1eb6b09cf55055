"""Which typed errors end the agent with a sentence instead of a traceback, and with which exit code."""

from agent.adapters.journal import JournalCorruptError, JournalError
from agent.adapters.keys import KeyFileError
from agent.adapters.mqtt import UplinkError
from agent.adapters.pevlink import PevLinkError
from agent.adapters.status import StatusError
from agent.drivers.meter import UnknownModelError

MISSING, WRONG, REFUSED = 3, 2, 4


def exit_code(error: Exception) -> int | None:
    """The exit code of a fault that a person can mend; None for a bug."""
    match error:
        case UnknownModelError() | UplinkError() | KeyFileError():
            return WRONG
        case JournalCorruptError() | JournalError() | PevLinkError() | StatusError():
            return MISSING
        case _:
            return None
