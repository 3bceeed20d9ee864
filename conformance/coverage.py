"""What the installed TransformerLens supports and ``models.toml`` does not cover, and why.

Architectures are those that TransformerBridge has an adapter for. Official names are
``transformer_lens.supported_models.OFFICIAL_MODEL_NAMES``: a list kept by hand, the names that
TransformerLens promises. The larger registry beside it (``tools/model_registry``) is no such
promise: a program fills it with whatever repository states a supported architecture.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from conformance.spec import Gap, Spec


@dataclass(frozen=True, slots=True)
class Supported:
    """What one version of TransformerLens says that it supports."""

    version: str
    architectures: frozenset[str]
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Part:
    """One half of the question: architectures, or names.

    Attributes:
        kind: ``architecture`` or ``name``.
        supported: how many TransformerLens supports.
        covered: those of them that an entry covers.
        excused: reason -> those that a ``[[gap]]``, or a ``[[name]]`` that is not judged, gives it
            for; entries that cover nothing may be among them.
        missing: supported, not covered, and no reason given.
        empty: what entries name and TransformerLens does not support, and no reason given.
        stale: globs of ``[[gap]]`` tables that excuse nothing, though their version is installed.
    """

    kind: str
    supported: int
    covered: tuple[str, ...]
    excused: Mapping[str, tuple[str, ...]]
    missing: tuple[str, ...]
    empty: tuple[str, ...]
    stale: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every gap has a reason and every entry and reason a use."""
        return not (self.missing or self.empty or self.stale)


@dataclass(frozen=True, slots=True)
class Coverage:
    """The answer for one version of TransformerLens."""

    version: str
    architectures: Part
    names: Part

    @property
    def ok(self) -> bool:
        """Whether the gate passes."""
        return self.architectures.ok and self.names.ok

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "transformer_lens": self.version,
            "ok": self.ok,
            "architectures": _part(self.architectures),
            "names": _part(self.names),
        }


def installed() -> Supported:
    """What the installed TransformerLens supports. Importing it takes seconds.

    Raises:
        ImplementationError: there is none, or its lists are not where they were.
    """
    from importlib import metadata

    from conformance.errors import ImplementationError

    try:
        from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
        from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES
    except ImportError as error:
        raise ImplementationError(
            f"the lists of what TransformerLens supports cannot be read: {error}",
            "pip install 'transformer-lens>=3.9,<5'; of a later one, teach conformance/coverage.py "
            "where the lists are",
        ) from error
    return Supported(
        metadata.version("transformer-lens"),
        frozenset(SUPPORTED_ARCHITECTURES),
        frozenset(OFFICIAL_MODEL_NAMES),
    )


def coverage(spec: Spec, supported: Supported) -> Coverage:
    """Compare ``models.toml`` with what TransformerLens supports.

    An architecture is covered if a ``[[model]]`` has it, a name if its ``[[name]]`` has a twin.
    """
    gaps = [gap for gap in spec.gaps if _applies(gap, supported.version)]
    return Coverage(
        supported.version,
        _compare(
            "architecture",
            supported.architectures,
            covers={model.architecture for model in spec.models},
            listed={},
            gaps=[(glob, gap.reason) for gap in gaps for glob in gap.architectures or ()],
        ),
        _compare(
            "name",
            supported.names,
            covers={name.hub for name in spec.names if name.twin},
            listed={name.hub: name.not_judged for name in spec.names if name.not_judged},
            gaps=[(glob, gap.reason) for gap in gaps for glob in gap.names or ()],
        ),
    )


def text(found: Coverage) -> str:
    """For people: counts, gaps by reason, and last what has to be done."""
    lines = [f"transformer-lens {found.version}"]
    for part in (found.architectures, found.names):
        excused = sum(map(len, part.excused.values()))
        lines += [
            "",
            f"{part.kind}s: {part.supported} supported, {len(part.covered)} covered, "
            f"{excused} not and with a reason, {len(part.missing)} without",
        ]
        for reason, those in part.excused.items():
            lines += [f"  {reason} ({len(those)})", *_wrapped(" ".join(those))]
    for part in (found.architectures, found.names):
        lines += _to_do(part)
    said = "every gap has a reason" if found.ok else "models.toml does not cover what it should"
    return "\n".join([*lines, "", said])


def _compare(
    kind: str,
    supported: frozenset[str],
    covers: set[str],
    listed: Mapping[str, str],
    gaps: list[tuple[str, str]],
) -> Part:
    """One half.

    Args:
        covers: what entries cover, supported or not.
        listed: entry that covers nothing and says why -> its reason.
        gaps: globs of ``[[gap]]`` tables, each with its reason.
    """
    excused: dict[str, list[str]] = {}
    missing: list[str] = []
    empty: list[str] = []
    used: set[str] = set()
    for item in sorted(supported ^ {*covers, *listed}, key=str.casefold):
        reasons = [(glob, reason) for glob, reason in gaps if fnmatchcase(item, glob)]
        used.update(glob for glob, _ in reasons)
        if reasons:
            excused.setdefault(reasons[0][1], []).append(item)
        else:
            (missing if item in supported else empty).append(item)
    for item in supported & {*listed}:
        excused.setdefault(listed[item], []).append(item)
    return Part(
        kind=kind,
        supported=len(supported),
        covered=tuple(sorted(supported & covers, key=str.casefold)),
        excused={why: tuple(sorted(excused[why], key=str.casefold)) for why in sorted(excused)},
        missing=tuple(missing),
        empty=tuple(empty),
        stale=tuple(glob for glob, _ in gaps if glob not in used),
    )


def _applies(gap: Gap, version: str) -> bool:
    wanted = gap.transformer_lens
    return wanted is None or SpecifierSet(wanted).contains(version, prereleases=True)


def _to_do(part: Part) -> Iterator[str]:
    table = "[[model]]" if part.kind == "architecture" else "[[name]]"
    for items, said in (
        (part.missing, f"supported, and not covered: add a {table}, or a [[gap]] with its reason"),
        (part.empty, f"in a {table}, and not supported: correct or remove it, or give a [[gap]]"),
        (part.stale, "in a [[gap]] that excuses nothing: remove it there, or bound its version"),
    ):
        if items:
            yield from ("", f"{part.kind}s {said}", *_wrapped(" ".join(items)))


def _wrapped(words: str) -> list[str]:
    return textwrap.wrap(
        words,
        88,
        initial_indent="    ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _part(part: Part) -> dict[str, Any]:
    return {
        "supported": part.supported,
        "covered": list(part.covered),
        "excused": {reason: list(those) for reason, those in part.excused.items()},
        "missing": list(part.missing),
        "entries_that_cover_nothing": list(part.empty),
        "stale_gaps": list(part.stale),
    }
