"""What was explored, as Markdown, from the files of ``conformance vary``.

A page may keep the rows of an earlier one whose files are gone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conformance.errors import RecordsError
from conformance.vary.records import FILE_NAME, Failure, Run, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


def runs(folders: Sequence[Path]) -> list[Run]:
    """Every ``vary.jsonl`` in or below the folders, by architecture, twin, subject and version.

    Raises:
        RecordsError: there is none, or one is damaged.
    """
    paths = sorted({path for folder in folders for path in folder.rglob(FILE_NAME)})
    if not paths:
        raise RecordsError(
            f"no {FILE_NAME} in {', '.join(map(str, folders))}",
            "name the --out of earlier runs of `conformance vary`",
        )
    return sorted((read(path) for path in paths), key=_order)


def _order(run: Run) -> tuple[str, ...]:
    space = run.space
    return (_lens(run), space["architecture"].lower(), space["twin"], space["subject"])


def _lens(run: Run) -> str:
    return str(run.header["versions"].get("transformer-lens", ""))


def markdown(found: Sequence[Run], kept: Page | None = None) -> str:
    """The page: a table of what was explored, failures, refusals, what has no effect.

    Args:
        kept: an earlier page. Its rows stay, but those of an architecture, subject and version
            that ``found`` has.
    """
    page = Page(
        tuple(_line(run, _explored(run)) for run in found),
        tuple(_line(run, text) for run in found for text in _failures(run)),
        tuple(dict.fromkeys(_line(run, text) for run in found for text in _refusals(run))),
        tuple(_line(run, text) for run in found for text in _fields(run)),
        tuple(sorted({str(run.header["versions"].get("transformers", "")) for run in found})),
    )
    return (page.after(kept) if kept else page).markdown()


# --- the page -------------------------------------------------------------------------------------

_TITLE = "# Variants of configurations"
_EXPLORED, _FAILS, _REFUSED, _FIELDS = (
    "What was explored",
    "What fails",
    "What is refused",
    "Fields that say nothing here",
)
_COLUMNS = {
    _EXPLORED: (
        *("architecture", "twin", "subject", "fields", "values", "configurations", "passed"),
        *("failures", "known", "refused by the port", "refused by transformers"),
        *("pairs judged", "impossible", "not reached"),
    ),
    _FAILS: ("architecture", "subject", "smallest configuration", "what differs", "known as"),
}


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a table or an item of a list.

    Attributes:
        subject: with its version, as the page says it: ``bridge 4.3.0``.
        text: as it stands in the page.
    """

    architecture: str
    subject: str
    text: str

    @property
    def order(self) -> tuple[str, ...]:
        """By version, architecture and subject; several of one keep their order."""
        name, _, version = self.subject.rpartition(" ")
        return version, self.architecture.lower(), name


@dataclass(frozen=True, slots=True)
class Page:
    """The lines of each section, and the versions of transformers that they were made with."""

    explored: tuple[Line, ...]
    fails: tuple[Line, ...]
    refused: tuple[Line, ...]
    fields: tuple[Line, ...]
    transformers: tuple[str, ...]

    def after(self, earlier: Page) -> Page:
        """With what an earlier page has of other architectures, subjects and versions."""
        own = {(line.architecture, line.subject) for line in self.explored}

        def both(old: tuple[Line, ...], new: tuple[Line, ...]) -> tuple[Line, ...]:
            stay = [line for line in old if (line.architecture, line.subject) not in own]
            return tuple(sorted([*stay, *new], key=lambda line: line.order))

        return Page(
            both(earlier.explored, self.explored),
            both(earlier.fails, self.fails),
            both(earlier.refused, self.refused),
            both(earlier.fields, self.fields),
            tuple(sorted({*earlier.transformers, *self.transformers})),
        )

    def markdown(self) -> str:
        """As Markdown; :func:`page_from` reads it back."""
        parts = [
            _head(self),
            _section(_EXPLORED, self.explored),
            _section(_FAILS, self.fails) if self.fails else f"## {_FAILS}\n\nNothing.",
            _section(_REFUSED, self.refused),
            _section(_FIELDS, self.fields),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def page_from(text: str) -> Page:
    """The inverse of :meth:`Page.markdown`.

    Raises:
        RecordsError: it is no such page, or a line of it cannot be read.
    """
    if not text.startswith(_TITLE + "\n"):
        raise RecordsError("no page of variants", "was it written by `conformance vary --table`?")
    found: dict[str, list[Line]] = {t: [] for t in (_EXPLORED, _FAILS, _REFUSED, _FIELDS)}
    section = ""
    for number, row in enumerate(text.splitlines(), 1):
        if row.startswith("## "):
            section = row[3:]
        elif section in _COLUMNS and row.startswith("| "):
            cells = re.split(r"(?<!\\) \| ", row[2:])
            if cells[0] in (_COLUMNS[section][0], "---"):
                continue
            at = _COLUMNS[section].index("subject")
            if len(cells) != len(_COLUMNS[section]):
                raise RecordsError(f"line {number} has {len(cells)} cells", "write the page anew")
            found[section].append(Line(cells[0], cells[at], row))
        elif section in found and row.startswith("- "):
            named = re.match(r"- (\w+), (\S+ [^\s,:]+)[,:] ", row)
            if named is None:
                raise RecordsError(f"line {number} names no architecture", "write the page anew")
            found[section].append(Line(named[1], named[2], row))
    versions = re.search(r" with transformers (\S+(?: and \S+)*)\. A row is", text)
    if versions is None:
        raise RecordsError("the page names no version of transformers", "write the page anew")
    explored, fails, refused, fields = (tuple(lines) for lines in found.values())
    return Page(explored, fails, refused, fields, tuple(versions[1].split(" and ")))


def _head(page: Page) -> str:
    versions = sorted({line.subject.rpartition(" ")[2] for line in page.explored})
    return (
        f"{_TITLE}\n\n"
        "Written by `conformance vary --table` from the records of `conformance vary`, under "
        f"transformer-lens {' and '.join(versions)} with transformers "
        f"{' and '.join(page.transformers)}."
        " A row is one exploration: the twin as it is, each value alone, then rows of a pairwise "
        "covering array until the limit, each judged by weights, activations, components, logits, "
        "loss and the logits after weight processing, in promoted float64. *Pairs* are pairs of "
        "values that are not the twin's own: judged together, impossible because one of them is "
        "refused or fails alone or the two do together, and not reached within the limit."
    )


def _section(title: str, lines: Sequence[Line]) -> str:
    if not lines:
        return ""
    columns = _COLUMNS.get(title)
    above = [_row(columns), _row("---" for _ in columns)] if columns else []
    return "\n".join([f"## {title}", "", *above, *(line.text for line in lines)])


def _row(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


def _line(run: Run, text: str) -> Line:
    return Line(run.space["architecture"], _subject(run), text)


# --- of one run -----------------------------------------------------------------------------------


def _explored(run: Run) -> str:
    space, result = run.space, run.result
    outcomes = [_word(c.judged.outcome, c.judged.by) for c in run.configurations]
    counts: tuple[Any, ...] = ("cut short", "", "")
    if result is not None:
        counts = (f"{result.covered} of {result.pairs}", result.excluded, result.open)
    return _row(
        (
            space["architecture"],
            space["twin"],
            _subject(run),
            len(space["factors"]),
            sum(len(f["values"]) for f in space["factors"]),
            len(outcomes),
            outcomes.count("passed"),
            len(run.failures),
            sum(f.known is not None for f in run.failures),
            outcomes.count("refused by port"),
            outcomes.count("refused by transformers"),
            *counts,
        )
    )


def _word(outcome: str, by: str) -> str:
    return f"refused by {by}" if outcome == "refused" else outcome


def _failures(run: Run) -> list[str]:
    return [
        _row((run.space["architecture"], _subject(run), _choices(f), _what(f), _known(f)))
        for f in run.failures
    ]


def _subject(run: Run) -> str:
    return f"{run.space['subject']} {_lens(run)}"


def _choices(failure: Failure) -> str:
    return " or ".join(f"`{_said(choice)}`" for choice in (failure.choice, *failure.also))


def _said(choice: Any) -> str:
    return ", ".join(f"{k}={v}" for k, v in choice.items()) or "the twin as it is"


def _what(failure: Failure) -> str:
    d = failure.difference
    at = f" at `{d.site}`" if d.site else ""
    size = f", {d.measured:.1e}" if d.measured is not None else ""
    return f"{d.check}{at}{size}" + (f": {d.note}" if d.note else "")


def _known(failure: Failure) -> str:
    if failure.known is None:
        return "not known"
    name = failure.known.rsplit("/", 1)[-1].removesuffix(".md")
    link = failure.known.removeprefix("docs/")
    return f"[{name}]({link})" if failure.known.endswith(".md") else failure.known


def _refusals(run: Run) -> list[str]:
    lines = []
    least: list[set[tuple[str, str]]] = []
    for c in sorted(run.configurations, key=lambda c: len(c.choice)):
        if c.judged.outcome != "refused" or any(set(c.choice.items()) >= s for s in least):
            continue
        least.append(set(c.choice.items()))
        who = "the port" if c.judged.by == "port" else "transformers"
        lines.append(
            f"- {run.space['architecture']}, {_subject(run)}, `{_said(c.choice)}`: "
            f"{who}: {c.judged.reason}"
        )
    return lines


def _fields(run: Run) -> list[str]:
    parts = []
    if run.result is not None and run.result.effectless:
        said = ", ".join(
            f"`{name}={label}`"
            for name, labels in run.result.effectless.items()
            for label in labels
        )
        parts.append(f"without effect by themselves: {said}")
    if run.space["not_varied"]:
        said = ", ".join(f"`{n}` ({what})" for n, what in run.space["not_varied"].items())
        parts.append(f"not varied: {said}")
    if not parts:
        return []
    return [f"- {run.space['architecture']}, {_subject(run)}: {'; '.join(parts)}"]
