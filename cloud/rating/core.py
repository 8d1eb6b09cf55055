"""Chooses the tariff version in force on a day. Pure; it must not load plans or rate usage (P1-S1.3, P1-S3.3)."""

from collections.abc import Mapping
from datetime import date

from esci.tariff import TariffDocument


def choose(plans: Mapping[tuple[str, str], TariffDocument], code: str, at_local_date: date) -> TariffDocument | None:
    """The version of `code` in force on that day at the tariff's place; None when none is: nothing else may be billed.

    Where two versions cover the day the one that took effect later wins, as a filing supersedes the one before it.
    """
    day = at_local_date.isoformat()  # ISO dates of four-digit years compare as text
    found = [
        document
        for document in plans.values()
        if document.code == code
        and document.effective_from <= day
        and (document.effective_to is None or day < document.effective_to)
    ]
    return max(found, key=lambda document: (document.effective_from, document.version), default=None)
