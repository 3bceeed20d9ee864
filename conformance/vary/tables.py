"""What was explored, as Markdown, from the files of ``conformance vary`` alone."""

from __future__ import annotations

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


def markdown(found: Sequence[Run]) -> str:
    """The page: a table of what was explored, failures, refusals, what has no effect."""
    parts = [_head(found), _table(found), _failures(found), _refusals(found), _fields(found)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _head(found: Sequence[Run]) -> str:
    versions = sorted({_lens(run) for run in found})
    transformers = sorted({str(run.header["versions"].get("transformers", "")) for run in found})
    return (
        "# Variants of configurations\n\n"
        "Written by `conformance vary --table` from the records of `conformance vary`, under "
        f"transformer-lens {' and '.join(versions)} with transformers {' and '.join(transformers)}."
        " A row is one exploration: the twin as it is, each value alone, then rows of a pairwise "
        "covering array until the limit, each judged by weights, activations, components, logits, "
        "loss and the logits after weight processing, in promoted float64. *Pairs* are pairs of "
        "values that are not the twin's own: judged together, impossible because one of them is "
        "refused or fails alone or the two do together, and not reached within the limit."
    )


def _row(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


def _table(found: Sequence[Run]) -> str:
    columns = (
        *("architecture", "twin", "subject", "fields", "values", "configurations", "passed"),
        *("failures", "known", "refused by the port", "refused by transformers"),
        *("pairs judged", "impossible", "not reached"),
    )
    lines = ["## What was explored", "", _row(columns), _row("---" for _ in columns)]
    for run in found:
        space, result = run.space, run.result
        outcomes = [_word(c.judged.outcome, c.judged.by) for c in run.configurations]
        known = sum(f.known is not None for f in run.failures)
        counts: tuple[Any, ...] = ("cut short", "", "")
        if result is not None:
            counts = (f"{result.covered} of {result.pairs}", result.excluded, result.open)
        lines.append(
            _row(
                (
                    space["architecture"],
                    space["twin"],
                    f"{space['subject']} {_lens(run)}",
                    len(space["factors"]),
                    sum(len(f["values"]) for f in space["factors"]),
                    len(outcomes),
                    outcomes.count("passed"),
                    len(run.failures),
                    known,
                    outcomes.count("refused by port"),
                    outcomes.count("refused by transformers"),
                    *counts,
                )
            )
        )
    return "\n".join(lines)


def _word(outcome: str, by: str) -> str:
    return f"refused by {by}" if outcome == "refused" else outcome


def _failures(found: Sequence[Run]) -> str:
    columns = ("architecture", "subject", "smallest configuration", "what differs", "known as")
    rows = [
        _row((run.space["architecture"], _subject(run), _choices(f), _what(f), _known(f)))
        for run in found
        for f in run.failures
    ]
    if not rows:
        return "## What fails\n\nNothing."
    return "\n".join(["## What fails", "", _row(columns), _row("---" for _ in columns), *rows])


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


def _refusals(found: Sequence[Run]) -> str:
    lines: dict[str, None] = {}
    for run in found:
        least: list[set[tuple[str, str]]] = []
        for c in sorted(run.configurations, key=lambda c: len(c.choice)):
            if c.judged.outcome != "refused" or any(set(c.choice.items()) >= s for s in least):
                continue
            least.append(set(c.choice.items()))
            who = "the port" if c.judged.by == "port" else "transformers"
            lines[
                f"- {run.space['architecture']}, {_subject(run)}, `{_said(c.choice)}`: "
                f"{who}: {c.judged.reason}"
            ] = None
    return "\n".join(["## What is refused", "", *lines]) if lines else ""


def _fields(found: Sequence[Run]) -> str:
    lines = ["## Fields that say nothing here", ""]
    for run in found:
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
        if parts:
            lines.append(f"- {run.space['architecture']}, {_subject(run)}: {'; '.join(parts)}")
    return "\n".join(lines) if len(lines) > 2 else ""
