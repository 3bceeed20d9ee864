"""Activation patching: what it must leave alone, what it must restore, and what it must measure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from conformance import bounds
from conformance.checks.base import Check, Context, agree, identical, same
from conformance.checks.by_hand import along_by_hand, by_hand, refused
from conformance.checks.effects import effect
from conformance.checks.stacks import stacked
from conformance.checks.sweeps import along_paths, swept
from conformance.experiments.patches import whole
from conformance.experiments.patching import (
    STACKS,
    SWEEPS,
    WHOLE,
    attribution,
    middle_patches,
    paths,
    prompts,
    tangents,
    values,
)
from conformance.experiments.rows import apart, batches, project, repeated, run_rows
from conformance.experiments.two_stacks import half
from conformance.implementations.base import for_each_row
from conformance.implementations.lens_model import HOOKS
from conformance.records import Comparison
from conformance.sites import computation_order, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import torch

    from conformance.experiments.rows import Row
    from conformance.prompts import Prompt

_STREAM = ("resid_pre", "resid_mid", "resid_cross", "resid_post")
_BRANCHES = ("attn_out", "mixer_out", "cross_attn_out", "mlp_out", "per_layer_out")


class Patching(Check):
    """Values of a clean run in a corrupted one, by our edits and by the library's own sweeps.

    What the port must do to itself is judged bit for bit: a site's own value changes nothing,
    the clean residual stream or all that is added to it gives the clean logits. What it measures
    is compared with the same patches made on the reference.

    An encoder and a decoder differ in the tokens of both. The encoder's stream, patched, gives
    the logits of the clean source with the corrupted target; the decoder's, patched in that run,
    gives the clean logits; and so do both at once in the corrupted run.
    """

    name: ClassVar[str] = "patching"
    runs: ClassVar[bool] = True

    def exact(self, context: Context) -> Iterable[Comparison]:
        try:
            yield from self._exact(context)
        finally:  # a check outlives the port: what it holds of it would stay in memory
            for name in set(vars(self)) - {"comparisons", "metrics"}:
                delattr(self, name)

    def _exact(self, context: Context) -> Iterable[Comparison]:
        stored, subject = context.experiment(self.name), context.subject
        self.metrics |= context.scope.said()
        self._context, self._stored, self._subject = context, stored, subject
        self._clean_prompt, self._corrupted = prompts(subject.dims, context.scope)
        runs = None
        with self.port("a plain run"):
            every = range(subject.dims.n_layers)
            runs = [values(subject, p, every) for p in (self._clean_prompt, self._corrupted)]
        if runs is None:
            return
        clean, other = runs
        for name, found in (("clean", clean), ("corrupted", other)):
            shown = project(found["logits"][None])[0]
            compared = agree(stored, name, shown, site="logits", on=f"{name} (unpatched)")
            yield compared
            if not compared.ok:
                return  # patches of a wrong run tell nothing of the patches
        editable = subject.editable()
        inside = computation_order([s for s in clean if s in editable], subject.family.order)
        self._clean = {site: clean[site] for site in inside}
        scoped = [s for s in inside if parse(s).layer in (None, *context.scope.layers)]
        yield from self._own_values(scoped, other)
        if subject.family.encoder:
            yield from self._two_streams(scoped, clean["logits"])
        else:
            yield from self._stream(scoped, clean["logits"])
        yield from self._branches(clean["logits"])
        yield from self._positions(scoped, other["logits"])
        yield from self._heads(scoped, other["logits"])
        yield from self._sweeps(scoped, other)
        yield from self._attribution(scoped, other)

    # --- what it must leave alone, and restore ----------------------------------------------------

    def _run(
        self,
        edits: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
        doing: str,
        site: str | None,
        on_site: Callable[[str, torch.Tensor], None] = lambda *_: None,
        prompt: Prompt | None = None,
    ) -> torch.Tensor | None:
        """One row of the corrupted prompt, or of another: its logits [pos, d_vocab].

        None if the port raises.
        """
        with self.port(doing, site):
            return self._subject.run(prompt or self._corrupted, on_site, edits=edits)[0]
        return None

    def _own_values(
        self, sites: list[str], own: Mapping[str, torch.Tensor]
    ) -> Iterator[Comparison]:
        """A site patched with its own value: the identity, bit for bit.

        One site in each row of a batch, against the same batch unpatched; one site after the
        other where that shows a difference.
        """
        on = "corrupted (patched with its own value)"
        rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        with self.port("patches of a site's own value"):
            rows = self._own_rows(sites)
        if rows and all(bool((a == b).all()) for a, b in rows):
            for site, (plain, patched) in zip(sites, rows, strict=True):
                yield identical(plain, patched, site=site, on=on)
            return
        for site in sites:
            edits = _edits(whole(site, own[site]))
            logits = self._run(edits, "a patch of its own value", site)
            if logits is not None:
                yield identical(own["logits"], logits, site=site, on=on)

    def _own_rows(self, sites: list[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For each site, the logits of its row, unpatched and patched."""
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for part in batches(self._subject.dims, self._corrupted, sites):
            batch = repeated(self._corrupted, len(part))
            values: dict[str, torch.Tensor] = {}

            def keep(
                name: str,
                value: torch.Tensor,
                part: Sequence[str] = part,
                values: dict[str, torch.Tensor] = values,
                batch: Prompt = batch,
            ) -> None:
                if name in part:
                    each = for_each_row(value, parse(name).kind, batch)  # as an edit sees it
                    values[name] = each[part.index(name)].clone()

            plain = self._subject.run(batch, keep)
            edits = apart([whole(site, values[site]) for site in part])
            patched = self._subject.run(batch, lambda *_: None, edits=edits)
            found += zip(plain, patched, strict=True)
        return found

    def _stream(self, sites: list[str], clean: torch.Tensor) -> Iterator[Comparison]:
        """The clean residual stream at every position: the clean logits, bit for bit."""
        for site in sites:
            at = parse(site)
            if at.kind not in _STREAM or at.layer is None:
                continue
            beside = self._subject.family.beside(at.kind, at.layer)
            if beside is not None:
                self.not_applicable(f"{site} restores the clean logits", beside)
                continue
            on = "corrupted (patched with the clean run at every position)"
            yield from self._restored((site,), clean, on)

    def _restored(
        self,
        sites: Sequence[str],
        due: torch.Tensor,
        on: str,
        prompt: Prompt | None = None,
    ) -> Iterator[Comparison]:
        """Sites patched with the clean run at every position, the last of them on trial."""
        rows = {s: edit for site in sites for s, edit in whole(site, self._clean[site]).items()}
        logits = self._run(_edits(rows), "a patch", sites[-1], prompt=prompt)
        if logits is not None:
            yield identical(due, logits, site=sites[-1], on=on)

    def _two_streams(self, sites: list[str], clean: torch.Tensor) -> Iterator[Comparison]:
        """The clean stream of an encoder, of a decoder, and of both at once, bit for bit."""
        stored, encoder = self._stored, self._subject.family.encoder
        source = half(
            self._clean_prompt, self._corrupted, self._subject.model.original_model.config
        )
        between = self._run({}, "a run with tokens of the decoder's own", "logits", prompt=source)
        if between is None:
            return
        shown = project(between[None])[0]
        compared = agree(stored, "half", shown, site="logits", on="clean source (unpatched)")
        yield compared
        if not compared.ok:
            return
        streams = [s for s in sites if parse(s).kind in (*_STREAM, "ln_encoder")]
        first = [s for s in streams if (parse(s).layer or 0) < encoder]
        second = [s for s in streams if s not in first]
        right = []
        for site in first:
            on = "corrupted (the encoder's stream patched, against the clean source)"
            for compared in self._restored((site,), between, on):
                yield compared
                right += [site] if compared.ok else []
        for number, site in enumerate(second):
            on = "clean source (the decoder's stream patched)"
            for compared in self._restored((site,), clean, on, source):
                yield compared
                if compared.ok and right:
                    pair = (right[number % len(right)], site)
                    on = f"corrupted (the streams of both patched, the encoder's at {pair[0]})"
                    yield from self._restored(pair, clean, on)

    def _branches(self, clean: torch.Tensor) -> Iterator[Comparison]:
        """Embedding, and all that is added to it: the clean logits, bit for bit.

        The embedding of a decoder is what enters its first layer; that of an encoder too, where
        no hook shows it.
        """
        fam, layers = self._subject.family, range(self._subject.dims.n_layers)
        every = [s for s in self._clean if parse(s).kind in ("embed", *_BRANCHES)]
        due = 1 + sum(kind not in fam.absent(i) for i in layers for kind in _BRANCHES)
        if fam.encoder:
            starts = [f"blocks.{fam.encoder}.resid_pre"]
            starts += [] if "embed" in every else ["blocks.0.resid_pre"]
            every += [s for s in starts if s in self._clean]
            due += 1
        if len(every) < due:
            self.not_applicable(
                "all branches", f"hooks of the library can edit only {len(every)} of {due}"
            )
            return
        apart: list[str] = []

        def watch(name: str, value: torch.Tensor) -> None:
            if parse(name).kind in _STREAM and not bool((value[0] == self._clean[name]).all()):
                apart.append(name)

        edits = {s: e for name in every for s, e in _edits(whole(name, self._clean[name])).items()}
        logits = self._run(edits, "patches of every branch", None, watch)
        if logits is not None:
            on = "corrupted (embedding and every branch patched with the clean run)"
            site = apart[0] if apart else "logits"
            yield identical(clean, logits, site=site, on=on)

    # --- what it measures -------------------------------------------------------------------------

    def _rows(self, rows: Mapping[str, Row]) -> dict[str, torch.Tensor]:
        """Logits of every row, projected [pos, 16], as far as the port gives them."""
        names = list(rows)
        with self.port("patches"):
            made = run_rows(self._subject, self._corrupted, list(rows.values()))
            return {names[index]: value for index, value in made}
        return {}

    def _positions(self, sites: list[str], corrupted: torch.Tensor) -> Iterator[Comparison]:
        """A patch in the middle: the reference's logits, and what comes before as it was."""
        unpatched = project(corrupted[None])[0]
        due = middle_patches({s: self._clean[s] for s in sites})
        for site, value in self._rows(due).items():
            before = value.shape[0] // 2
            on = f"corrupted (position {before} patched)"
            yield self._effect(f"at/{site}", value, unpatched, site, on)
            spread = self._stored.spread("corrupted")
            note = "a patch moved what comes before it"
            if before and self._causal(site):
                yield same(unpatched[:before], value[:before], spread, site=site, on=on, note=note)

    def _causal(self, site: str) -> bool:
        """Whether a position of this site reaches no logits before it.

        An encoder sees both ways, and all of a decoder sees all of what it attends to.
        """
        fam, place = self._subject.family, parse(site)
        if place.layer is None or place.kind in ("cross_attn.k", "cross_attn.v"):
            return False
        return fam.of(place.layer).causal

    def _effect(
        self, key: str, value: torch.Tensor, unpatched: torch.Tensor, site: str, on: str
    ) -> Comparison:
        before = ("corrupted", unpatched)
        return effect(self._stored, key, value, unchanged=before, site=site, on=on, what="patch")

    def _heads(self, sites: list[str], corrupted: torch.Tensor) -> Iterator[Comparison]:
        """z patched in every head at every position is the attention patched."""
        unpatched = project(corrupted[None])[0]
        rows = {s: whole(s, self._clean[s]) for s in sites if parse(s).kind in WHOLE}
        found = self._rows(rows)
        for site, value in found.items():
            on = "corrupted (every position patched)"
            yield self._effect(f"whole/{site}", value, unpatched, site, on)
            twin = site.replace("attn_out", "attn.z")
            if twin != site and twin in found:
                spread = self._stored.spread(f"whole/{site}")
                on = "corrupted (every head's z patched, against all of attention)"
                yield same(value, found[twin], spread, site=twin, on=on)

    def _sweeps(self, sites: list[str], other: Mapping[str, torch.Tensor]) -> Iterator[Comparison]:
        """The library's own sweeps against the same patches of the reference."""
        subject, corrupted, scope = self._subject, self._corrupted, self._context.scope
        cache = self._cached(self._clean_prompt)
        if cache is None:
            return
        if subject.family.encoder:
            yield from by_hand(self, subject, self._stored, scope, corrupted, cache)
            yield from along_by_hand(self, subject, self._stored, scope, corrupted, self._clean)
            if (theirs := self._cached(corrupted)) is not None:
                yield from refused(self, subject, corrupted, (cache, theirs))
            return
        for name in SWEEPS:
            if why := self._hidden(name, sites):
                self.not_applicable(name, why)
                continue
            yield from swept(self, name, subject, self._stored, scope, corrupted, cache)
        for name, (_, parts) in STACKS.items():
            hidden = [why for part in parts if (why := self._hidden(part, sites))]
            if hidden:
                self.not_applicable(name, hidden[0])
                continue
            yield from stacked(self, name, subject, corrupted, cache, self._clean, other)
        yield from self._paths(cache)

    def _paths(self, cache: Any) -> Iterator[Comparison]:
        """A head's output on its way into one later head alone (TransformerLens 4)."""
        from transformer_lens import patching

        if not hasattr(patching, "get_act_patch_direct_path"):
            return
        other = self._cached(self._corrupted)
        if other is None:
            return
        caches, subject = (cache, other), self._subject
        for kind, source in paths(subject.dims, self._context.scope, subject.family).items():
            yield from along_paths(
                self, kind, source, subject, self._stored, self._corrupted, caches
            )

    def _cached(self, prompt: Prompt) -> Any:
        """The library's own cache of a run; None if the port raises."""
        options = self._subject.run_options(prompt)
        with self._subject.session(), self.port("run_with_cache"):
            return self._subject.model.run_with_cache(prompt.tokens, **options)[1]
        return None

    def _hidden(self, name: str, sites: list[str]) -> str | None:
        """Why a sweep cannot be made, if it cannot."""
        kind = SWEEPS[name].kind
        fam = self._subject.family
        hidden = self._subject.expected_hooks()[1] | fam.absent()
        if not fam.everywhere(kind):
            return hidden.get(kind, f"not every layer has {kind}")
        if f"blocks.0.{kind}" in sites and name in self._stored:
            own = self._subject.editable()[f"blocks.0.{kind}"]
            usual = HOOKS.get(kind, own).format(l=0)
            there = own == usual or usual in self._subject.model.hook_dict
            return None if there else f"the port has no {usual}: {own} shows it"
        return hidden.get(kind, "no hook of the library shows its site")

    def _attribution(
        self, sites: list[str], other: Mapping[str, torch.Tensor]
    ) -> Iterator[Comparison]:
        """Gradient times difference: the reference's, and a finite difference's."""
        differences = tangents({s: self._clean[s] for s in sites}, other)
        found: dict[str, torch.Tensor] = {}
        with self.port("the gradient of a metric"):
            found = attribution(self._subject, self._corrupted, differences)
        on = "corrupted (attribution patching)"
        for site, value in found.items():
            yield agree(self._stored, f"attribution/{site}", value.flatten(), site=site, on=on)
            if f"slope/{site}" not in self._stored:
                continue
            terms = self._stored[f"attribution/{site}"]
            if terms.numel() != value.numel():
                continue
            truth = terms.reshape(value.shape).sum(1)
            slope = float(self._stored[f"slope/{site}"])
            size = float(truth.abs().sum())
            if not size:
                continue  # clean and corrupted are the same here: a table of positions
            if abs(float(truth.sum()) - slope) > bounds.DIFFERENCE_ALLOWED * size:
                # A clamp, or an activation with a corner, within the steps of the difference.
                self.metrics.setdefault("not_differentiable", []).append(site)
                continue
            apart = abs(float(value.sum()) - slope) / size
            yield Comparison(
                judgement="same_function",
                site=site,
                prompt="corrupted (attribution patching, against a finite difference)",
                measured=apart,
                allowed=bounds.DIFFERENCE_ALLOWED,
                ok=apart <= bounds.DIFFERENCE_ALLOWED,
                reference=slope,
                subject=float(value.sum()),
                bound=f"central difference of step {bounds.DIFFERENCE_STEP:g}",
            )


def _edits(row: Row) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """A row's edits, for a batch of one."""
    return {
        site: (lambda value, edit=edit: edit(value[0])[None])  # type: ignore[misc]
        for site, edit in row.items()
    }
