"""How a command ends: typed faults become a sentence and an exit code, a bug stays a traceback.

Exit codes: 2 the configuration or the command is wrong; 3 something needed is not there; 4 the utility refused. The
types are imported only when something has failed: `evse-agent run` must not wait for them.
"""

import sys
from collections.abc import Callable
from pathlib import Path

CONFIG = Path("/etc/plugbind/agent.toml")
CONFIG_VARIABLE = "PLUGBIND_AGENT_CONFIG"
WRONG, MISSING, REFUSED = 2, 3, 4


class CommandError(Exception):
    """Ends a command with a sentence and an exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def guarded(action: Callable[[], None]) -> None:
    """Do it; what a person can mend ends the process with one sentence and its exit code, a bug with its traceback."""
    try:
        action()
    except Exception as error:  # the one place: typed faults become a sentence, all else crashes loudly
        code = exit_code(error)
        if code is None:
            raise
        print(error, file=sys.stderr)
        sys.exit(code)


def exit_code(error: Exception) -> int | None:
    """The exit code of a fault that a person can mend; None for a bug."""
    from agent.adapters.commissioning import CommissionError, EnrolmentRefusedError, UnreachableError
    from agent.adapters.journal import JournalError
    from agent.adapters.keys import KeyFileError
    from agent.adapters.mqtt import UplinkError
    from agent.adapters.pevlink import PevLinkError
    from agent.adapters.status import StatusError
    from agent.clocks import ClockVariableError
    from agent.config import ConfigError
    from agent.drivers.meter import UnknownModelError

    match error:
        case CommandError():
            return error.code
        case EnrolmentRefusedError():
            return REFUSED
        case JournalError() | PevLinkError() | StatusError() | UnreachableError():
            return MISSING
        case ClockVariableError() | ConfigError() | UnknownModelError():
            return WRONG
        case UplinkError() | KeyFileError() | CommissionError():
            return WRONG
        case _:
            return None
