"""What lies beside the records: samples of activations, and explanations that someone asked for."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conformance.explain.command import JSON
from conformance.explain.explanations import Explanation
from conformance.explain.reproduce import FILE_NAME as SCRIPT
from conformance.report.explanation import page, what

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from conformance.records import Verdict

#: Pictures of an explanation -> what they show, for those who do not see them.
_PICTURES = {
    "error-by-layer.png": "the error of each component by layer, fed its own and the true input",
    "differences.png": "how many entries of the first differing site differ by how much",
    "heat-map.png": "where in that site the largest differences are",
}


@dataclass(frozen=True)
class Look:
    """A port's sample: the data, or why there is none."""

    data: Mapping[str, Any] | None
    missing: str = ""


@dataclass(frozen=True)
class Explained:
    """An explanation as a page shows it.

    Attributes:
        what: what differs, by how much.
        where: where in the tensor, in words.
        causes: one sentence each.
        text: the whole explanation.
        script: the standalone script, or None.
        versions: of the packages it was made with, which need not be the run's.
        pictures: what they show -> data URI.
        conforms: whether nothing was found to differ.
    """

    what: tuple[str, ...]
    where: str
    causes: tuple[str, ...]
    text: str
    script: str | None
    versions: str
    pictures: Mapping[str, str] = field(default_factory=dict)
    conforms: bool = False


def look(folder: Path, verdicts: Mapping[str, Verdict]) -> Look:
    """A port's sample of activations, read from beside the records."""
    named = next((v.metrics["sample"] for v in verdicts.values() if "sample" in v.metrics), None)
    if named is None:
        return Look(None, "this run kept none (the check activations did not get so far)")
    path = folder / str(named.get("file"))
    try:
        raw = path.read_bytes()
    except OSError:
        return Look(None, f"{named.get('file')} is not beside the records any more")
    if hashlib.sha256(raw).hexdigest() != named.get("sha256"):
        return Look(None, f"{named.get('file')} is not the one of this run")
    return Look(json.loads(raw))


def explained(folder: Path, model: str, subject: str) -> Explained | None:
    """What ``conformance explain`` found out of a port; None where it was not asked."""
    found = folder / "explain" / f"{model}-{subject}"
    try:
        e = Explanation.from_dict(json.loads((found / JSON).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    script = found / SCRIPT
    causes = tuple(cause.statement for cause in e.causes)
    return Explained(
        what=() if e.conforms else tuple(what(e.location)),
        where=e.location.sentence,
        causes=tuple(filter(None, (e.diagnosed, *causes))),
        text=page(e),
        script=script.read_text(encoding="utf-8") if script.is_file() else None,
        versions=", ".join(f"{name} {version}" for name, version in e.versions.items()),
        pictures={
            said: _data_uri(found / name)
            for name, said in _PICTURES.items()
            if (found / name).is_file()
        },
        conforms=e.conforms,
    )


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
