"""Edits: what changing a site does to the model is what it does to the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from conformance.checks.base import Check, Context, agree, is_ours, structure
from conformance.checks.effects import effect
from conformance.experiments.interventions import EDITS, every_edit, rows
from conformance.experiments.rows import project, read_by, run_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

    from conformance.prompts import Prompt
    from conformance.records import Comparison


class Interventions(Check):
    """Zeroing a site, adding a vector, swapping two positions: each through the library's hooks.

    The logits of every edited run are compared with the reference's under the same edit. An edit
    without effect where the reference's has one is said to be just that: it is what a lens must
    never do.
    """

    name: ClassVar[str] = "interventions"
    of_content: ClassVar[bool] = True
    runs: ClassVar[bool] = True

    def exact(self, context: Context) -> Iterable[Comparison]:
        stored, subject = context.experiment(self.name), context.subject
        config = context.reference.config
        prompt = read_by(subject.family, config, subject.dims, context.scope)
        sizes: dict[str, float] = stored.facts["sizes"]
        editable = subject.editable()
        self.metrics |= context.scope.said()
        self.metrics["edited"] = sum(site in editable for site in sizes)
        hidden = subject.expected_hooks()[1]
        self.metrics["not_editable"] = {
            site: hidden.get(site)
            or hidden.get(site.split(".", 2)[-1], "no hook of the library is on its way")
            for site in sizes
            if site not in editable
        }
        plain = None
        with self.port("a plain run"):
            plain = project(subject.run(prompt, lambda *_: None))[0]
        if plain is None:
            return
        unedited = agree(stored, "plain", plain, site="logits", on=f"{prompt.name} (unedited)")
        yield unedited
        if not unedited.ok:
            return  # what edits change of a wrong result tells nothing of the edits
        names = [n for n, (site, _) in every_edit(sizes).items() if site in editable]
        for name, value in self._edited(context, prompt, names, sizes).items():
            site, kind = every_edit(sizes)[name]
            on = f"{prompt.name} ({EDITS[kind]})"
            before = ("plain", plain)
            yield effect(stored, name, value, unchanged=before, site=site, on=on, what="edit")

    def _edited(
        self, context: Context, prompt: Prompt, names: Sequence[str], sizes: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """Name -> logits, projected [pos, 16]. One that the port cannot do keeps no other back."""
        try:
            edited = run_rows(context.subject, prompt, rows(names, sizes))
            return {names[index]: value for index, value in edited}
        except Exception as error:
            if is_ours(error):
                raise
            if len(names) == 1:
                site, kind = every_edit(sizes)[names[0]]
                note = f"{EDITS[kind]}: raised {type(error).__name__}: {error}"
                self.comparisons.append(structure(site, note, prompt.name))
                return {}
        half = len(names) // 2
        return {
            **self._edited(context, prompt, names[:half], sizes),
            **self._edited(context, prompt, names[half:], sizes),
        }
