"""Identifiers and their forms. A VIN carries a check digit (ISO 3779, 49 CFR 565.15), so a typing slip is found."""

import re
from typing import Annotated

from pydantic import StringConstraints

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
DeviceId = Annotated[str, StringConstraints(pattern=_NAME)]
PremisesId = Annotated[str, StringConstraints(pattern=_NAME)]
Name = Annotated[str, StringConstraints(pattern=_NAME)]
PevId = Annotated[str, StringConstraints(pattern=r"^[A-HJ-NPR-Z0-9]{17}$")]
MessageId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_UTC = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"
UtcText = Annotated[str, StringConstraints(pattern=_UTC)]

_VALUES = {letter: value for value, letters in {
    1: "AJ", 2: "BKS", 3: "CLT", 4: "DMU", 5: "ENV", 6: "FW", 7: "GPX", 8: "HY", 9: "RZ"}.items() for letter in letters}
_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)


def check_name(text: str) -> str:
    """The same text. Raises ValueError when it cannot stand in a topic or certificate."""
    if not re.fullmatch(_NAME, text):
        raise ValueError(f"{text!r} is not a name: 1 to 64 letters, digits, dots, dashes or underscores")
    return text


def check_vin(text: str) -> str:
    """The VIN in upper case. Raises ValueError that names the wrong position (P1-S1.1)."""
    vin = text.strip().upper()
    if len(vin) != 17:
        raise ValueError(f"a VIN has 17 characters, this one has {len(vin)}: {vin}")
    for position, letter in enumerate(vin, 1):
        if not (letter.isdigit() and letter.isascii()) and letter not in _VALUES:
            raise ValueError(f"position {position} of the VIN cannot be {letter!r} (I, O and Q are not used): {vin}")
    expected = vin_check_digit(vin)
    if vin[8] != expected:
        raise ValueError(f"position 9 (check digit) of the VIN is {vin[8]}, the other 16 need {expected}: "
                         f"look for a slip: {vin}")
    return vin


def vin_check_digit(vin: str) -> str:
    """`0`..`9` or `X`: the ninth character that the other sixteen call for (49 CFR 565.15 (c)(4))."""
    total = sum(weight * (_VALUES.get(letter) or int(letter)) for weight, letter in zip(_WEIGHTS, vin, strict=True)
                if weight)
    return "X" if total % 11 == 10 else str(total % 11)
