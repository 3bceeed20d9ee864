"""Predicted memory beside measured, for ``docs/footprint.md``.

    conformance run --models benchmarks/scaled.toml --subject bridge --check weights \\
        --check gradients --check processing --out conformance-out-scaled
    python benchmarks/footprint.py benchmarks/scaled.toml conformance-out-scaled

The second command takes pairs of a ``models.toml`` and the ``--out`` of a run of it. Peaks are
those of the records: a process's largest resident memory, less what importing the libraries takes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HEAD = """\
| model | weights | side | phase | predicted | measured | off by |
| --- | --: | --- | --- | --: | --: | --: |"""


def lines(model: Any, checks: tuple[str, ...], cost: dict[str, int]) -> list[str]:
    """Rows of the table: the reference's process, and the subject's."""
    from conformance.footprint.predict import IMPORTS, predict
    from conformance.footprint.table import shape_of

    shape, unknown = shape_of(model)
    if shape is None:
        return [f"| {model.id} | {unknown} | | | | | |"]
    needed = predict(shape, model.dtype, checks)
    found = []
    for side, peak in needed.sides.items():
        measured = cost[f"{side}_peak_bytes"] - IMPORTS[side]
        off = peak.total / measured - 1
        found.append(
            f"| {model.id} | {shape.parameters * 4 / 1e6:.0f} MB | {side} | {peak.name} | "
            f"{peak.total / 1e6:.0f} MB | {measured / 1e6:.0f} MB | {off:+.1%} |"
        )
    return found


def main(arguments: list[str]) -> None:
    from conformance.records import read
    from conformance.spec import load_spec

    print(HEAD)
    for models, run in zip(arguments[::2], arguments[1::2], strict=True):
        verdicts = read(Path(run) / "records.jsonl").verdicts
        for model in load_spec(Path(models)).models:
            mine = [v for v in verdicts if v.model == model.id and "cost" in v.metrics]
            if mine:
                checks = tuple(v.check for v in mine)
                print("\n".join(lines(model, checks, dict(mine[0].metrics["cost"]))))


if __name__ == "__main__":
    main(sys.argv[1:])
