"""Every reason that Plugbind gives, with its sentence for people. Pages, audit and tests use these."""

from enum import StrEnum


class Reason(StrEnum):
    """Why something was refused, postponed or marked."""

    # binding
    UNKNOWN_PEV = "unknown-pev"
    PEV_SUSPENDED = "pev-suspended"
    PEV_MISMATCH = "pev-mismatch"
    PREMISES_MISMATCH = "premises-mismatch"
    PREMISES_NOT_SERVED = "premises-not-served"
    ACCOUNT_CLOSED = "account-closed"
    UNKNOWN_DEVICE = "unknown-device"
    DEVICE_REVOKED = "device-revoked"
    GUEST_NOT_ALLOWED = "guest-not-allowed"
    NO_PROGRAM = "no-program"
    UTILITY_UNREACHABLE = "utility-unreachable"
    NO_PEV_LINK = "no-pev-link"
    NOT_PLUGGED = "not-plugged"
    BINDING_FORBIDDEN_UNBOUND = "charge-without-binding-forbidden"
    # messages
    REPLAYED = "replayed"
    STALE = "stale"
    BAD_SEAL = "bad-seal"
    MALFORMED = "malformed"
    WRONG_TOPIC = "wrong-topic"
    UNKNOWN_KEY = "unknown-key"
    # metering
    METER_SILENT = "meter-silent"
    METER_RESET = "meter-reset"
    METER_JUMP = "meter-jump"
    METERING_GAP = "metering-gap"
    CLOCK_UNSYNCED = "clock-unsynced"
    CLOCK_STEPPED = "clock-stepped"
    CHAIN_BROKEN = "chain-broken"
    CONFLICT = "conflict"
    BODY_INVALID = "body-invalid"
    UNKNOWN_BINDING = "unknown-binding"
    REGISTER_DISCONTINUOUS = "register-discontinuous"
    # rating
    PRICE_CHANGE_INSIDE = "price-change-inside"
    OUTSIDE_VALIDITY = "tariff-outside-validity"
    UNKNOWN_TARIFF = "unknown-tariff"
    # eumd
    INTERVAL_NOT_ALLOWED = "interval-not-allowed"
    # power
    CONTACTOR_WELDED = "contactor-welded"
    ENERGY_WHILE_OPEN = "energy-while-open"
    BOARD_FAULT = "board-fault"
    BOARD_SILENT = "board-silent"
    BOARD_UNPROTECTED = "board-unprotected"
    OVER_CURRENT = "over-current"
    # enrolment
    UNKNOWN_ACCOUNT = "unknown-account"
    UNKNOWN_PREMISES = "unknown-premises"
    ALREADY_ENROLLED = "already-enrolled"
    BAD_VIN = "bad-vin"
    TOKEN_UNKNOWN = "token-unknown"
    TOKEN_USED = "token-used"
    TOKEN_EXPIRED = "token-expired"
    # session edges
    UNPLUGGED = "unplugged"
    RESTARTED = "restarted"


SENTENCES: dict[Reason, str] = {
    Reason.UNKNOWN_PEV: "This vehicle is not enrolled with the utility.",
    Reason.PEV_SUSPENDED: "This vehicle's enrolment is suspended.",
    Reason.PEV_MISMATCH: "The vehicle named another PEV I.D. than its certificate.",
    Reason.PREMISES_MISMATCH: "The charger asked for premises at which it is not installed.",
    Reason.PREMISES_NOT_SERVED: "The utility does not serve these premises.",
    Reason.ACCOUNT_CLOSED: "The account is closed.",
    Reason.UNKNOWN_DEVICE: "The utility does not know this charger.",
    Reason.DEVICE_REVOKED: "This charger's certificate is revoked.",
    Reason.GUEST_NOT_ALLOWED: "The customer of these premises does not allow guests to charge.",
    Reason.NO_PROGRAM: "The vehicle has no rate program chosen.",
    Reason.UTILITY_UNREACHABLE: "The utility could not be reached in time.",
    Reason.NO_PEV_LINK: "The vehicle did not open a secure link in time.",
    Reason.NOT_PLUGGED: "No vehicle is plugged in.",
    Reason.BINDING_FORBIDDEN_UNBOUND: "The customer asked not to charge without a binding.",
    Reason.REPLAYED: "The same message came twice.",
    Reason.STALE: "The message is older than its time limit, or a clock is wrong.",
    Reason.BAD_SEAL: "The signature does not fit the message.",
    Reason.MALFORMED: "The message is not of the agreed form.",
    Reason.WRONG_TOPIC: "The message came on a topic that is not its sender's.",
    Reason.UNKNOWN_KEY: "The message is signed with a key that is not registered.",
    Reason.METER_SILENT: "The meter does not answer.",
    Reason.METER_RESET: "The meter's register went backwards.",
    Reason.METER_JUMP: "The meter's register rose by more than the circuit can carry.",
    Reason.METERING_GAP: "The meter was not read over an interval boundary.",
    Reason.CLOCK_UNSYNCED: "The charger's clock was not set by a time server.",
    Reason.CLOCK_STEPPED: "The charger's clock was set while charging.",
    Reason.CHAIN_BROKEN: "A record does not follow from the one before it.",
    Reason.CONFLICT: "The same record came again with other content.",
    Reason.BODY_INVALID: "The record's content is not of the agreed form.",
    Reason.UNKNOWN_BINDING: "The record names a binding that the utility did not make.",
    Reason.REGISTER_DISCONTINUOUS: "The register does not go on where the last interval ended.",
    Reason.PRICE_CHANGE_INSIDE: "The price changes inside the interval.",
    Reason.OUTSIDE_VALIDITY: "The tariff version does not cover this time.",
    Reason.UNKNOWN_TARIFF: "The tariff version is not known here.",
    Reason.INTERVAL_NOT_ALLOWED: "The interval length must be 1, 5, 15, 30 or 60 minutes.",
    Reason.CONTACTOR_WELDED: "The contactor may be welded: have a person look before it is used again.",
    Reason.ENERGY_WHILE_OPEN: "Energy flows although the contactor is open.",
    Reason.BOARD_FAULT: "The pilot board reports a fault.",
    Reason.BOARD_SILENT: "The pilot board does not answer.",
    Reason.BOARD_UNPROTECTED: "A protection of the pilot board is switched off.",
    Reason.OVER_CURRENT: "The vehicle draws more than the pilot allows.",
    Reason.UNKNOWN_ACCOUNT: "The utility has no such account.",
    Reason.UNKNOWN_PREMISES: "The utility has no such premises on this account.",
    Reason.ALREADY_ENROLLED: "It is enrolled already.",
    Reason.BAD_VIN: "The VIN is not right.",
    Reason.TOKEN_UNKNOWN: "The enrolment token is not known.",
    Reason.TOKEN_USED: "The enrolment token was used before.",
    Reason.TOKEN_EXPIRED: "The enrolment token is too old: ask for a new one.",
    Reason.UNPLUGGED: "The vehicle was unplugged.",
    Reason.RESTARTED: "The charger's agent was started anew.",
}


def sentence(reason: str) -> str:
    """What to tell a person; an unknown code is shown as it is."""
    try:
        return SENTENCES[Reason(reason)]
    except ValueError:
        return f"Reason {reason}."
