"""The typed errors of the utility's programs, each with the exit code of `evse-cloud`; it must not import the project.

A refusal that the use case foresees is a value (`Refused`), not an error; it becomes RefusedError only in the CLI.
"""


class CloudError(Exception):
    """Parent of the errors whose text is one sentence for a person: what, where, and what to do next."""

    exit_code = 1


class InputError(CloudError):
    """A value from outside (command line, request, certificate request) is not of the agreed form."""

    exit_code = 2


class ConfigError(CloudError):
    """The configuration or the state folder is missing, unreadable or wrong."""

    exit_code = 2


class UnavailableError(CloudError):
    """Something this program needs (database, broker, port) cannot be had now; trying again may help."""

    exit_code = 3


class RefusedError(CloudError):
    """The utility said no, for a reason of `esci.reasons`."""

    exit_code = 4
