"""Which typed errors end the agent with a sentence instead of a traceback, and with which exit code."""

from agent.adapters.commissioning import CommissionError, EnrolmentRefusedError, UnreachableError
from agent.adapters.journal import JournalError
from agent.adapters.keys import KeyFileError
from agent.adapters.mqtt import UplinkError
from agent.adapters.pevlink import PevLinkError
from agent.adapters.status import StatusError
from agent.drivers.meter import UnknownModelError

MISSING, WRONG, REFUSED = 3, 2, 4


def exit_code(error: Exception) -> int | None:
    """The exit code of a fault that a person can mend; None for a bug."""
    match error:
        case EnrolmentRefusedError():
            return REFUSED
        case JournalError() | PevLinkError() | StatusError() | UnreachableError():
            return MISSING
        case UnknownModelError() | UplinkError() | KeyFileError() | CommissionError():
            return WRONG
        case _:
            return None
