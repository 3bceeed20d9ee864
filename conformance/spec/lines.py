"""Where the tables of a TOML file begin: a parser of TOML does not tell."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r'"""(?:\\[\s\S]|[^\\])*?"{3,5}'
    r"|'''[\s\S]*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*"
    r"|[\[\]{}]"
)


@dataclass
class Place:
    """One ``[[name]]`` table: where its header begins, and the lines of its inline tables."""

    start: int
    line: int
    rows: list[int] = field(default_factory=list)


def places(text: str, name: str) -> list[Place]:
    """The ``[[name]]`` tables of a file that is valid TOML, in order.

    Only inline tables that stand directly in an array count as rows; a table written in any other
    way is not found, so a caller compares the numbers with those of the parsed file.
    """
    header = re.compile(rf"\[\[[ \t]*([\"']?){re.escape(name)}\1[ \t]*\]\]")
    found: list[Place] = []
    depth, inside = 0, False
    line, counted = 1, 0
    for token in _TOKEN.finditer(text):
        line += text.count("\n", counted, token.start())
        counted = token.start()
        match token[0]:
            case "[" | "{" as bracket:
                begin = text.rfind("\n", 0, token.start()) + 1
                alone = not text[begin : token.start()].strip()
                if depth == 0 and alone:
                    inside = bool(header.match(text, token.start()))
                    if inside:
                        found.append(Place(begin, line))
                elif depth == 1 and bracket == "{" and inside:
                    found[-1].rows.append(line)
                depth += 1
            case "]" | "}":
                depth -= 1
    return found
