"""What a scenario, a test or a person can do to the world while it runs.

One table of deeds; an unknown deed or a bad argument is a value (`Refused`), never an exception. Pure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from firmware_sim.board_state import Load
from firmware_sim.vehicle import MJ_PER_WH, Vehicle
from firmware_sim.world import World

JUMP_LIMIT_WH = 100_000_000
Arguments = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Done:
    """The deed was done."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The deed was not done; `sentence` says why."""

    sentence: str


Outcome = Done | Refused
Deed = Callable[[World, Arguments], Outcome]
DONE = Done()


def do(world: World, name: str, arguments: Arguments) -> Outcome:
    """Does the deed called `name`."""
    deed = DEEDS.get(name)
    if deed is None:
        return Refused(f"unknown deed {name!r}; known are {', '.join(sorted(DEEDS))}")
    return deed(world, arguments)


def _vehicle(world: World, arguments: Arguments) -> Vehicle | Refused:
    name = arguments.get("vehicle")
    found = world.vehicles.get(name) if isinstance(name, str) else None
    if found is not None:
        return found
    return Refused(f"no vehicle {name!r}; the scenario has {', '.join(sorted(world.vehicles)) or 'none'}")


def _whole(arguments: Arguments, name: str) -> int | Refused:
    value = arguments.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return Refused(f"{name} must be a whole number, not {value!r}")


def _plug(world: World, arguments: Arguments) -> Outcome:
    vehicle = _vehicle(world, arguments)
    if isinstance(vehicle, Refused):
        return vehicle
    other = world.plugged
    if other is not None and other is not vehicle:
        return Refused(f"{other.model.name} is in the socket; unplug it first")
    if not vehicle.plugged:
        vehicle.plug()
    return DONE


def _unplug(world: World, arguments: Arguments) -> Outcome:
    vehicle = _vehicle(world, arguments) if "vehicle" in arguments else world.plugged
    if isinstance(vehicle, Refused):
        return vehicle
    if vehicle is not None:
        vehicle.unplug()
    return DONE


def _set_soc(world: World, arguments: Arguments) -> Outcome:
    vehicle, percent = _vehicle(world, arguments), _whole(arguments, "percent")
    if isinstance(vehicle, Refused):
        return vehicle
    if isinstance(percent, Refused) or not 0 <= percent <= 100:
        return Refused("percent must be a whole number from 0 to 100")
    vehicle.set_soc(percent)
    return DONE


def _want(wants: bool) -> Deed:
    def deed(world: World, arguments: Arguments) -> Outcome:
        vehicle = _vehicle(world, arguments)
        if isinstance(vehicle, Refused):
            return vehicle
        vehicle.wants_charge = wants
        return DONE

    return deed


def _meter_unplugged(unplugged: bool) -> Deed:
    def deed(world: World, _: Arguments) -> Outcome:
        world.meter.unplugged = unplugged
        return DONE

    return deed


def _meter_frozen(world: World, arguments: Arguments) -> Outcome:
    world.meter.frozen_mj = world.shown_register_mj if arguments.get("on", True) else None
    return DONE


def _meter_garbage(world: World, arguments: Arguments) -> Outcome:
    world.meter.garbage = bool(arguments.get("on", True))
    return DONE


def _meter_reset(world: World, _: Arguments) -> Outcome:
    world.meter.offset_mj = -world.register_mj
    return DONE


def _meter_jump(world: World, arguments: Arguments) -> Outcome:
    jump_wh = _whole(arguments, "wh")
    if isinstance(jump_wh, Refused) or abs(jump_wh) > JUMP_LIMIT_WH:
        return Refused(f"wh must be a whole number from {-JUMP_LIMIT_WH} to {JUMP_LIMIT_WH}")
    world.meter.offset_mj += jump_wh * MJ_PER_WH
    return DONE


def _board_fault(world: World, arguments: Arguments) -> Outcome:
    name, on = arguments.get("fault"), bool(arguments.get("on", True))
    inputs = world.board.inputs
    vehicle = world.plugged
    if name == "ground_fault":
        world.board.set_ground_fault(on)
    elif name == "no_ground":
        inputs.ground = not on
    elif name == "weld":
        inputs.welded = on
    elif name == "relay_dead":
        inputs.relay_dead = on
    elif name == "diode":
        inputs.diode = not on
    elif name == "self_test":
        inputs.self_test_fails = on
    elif name == "pilot_short":
        world.line_short = on
    elif name in ("ventilation", "over_current"):
        if vehicle is None:
            return Refused(f"{name} needs a vehicle in the socket")
        if name == "ventilation":
            vehicle.fault_load = Load.D if on else None
        else:
            vehicle.follows_pilot = not on
    else:
        return Refused(
            f"unknown board fault {name!r}; known are diode, ground_fault, no_ground, over_current, pilot_short, "
            "relay_dead, self_test, ventilation, weld"
        )
    return DONE


def _temperature(world: World, arguments: Arguments) -> Outcome:
    celsius = _whole(arguments, "celsius")
    if isinstance(celsius, Refused) or not -40 <= celsius <= 125:
        return Refused("celsius must be a whole number from -40 to 125")
    world.board.inputs.temperature_mc = celsius * 1000
    return DONE


def _board_power(on: bool) -> Deed:
    def deed(world: World, _: Arguments) -> Outcome:
        if on and not world.board.powered:
            world.board.power_on()
        elif not on:
            world.board.power_off()
        return DONE

    return deed


DEEDS: dict[str, Deed] = {
    "plug": _plug,
    "unplug": _unplug,
    "set_soc": _set_soc,
    "want_charge": _want(True),
    "want_nothing": _want(False),
    "meter_unplug": _meter_unplugged(True),
    "meter_plug": _meter_unplugged(False),
    "meter_frozen": _meter_frozen,
    "meter_garbage": _meter_garbage,
    "meter_reset": _meter_reset,
    "meter_jump": _meter_jump,
    "board_fault": _board_fault,
    "temperature": _temperature,
    "board_power_off": _board_power(False),
    "board_power_on": _board_power(True),
}
