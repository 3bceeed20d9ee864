"""What edits of the reference's sites do to its logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from conformance.bounds import MASKED_BELOW
from conformance.experiments.base import Apparatus, Experiment
from conformance.experiments.rows import gaussian, project, read_by, run_rows
from conformance.implementations.base import UNEDITABLE
from conformance.sites import parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from conformance.experiments.rows import Row, RowEdit
    from conformance.prompts import Prompt

#: Edits, by the name under which results are kept, in a reader's words.
EDITS: Mapping[str, str] = {
    "zero": "zeroed",
    "add": "a random vector added",
    "swap": "two positions swapped",
}


def edit(site: str, kind: str, size: float) -> RowEdit:
    """One of :data:`EDITS` at a site.

    Args:
        size: of the vector that is added, root mean square.
    """

    def zero(value: torch.Tensor) -> torch.Tensor:
        return value.new_zeros(value.shape)

    def add(value: torch.Tensor) -> torch.Tensor:
        return value + size * gaussian(site, *value.shape).to(value.dtype)

    def swap(value: torch.Tensor) -> torch.Tensor:
        axes = parse(site).axes[1:]
        axis = axes.index("query" if "query" in axes else "pos")
        n = value.shape[axis]
        a, b = n // 5, n - n // 4
        order = list(range(n))
        order[a], order[b] = b, a
        return value.index_select(axis, value.new_tensor(order).long())

    return {"zero": zero, "add": add, "swap": swap}[kind]


def every_edit(sizes: Mapping[str, float]) -> dict[str, tuple[str, str]]:
    """``site/kind`` -> the two, for every site and kind of edit."""
    return {f"{site}/{kind}": (site, kind) for site in sizes for kind in EDITS}


def rows(names: Sequence[str], sizes: Mapping[str, float]) -> list[Row]:
    """One row for each name of :func:`every_edit`."""
    every = every_edit(sizes)
    return [{every[name][0]: edit(*every[name], sizes[every[name][0]])} for name in names]


class Interventions(Experiment):
    """Logits, projected, with every site of the scope zeroed, moved, and swapped, one at a time.

    Results: ``plain`` and ``{site}/{edit}``, [pos, 16]. Facts: the sites' sizes, as powers of
    two, so that roundoff does not move the edits themselves.
    """

    uses: ClassVar[tuple[str, ...]] = ("conformance.experiments.rows",)

    def run(self, on: Apparatus) -> Iterator[tuple[str, torch.Tensor]]:
        prompt = _prompt(on)
        sizes, plain = _plain(on)
        yield "plain", plain
        names = list(every_edit(sizes))
        for index, value in run_rows(on.model, prompt, rows(names, sizes)):
            yield names[index], value

    def facts(self, on: Apparatus) -> dict[str, Any]:
        return {"sizes": _plain(on)[0]}


def _prompt(on: Apparatus) -> Prompt:
    return read_by(on.model.family, on.model.model.config, on.model.dims, on.scope)


def _plain(on: Apparatus) -> tuple[dict[str, float], torch.Tensor]:
    """The sites that can be edited, each with its size; and the logits, projected [pos, 16]."""
    sizes: dict[str, float] = {}

    def measure(name: str, value: torch.Tensor) -> None:
        site = parse(name)
        if site.kind in UNEDITABLE or site.layer not in (None, *on.scope.layers):
            return
        rms = float(value[value > MASKED_BELOW].square().mean().sqrt())
        sizes[name] = 2.0 ** round(math.log2(rms)) if rms > 0 else 1.0

    logits = on.model.run(_prompt(on), measure)
    return sizes, project(logits)[0]


EXPERIMENT = Interventions()
