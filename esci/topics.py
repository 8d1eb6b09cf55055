"""MQTT topics of the contract, version 1 (DESIGN section 3)."""

from typing import NamedTuple

ROOT = "esci/1"
UP_KINDS = ("hello", "bind.request", "bind.ack", "eumd.ack", "records", "reply")
DOWN_KINDS = (
    "bind.confirm", "bind.reject", "eumd.detect", "params", "tariff", "price", "dsm", "limit", "command", "ack")
ALL_UP = f"{ROOT}/+/up/+"


class Address(NamedTuple):
    """What a topic says: whose, which way, what."""

    device: str
    direction: str
    kind: str


def up(device: str, kind: str) -> str:
    """Topic on which the device speaks to the utility."""
    if kind not in UP_KINDS:
        raise ValueError(f"{kind} is not an upward kind")
    return f"{ROOT}/{device}/up/{kind}"


def down(device: str, kind: str) -> str:
    """Topic on which the utility speaks to the device."""
    if kind not in DOWN_KINDS:
        raise ValueError(f"{kind} is not a downward kind")
    return f"{ROOT}/{device}/down/{kind}"


def all_down(device: str) -> str:
    """Filter with everything that the utility says to the device."""
    return f"{ROOT}/{device}/down/+"


def state(device: str) -> str:
    """Retained topic (and last will) with the device's present state, unsealed."""
    return f"{ROOT}/{device}/state"


def parse(topic: str) -> Address | None:
    """The address that a topic spells; None when it is none of ours."""
    parts = topic.split("/")
    if len(parts) == 5 and parts[:2] == ["esci", "1"]:
        _, _, device, direction, kind = parts
        known = {"up": UP_KINDS, "down": DOWN_KINDS}.get(direction, ())
        return Address(device, direction, kind) if kind in known else None
    return None
