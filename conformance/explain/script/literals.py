"""Python literals, laid out to be read."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any


def indented(lines: Sequence[str], by: int) -> str:
    return "".join(f"{' ' * by}{line}\n" for line in lines)


def text(value: str) -> str:
    return json.dumps(value)


def literal(value: Any) -> str:
    """A dictionary with one entry a line, or anything else on one."""
    if isinstance(value, Mapping) and value:
        entries = (f"    {text(k)}: {literal(v)},\n" for k, v in value.items())
        if any(isinstance(v, Mapping) and v for v in value.values()):
            nested = (e.replace("\n", "\n    ").rstrip(" ") for e in entries)
            return "{\n" + "".join(nested) + "}"
        return "{\n" + "".join(entries) + "}"
    if isinstance(value, (list, tuple)):
        line = f"[{', '.join(map(literal, value))}]"
        if len(line) < 72:
            return line
        lines = textwrap.wrap(", ".join(map(literal, value)), 84)
        return "\n".join(["[", *(f"        {line.rstrip(',')}," for line in lines), "    ]"])
    return text(value) if isinstance(value, str) else repr(value)


def table(rows: tuple[tuple[int, ...], ...]) -> str:
    """Nested lists of numbers, a row or part of one to a line."""
    if len(rows) == 1 and len(rows[0]) <= 12:
        return f"[{list(rows[0])}]"
    lines: list[str] = []
    for row in rows:
        if len(row) <= 16:
            lines.append(f"    {list(row)},")
            continue
        wrapped = textwrap.wrap(", ".join(map(str, row)), 84)
        lines += ["    [", *(f"        {line.rstrip(',')}," for line in wrapped), "    ],"]
    return "\n".join(["[", *lines, "]"])


def rows(rows: Sequence[tuple[str, ...]]) -> str:
    body = "".join(f"    ({', '.join(map(text, row))}),\n" for row in rows)
    return f"[\n{body}]"
