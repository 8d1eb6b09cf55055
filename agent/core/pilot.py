"""Two small machines over what the pilot board reports: is a vehicle there, and may it have power. Tables only.

The board owns the pilot and every protection; these tables never close anything, they say when to ask (P1-S1.6, S2.7,
N2).
"""

from enum import Enum, auto

from agent.core.events import BoardStatus


class Presence(Enum):
    """Is a vehicle plugged in?"""

    UNKNOWN = auto()  # nothing seen since the start
    EMPTY = auto()
    PRESENT = auto()


class Seen(Enum):
    """What a board report says of the vehicle."""

    GONE = auto()
    THERE = auto()
    BLIND = auto()  # the board cannot tell, e.g. while disabled


PRESENCE_NEXT = {
    (Presence.UNKNOWN, Seen.GONE): Presence.EMPTY,
    (Presence.UNKNOWN, Seen.THERE): Presence.PRESENT,  # P1-S1.6, S2.1
    (Presence.EMPTY, Seen.THERE): Presence.PRESENT,  # P1-S1.6, S2.1; IEC 61851-1 table A.6 sequence 1.1
    (Presence.PRESENT, Seen.GONE): Presence.EMPTY,  # IEC 61851-1 table A.6 sequence 2
}
PRESENCE_LATE = {
    (Presence.EMPTY, Seen.GONE), (Presence.PRESENT, Seen.THERE),
    (Presence.UNKNOWN, Seen.BLIND), (Presence.EMPTY, Seen.BLIND), (Presence.PRESENT, Seen.BLIND),
}


def seen(status: BoardStatus) -> Seen:
    """The report's word on the vehicle. A closed contactor means a vehicle, whatever else is said."""
    if status.closed:
        return Seen.THERE
    if status.plugged is None:
        return Seen.BLIND
    return Seen.THERE if status.plugged else Seen.GONE


def next_presence(state: Presence, event: Seen) -> Presence:
    """Next state. Every pair has a row."""
    return state if (state, event) in PRESENCE_LATE else PRESENCE_NEXT[state, event]


class Permission(Enum):
    """What the agent has asked of the contactor, and what it saw."""

    OPEN = auto()
    ASKED = auto()  # the board may close when the vehicle asks
    CLOSED = auto()
    OPENING = auto()  # withdrawn, not yet seen open
    BARRED = auto()  # a fault or silence: never ask until it is cleared


class Step(Enum):
    """What moves the permission."""

    ALLOWED = auto()
    WITHDRAWN = auto()
    SAW_CLOSED = auto()
    SAW_OPEN = auto()
    FORBIDDEN = auto()
    CLEARED = auto()


PERMISSION_NEXT = {
    (Permission.OPEN, Step.ALLOWED): Permission.ASKED,  # P1-S2.7, N3
    (Permission.OPEN, Step.SAW_CLOSED): Permission.OPENING,  # closed unasked: openevse-observed hazard 1
    (Permission.OPEN, Step.FORBIDDEN): Permission.BARRED,
    (Permission.ASKED, Step.WITHDRAWN): Permission.OPENING,  # it might close at this moment: wait until seen open
    (Permission.ASKED, Step.SAW_CLOSED): Permission.CLOSED,  # IEC 61851-1 table A.6 sequence 4
    (Permission.ASKED, Step.FORBIDDEN): Permission.BARRED,
    (Permission.CLOSED, Step.WITHDRAWN): Permission.OPENING,
    (Permission.CLOSED, Step.SAW_OPEN): Permission.ASKED,  # the vehicle paused: sequence 8.1
    (Permission.CLOSED, Step.FORBIDDEN): Permission.BARRED,
    (Permission.OPENING, Step.SAW_OPEN): Permission.OPEN,
    (Permission.OPENING, Step.FORBIDDEN): Permission.BARRED,
    (Permission.BARRED, Step.CLEARED): Permission.OPENING,
}
PERMISSION_LATE = {
    (Permission.OPEN, Step.WITHDRAWN), (Permission.OPEN, Step.SAW_OPEN), (Permission.OPEN, Step.CLEARED),
    (Permission.ASKED, Step.ALLOWED), (Permission.ASKED, Step.SAW_OPEN), (Permission.ASKED, Step.CLEARED),
    (Permission.CLOSED, Step.ALLOWED), (Permission.CLOSED, Step.SAW_CLOSED), (Permission.CLOSED, Step.CLEARED),
    (Permission.OPENING, Step.ALLOWED),  # only after it was seen open
    (Permission.OPENING, Step.WITHDRAWN), (Permission.OPENING, Step.SAW_CLOSED), (Permission.OPENING, Step.CLEARED),
    (Permission.BARRED, Step.ALLOWED), (Permission.BARRED, Step.WITHDRAWN), (Permission.BARRED, Step.SAW_CLOSED),
    (Permission.BARRED, Step.SAW_OPEN), (Permission.BARRED, Step.FORBIDDEN),
}
MAY_CLOSE = frozenset({Permission.ASKED, Permission.CLOSED})


def next_permission(state: Permission, event: Step) -> Permission:
    """Next state. Every pair has a row."""
    return state if (state, event) in PERMISSION_LATE else PERMISSION_NEXT[state, event]
