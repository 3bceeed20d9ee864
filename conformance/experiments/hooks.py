"""What a backward hook must show: the loss's gradient at every site of the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from conformance.experiments.base import Experiment
from conformance.experiments.gradients import at_sites
from conformance.experiments.rows import prompt_of
from conformance.implementations.base import UNEDITABLE
from conformance.sites import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from conformance.experiments.base import Apparatus


class Hooks(Experiment):
    """Results: site -> gradient of the mean next-token loss, in one row.

    A key's gradient is zero but for roundoff where its query sees no other key, so that one
    scale serves all entries of a site.
    """

    uses: ClassVar[tuple[str, ...]] = (
        "conformance.experiments.gradients",
        "conformance.experiments.rows",
    )

    def run(self, on: Apparatus) -> Iterator[tuple[str, torch.Tensor]]:
        scope, sites = on.scope, []

        def note(name: str, _: torch.Tensor) -> None:
            site = parse(name)
            if site.kind not in UNEDITABLE and (site.layer is None or site.layer in scope.layers):
                sites.append(name)

        on.model.run(prompt_of(on.model.dims, scope), note)
        for site, gradient in at_sites(on.model, scope, sites).items():
            yield site, gradient.reshape(-1)


EXPERIMENT = Hooks()
