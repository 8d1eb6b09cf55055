"""The SDM630's map equals the collected register table; its words decode to known values."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from agent.drivers import meter

SHARED = Path(os.environ.get("PLUGBIND_SHARED", Path(__file__).parents[2].parent / "shared"))
NAMES = {"energy_import": "import_kwh", "power": "power_total", "frequency": "frequency"} | {
    f"{kind}_l{phase}": f"{kind}_l{phase}" for kind in ("voltage", "current") for phase in (1, 2, 3)}


def reference() -> Any:
    """The SDM630's entry, which is not part of the project."""
    path = SHARED / "facts" / "meters.json"
    if not path.is_file():
        pytest.skip(f"{path} is not here: set PLUGBIND_SHARED to the folder that holds facts/")
    return json.loads(path.read_text(encoding="utf-8"))["meters"]["eastron_sdm630_v2"]


def test_map_is_the_collected_register_table() -> None:
    table, ours = reference(), meter.load_map("eastron_sdm630")
    assert set(ours.points) == set(NAMES)
    for name, point in ours.points.items():
        theirs = table["registers"][NAMES[name]]
        assert (point.address, point.unit, point.type, point.registers) == (
            theirs["address"], theirs["unit"], theirs["type"].replace("float", "f"), theirs["count"])
    assert ours.function_code == table["function_code"]
    assert ours.max_block_registers == table["max_block_registers"]
    assert ours.min_gap_ms == table["min_gap_ms"]
    assert ours.identity is not None
    assert ours.identity.address == table["holding"]["serial_number"]["address"]
    serial = table["serial"]
    assert (ours.serial.baud, ours.serial.parity, ours.serial.stop_bits, ours.serial.unit_id) == (
        serial["baud"], serial["parity"], serial["stop"], serial["address"])


@pytest.mark.parametrize(("name", "words", "value"), [
    # Computed by hand from IEEE 754 single precision, not captured from a meter.
    ("voltage_l1", [0x4366, 0x3333], 230_200),  # 230.2 V
    ("power", [0x0000, 0x0000], 0),
    ("power", [0xC47A, 0x0000], -1000),  # a meter wired upside down
    ("current_l1", [0x4180, 0x0000], 16_000),
    ("frequency", [0x4248, 0x0000], 50_000),
    ("energy_import", [0x3F80, 0x0000], 1_000),  # 1 kWh
    ("energy_import", [0x471C, 0x4000], 40_000_000),  # 40 000 kWh, where one step is 3.9 Wh
    ("energy_import", [0x471C, 0x4001], 40_000_004),
    ("energy_import", [0x7FC0, 0x0000], None),  # NaN
    ("energy_import", [0x7F80, 0x0000], None),  # infinity
])
def test_words_decode(name: str, words: list[int], value: int | None) -> None:
    assert meter.decode(meter.load_map("eastron_sdm630").points[name], words) == value
