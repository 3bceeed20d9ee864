"""Batches: what a sequence's neighbours and its padding do to it, which must be nothing.

Logits of every row are compared with the reference's for that sequence alone. Sites of padded
batches are compared with the subject's own for the sequence alone, which says where in the
forward pass a neighbour or the padding gets in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from conformance.checks.base import Check, Context, agree, same, structure
from conformance.experiments.batching import SHIFT, SIDES, padded, sequences, unpadded
from conformance.experiments.rows import project
from conformance.prompts import Prompt
from conformance.sites import parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from conformance.experiments.store import Stored
    from conformance.records import Comparison

#: Sites of [batch, pos, ...] that a batch is compared at. Rotated queries and keys are left out:
#: only differences of positions count there, and both sides may count positions from anywhere.
_SITES = ("pos_embed", "attn.q", "attn.k", "attn.v", "attn.z", "attn_out", "mlp_out", "resid_post")
#: Sites of [batch, head, query, key].
_PATTERN = "attn.pattern"

Sites = dict[str, torch.Tensor]


class Batching(Check):
    """Rows of a batch, padded on either side, permuted, masked: each as it is alone."""

    name: ClassVar[str] = "batching"
    runs: ClassVar[bool] = True

    def exact(self, context: Context) -> Iterable[Comparison]:
        self.metrics.update(context.scope.said())
        stored = context.experiment(self.name)
        found = sequences(context.subject.dims, context.scope)
        unequal = {n: t for n, t in found.items() if n.startswith("unequal")}
        equal = {n: t for n, t in found.items() if n.startswith("equal")}
        alone: dict[str, Sites] = {}
        for name, tokens in found.items():
            ran = self._run(context, Prompt(name, tokens[None]))
            if ran is None:
                return
            alone[name] = ran
            yield self._row(stored, name, ran["logits"][0], f"{name} alone")
        yield from self._padded(context, stored, unequal, alone)
        yield from self._equal(context, stored, equal)
        yield from self._positions(context, stored, found["equal0"])

    def _run(self, context: Context, prompt: Prompt) -> Sites | None:
        """Logits and the sites of the scope; None if the port raised, which is then recorded."""
        seen: Sites = {}
        layers = set(context.scope.layers)

        def on_site(name: str, value: torch.Tensor) -> None:
            site = parse(name)
            if site.kind in (*_SITES, _PATTERN) and site.layer in (None, *layers):
                seen[name] = value.detach().clone()

        with self.port(f"a forward pass ({prompt.name})"):
            seen["logits"] = context.subject.run(prompt, on_site)
        return seen if "logits" in seen else None

    def _row(self, stored: Stored, name: str, logits: torch.Tensor, on: str) -> Comparison:
        return agree(stored, name, project(logits[None])[0], site="logits", on=on)

    def _padded(
        self, context: Context, stored: Stored, rows: Sites, alone: dict[str, Sites]
    ) -> Iterator[Comparison]:
        moved = stored.facts["moved_by_padding"]
        for side in SIDES:
            if side in moved:
                reason = f"the reference's own rows move by {moved[side]:.1e}"
                self.not_applicable(f"padding on the {side}", reason)
                continue
            prompt = padded(list(rows.values()), side, context.subject.dims.pad)
            batch = self._run(context, prompt)
            if batch is None:
                continue
            for i, name in enumerate(rows):
                on = f"{name}, padded on the {side}"
                yield from _like_alone(context, alone[name], batch, prompt, i, on)
                logits = unpadded(batch["logits"], prompt, i)
                yield self._row(stored, name, logits, on)

    def _equal(self, context: Context, stored: Stored, rows: Sites) -> Iterator[Comparison]:
        names, tokens = list(rows), torch.stack(list(rows.values()))
        ones = torch.ones_like(tokens)
        turned = [*range(1, len(names)), 0]
        batches = {
            "in a batch": (Prompt("batch", tokens), names),
            "in the batch permuted": (Prompt("batch", tokens[turned]), [names[i] for i in turned]),
            "with a mask of ones": (Prompt("padded_right", tokens, ones), names),
        }
        for what, (prompt, order) in batches.items():
            batch = self._run(context, prompt)
            if batch is not None:
                for i, name in enumerate(order):
                    yield self._row(stored, name, batch["logits"][i], f"{name} {what}")

    def _positions(
        self, context: Context, stored: Stored, tokens: torch.Tensor
    ) -> Iterator[Comparison]:
        """Position ids given: as derived, and shifted."""
        subject = context.subject
        if subject.kind != "TransformerBridge":
            self.not_applicable("position ids given", "HookedTransformer takes none")
            return
        if subject.family.own_positions:
            self.not_applicable("position ids given", "they begin after the padding token's id")
            return
        if "shifted" not in stored:
            self.not_applicable("position ids given", "the reference takes none")
            return
        counted = torch.arange(len(tokens))[None]
        for name, positions in (("equal0", counted), ("shifted", counted + SHIFT)):
            what = "given" if name == "equal0" else f"given, shifted by {SHIFT}"
            with self.port(f"a forward pass with position ids {what}"), subject.session():
                options: dict[str, Any] = {"position_ids": positions}
                logits = subject.model(tokens[None], return_type="logits", **options)
                yield self._row(stored, name, logits[0], f"equal0, position ids {what}")


def _known(context: Context) -> str:
    """The prompt whose spreads serve: of one row, without padding."""
    names = [prompt.name for prompt in context.reference.prompts]
    return "sixteen" if "sixteen" in names else names[0]


def _like_alone(
    context: Context, alone: Sites, batch: Sites, prompt: Prompt, row: int, on: str
) -> Iterator[Comparison]:
    """Every site of one row of a padded batch against the subject's own, alone."""
    keep = prompt.valid[row]
    for name, value in batch.items():
        if name == "logits" or name not in alone:
            continue
        square = parse(name).kind == _PATTERN
        if len(value) != len(prompt.tokens):
            note = f"shows {len(value)} rows, the batch has {len(prompt.tokens)}"
            yield structure(name, note, on)
            continue
        own = value[row][:, keep][:, :, keep] if square else value[row][keep]
        truth = alone[name][0]
        row_dims = 2 if own.ndim == 3 and not square else 1
        spread = context.reference.spread(_known(context), name)
        note = "against the subject's own, alone"
        yield same(truth, own, spread, site=name, on=on, row_dims=row_dims, note=note)
