"""The JSON Schema of a line of ``records.jsonl``, made from the records' own types.

``records.schema.json`` beside this file is what :func:`records_schema` returns; a test says so.
"""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from conformance.records import (
    SCHEMA_VERSION,
    Comparison,
    Footer,
    Header,
    JudgementSummary,
    Name,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The kinds of line.
_LINES = (Header, Name, Verdict, Footer)
#: How JSON spells the numbers that it has no literals for.
NOT_FINITE = ("nan", "inf", "-inf")


def records_schema() -> dict[str, Any]:
    """A schema (draft 2020-12) that every line of a records file obeys, whatever its kind.

    That the header comes first, once, and the footer last, no schema of a line can say.
    """
    from pydantic import TypeAdapter

    _, made = TypeAdapter.json_schemas(
        [(kind.__name__, "validation", TypeAdapter(kind)) for kind in _LINES],
        ref_template="#/$defs/{model}",
    )
    definitions = {name: _with_numbers(made["$defs"][name]) for name in sorted(made["$defs"])}
    for kind in (*_LINES, Comparison, JudgementSummary):
        definitions[kind.__name__] |= {
            "description": inspect.cleandoc(kind.__doc__ or ""),
            "additionalProperties": False,
        }
    for name in (kind.__name__ for kind in _LINES):
        definitions[name]["required"] = [*definitions[name].get("required", ()), "kind"]
    definitions["Header"]["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    definitions["Header"]["required"].append("schema_version")
    definitions["Number"] = {
        "description": "A number; what JSON has no literal for is a string.",
        "anyOf": [{"type": "number"}, {"enum": list(NOT_FINITE)}],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A line of records.jsonl, version {SCHEMA_VERSION}",
        "oneOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in _LINES],
        "$defs": dict(sorted(definitions.items())),
    }


def text() -> str:
    """The schema as the file has it."""
    return json.dumps(records_schema(), indent=2, ensure_ascii=False) + "\n"


def _with_numbers(schema: Any) -> Any:
    """Every number may be spelt as a string, and titles that repeat a name are left out."""
    if isinstance(schema, list):
        return [_with_numbers(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "number":
        return {"$ref": "#/$defs/Number"} | _default(schema)
    return {
        key: _with_numbers(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }


def _default(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"default": schema["default"]} if "default" in schema else {}
