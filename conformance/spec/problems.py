"""What is wrong in ``models.toml`` or its ledger: each problem with its place and a hint."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import ValidationError

from conformance.checks.names import CHECKS
from conformance.errors import SpecError
from conformance.spec.tables import (
    EVERY_CHECK,
    ID_HINT,
    SHA256_HINT,
    Memory,
    Showing,
    Table,
    WheelPackage,
    WheelSource,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic_core import ErrorDetails


#: Tables of models.toml of which there are many.
_KINDS = ("model", "name", "gap", "tier")


class Report:
    """Collects problems; each is a place, what is wrong there, and what would be right."""

    def __init__(self, text: str, raw: Mapping[str, Any]) -> None:
        self._problems: list[str] = []
        self._models = raw.get("model")
        self._lines = {kind: _lines(text, kind, raw.get(kind)) for kind in _KINDS}

    def where(self, index: int) -> str:
        """``model[3] (id "x")``."""
        table = self._models[index] if isinstance(self._models, list) else None
        name = table.get("id") if isinstance(table, Mapping) else None
        return f"model[{index}]" + (f" (id {quote(name)})" if isinstance(name, str) else "")

    def line(self, index: int) -> int | None:
        """The line of the header of a ``[[model]]`` table, where it is known."""
        return self._line("model", index)

    def _line(self, kind: str, index: int) -> int | None:
        lines = self._lines[kind]
        return lines[index] if lines else None

    def line_of(self, place: str) -> int | None:
        """The line of what a place such as ``model[3].source`` stands in, where it is known."""
        table = re.match(rf"({'|'.join(_KINDS)})\[(\d+)\]", place)
        return self._line(table[1], int(table[2])) if table else None

    def add(self, place: str, message: str, hint: str) -> None:
        line = self.line_of(place)
        self._problems.append(
            (f"line {line}: " if line else "") + f"{place}: {message} \N{EM DASH} {hint}"
        )

    def said(self, path: Path) -> str:
        """All problems, under the name of the file; nothing where there are none."""
        count = len(self._problems)
        if not count:
            return ""
        listed = "".join(f"\n  {problem}" for problem in self._problems)
        return f"{path}: {count} problem{'s' if count > 1 else ''}{listed}"


def raise_if_any(reports: Mapping[Path, Report]) -> None:
    """Raise what is wrong in any of several files, all at once."""
    said = [text for path, report in reports.items() if (text := report.said(path))]
    if said:
        files = "file" if len(said) == 1 else "files"
        raise SpecError("\n".join(said), f"correct the {files}; nothing was run")


def _lines(text: str, kind: str, tables: object) -> list[int]:
    """The lines of the headers of one kind of table, where they are known."""
    header = re.compile(rf"""\s*\[\[\s*["']?{kind}["']?\s*\]\]""")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if header.match(line)]
    # Inline arrays or a multi-line string may hold or hide headers: then better no line.
    return lines if isinstance(tables, list) and len(lines) == len(tables) else []


def key_of(name: str) -> str:
    """A key as TOML would have it written."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else quote(name)


def quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def suggest(word: object, known: Iterable[str]) -> str:
    """``did you mean "x"?`` when something known is near, otherwise all that is known."""
    names = list(known)
    near = difflib.get_close_matches(str(word).lower(), names, n=2)
    return (
        f"did you mean {' or '.join(map(quote, near))}?" if near else f"known: {', '.join(names)}"
    )


def unknown_keys(
    table: Mapping[str, Any], known: Sequence[str], where: str, report: Report
) -> None:
    for key in table:
        if key not in known:
            report.add(f"{where}{key_of(key)}", "unknown key", suggest(key, known))


T = TypeVar("T", bound=Table)


def validate(table: type[T], raw: object, where: str, report: Report) -> T | None:
    try:
        return table.model_validate(raw)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["type"] == "too_short" and detail["input"]:
                continue  # pydantic counts the valid items only; each invalid one is reported
            location = "".join(
                f"[{part}]" if isinstance(part, int) else f".{key_of(part)}"
                for part in detail["loc"]
            )
            report.add(where + location, *_explain(table, detail))
        return None


_NESTED: Mapping[str, type[Table]] = {
    "packages": WheelPackage,
    "shows": Showing,
    "memories": Memory,
}
_MISSING_HINTS: Mapping[str, str] = {
    "id": f"a name that never changes: {ID_HINT}",
    "architecture": 'the HuggingFace class, such as "LlamaForCausalLM"',
    "revision": "pin the 40 hexadecimal digits of a commit, so that every run sees one model",
    "format": f"one of {', '.join(get_args(WheelSource.model_fields['format'].annotation))}",
    "packages": 'list of {requirement = "name==version", sha256 = "...", members = ["..."]}',
    "requirement": 'write "name==version"',
    "sha256": SHA256_HINT,
    "subject": "the subject that is expected to fail",
    "check": f'one of {", ".join(CHECKS)}; or "{EVERY_CHECK}" for all of them',
    "reason": "say what is wrong, in a sentence",
    "link": "where the defect is described: a page of docs/findings or an issue",
    "loader": 'write "package.module:function"',
    "shows": 'list of {subject = "...", check = "...", models = ["..."]}',
    "models": "ids of models, or globs of them",
    "memories": 'list of {kind = "cpu" or "gpu", bytes = 12_700_000_000}',
    "kind": '"cpu" for RAM, "gpu" for a GPU\'s memory',
    "bytes": "as an integer, such as 16_000_000_000",
    "hub": 'the repository, as in "EleutherAI/pythia-70m"',
}
_WANTED: Mapping[str, tuple[str, str]] = {
    "string_type": ("a string", "put it in quotes"),
    "tuple_type": ("an array", "put it in square brackets"),
    "int_type": ("an integer", "write it without quotes"),
    "bool_type": ("a boolean", "write true or false, without quotes"),
    "path_type": ("a string", "put it in quotes"),
    "model_type": ("a table", "write a [table] or {key = value}"),
    "mapping_type": ("a table", "write a [table] or {key = value}"),
}


def _explain(table: type[Table], detail: ErrorDetails) -> tuple[str, str]:
    """What is wrong and what would be right, in TOML's words instead of pydantic's."""
    kind, location, value = detail["type"], detail["loc"], detail["input"]
    context = detail.get("ctx", {})
    key = str(location[-1]) if location else ""
    if kind == "conformance":
        return str(context["text"]), str(context["hint"])
    if kind == "missing":
        return "missing", _MISSING_HINTS.get(key, "this key is required")
    if kind == "extra_forbidden":
        owner = _NESTED.get(str(location[-3]), table) if len(location) > 2 else table
        return "unknown key", suggest(key, owner.model_fields)
    if kind == "literal_error":
        known = [part.strip("' ") for part in re.split(r", | or ", str(context["expected"]))]
        return f"{value!r} is not allowed", f"one of {', '.join(known)}"
    if kind in ("string_too_short", "too_short"):
        return "is empty", "leave the key out, or give it a value"
    if kind == "greater_than_equal":
        return f"{value!r} is too small", f"at least {context['ge']}"
    if kind in _WANTED:
        wanted, hint = _WANTED[kind]
        if key in _NESTED and isinstance(value, Mapping):
            hint = f"write an array of tables: {key} = [{{...}}, {{...}}]"
        return f"{kind_of(value)}, must be {wanted}", hint
    return detail["msg"], "see the description of this table"


def kind_of(value: object) -> str:
    """What a value is, in TOML's words: ``is a string``."""
    for types, word in (
        (bool, "a boolean"),
        (str, "a string"),
        (int, "an integer"),
        (float, "a float"),
        (list, "an array"),
        (Mapping, "a table"),
    ):
        if isinstance(value, types):
            return f"is {word}"
    return "is a date or time"
