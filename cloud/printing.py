"""What `evse-cloud` prints: any answer of a service, as JSON or as text for people. It must not ask for anything."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass

import typer
from pydantic import BaseModel


def show(value: object, as_json: bool) -> None:
    """Print the value as JSON, or as lines and tables for people."""
    plain = _plain(value)
    typer.echo(json.dumps(plain) if as_json else "\n".join(_text(plain)))


def _plain(value: object) -> object:
    """The value as JSON knows it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | bool | None) else str(value)


def _text(value: object, indent: str = "") -> Iterator[str]:
    """Lines for people: `name: value` for an object, a table for a list of objects."""
    if isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, dict | list):
                yield f"{indent}{name}:"
                yield from _text(item, indent + "  ")
            else:
                yield f"{indent}{name}: {_cell(item)}"
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        names = list(value[0])
        rows = [names, *([_cell(item.get(name)) for name in names] for item in value)]
        widths = [max(len(row[place]) for row in rows) for place in range(len(names))]
        for row in rows:
            yield (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
    elif isinstance(value, list):
        yield from (indent + _cell(item) for item in value) if value else (f"{indent}none",)
    else:
        yield indent + _cell(value)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
