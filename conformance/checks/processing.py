"""Weight processing: every flag alone and all together, on a subject loaded anew.

Processing must keep the function, site by site, up to what it may change (the mean of what is
written to a stream whose readers subtract it, a constant of all logits), and it must do what its
flag promises. Promises are those of ``HookedTransformer.from_pretrained``'s documentation and of
``transformer_lens/weight_processing.py``.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from conformance.bounds import ZERO
from conformance.checks.base import Check, Context, identical, same, structure, within
from conformance.compare import measure
from conformance.flags import (
    FLAGS,
    OPTIONAL,
    STANDARD,
    declined,
    folds_neurons,
    refused,
    value_biases,
)
from conformance.sites import parse
from conformance.variants import CENTRED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from conformance.implementations.lens_model import LensModel
    from conformance.prompts import Prompt
    from conformance.records import Comparison

TOGETHER = "all together"
#: The bridge's compatibility mode without any processing.
BARE = "no_processing"

#: Sites that no processing changes.
_KEPT = (
    *("attn.pattern", "cross_attn.pattern"),
    *("mlp.pre", "mlp.pre_linear", "mlp.post", "mlp.router_logits"),
)
#: Attention of a block, and a decoder's to its encoder.
_ATTENTION = ("attn", "cross_attn")
#: Sites that change where the factors of the query-key or value-output circuit do.
_FACTORS = tuple(f"{a}.{kind}" for a in _ATTENTION for kind in "qkvz")
#: Sites that lose the value bias.
_VALUES = tuple(f"{a}.{kind}" for a in _ATTENTION for kind in "vz")
#: Sites whose mean over d_model is zero where what writes to the stream is centred.
_STREAM = (
    *("embed", "pos_embed", "resid_pre", "attn_out", "resid_mid", "cross_attn_out", "resid_cross"),
    *("mlp_out", "resid_post"),
)

#: Sums that hold the embedding: where it is normalised, its norm decides their mean.
_SUMS = ("embed", "resid_pre", "resid_mid", "resid_cross", "resid_post")

_FOLDED = ("ln1", "ln2", "ln_final")
_WRITERS = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")


class Processing(Check):
    """Each flag, and all together, keep log-probabilities and make true what they promise."""

    name: ClassVar[str] = "processing"
    runs: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        #: Settings that the port could not be processed with.
        self._raised: set[str] = set()

    def exact(self, context: Context) -> Iterable[Comparison]:
        self.metrics.update(context.scope.said())
        if reason := refused(context.subject):
            self.not_applicable(self.name, reason)
            return
        held = {flag: self._holds(context.subject, flag) for flag in FLAGS}
        for flag in FLAGS:
            if held[flag]:
                alone = {name: name == flag for name in FLAGS}
                yield from self._processed(context, flag, alone, held)
        # What the library leaves off is tried with the others: it must leave it off rightly.
        together = {flag: flag in STANDARD or held[flag] for flag in FLAGS}
        yield from self._processed(context, TOGETHER, together, held)
        if TOGETHER in self._raised and together[OPTIONAL]:
            yield from self._processed(context, "all standard", {**together, OPTIONAL: False}, held)
        if hasattr(context.subject.model, "enable_compatibility_mode"):
            yield from self._bare(context)

    def _processed(
        self, context: Context, setting: str, flags: dict[str, bool], holds: dict[str, bool]
    ) -> Iterator[Comparison]:
        assert context.fresh is not None
        subject = context.fresh()
        held = {flag: on and holds[flag] for flag, on in flags.items()}
        # Folding a norm's bias makes value biases where there were none.
        held["fold_value_biases"] = flags["fold_value_biases"]
        at = _prompt(context)
        on = f"{at.name}, {setting}"
        compare = _Sites(context, at, on, held)
        self._raised.add(setting)
        with self.port(f"weight processing ({setting})"):
            subject.process_weights(flags)
            self._raised.remove(setting)
        if setting in self._raised:
            return
        logits = None
        with self.port(f"the forward pass after weight processing ({setting})"):
            logits = subject.run(at, compare)
        yield from compare.found
        if logits is not None:
            truth = context.reference.truth(at.name, "logits")
            found = measure("logits", truth, logits, at.valid, centre=True)
            spread = context.reference.spread(at.name, CENTRED)
            yield within(found, spread, site="logits", on=on, note="up to a constant of all logits")
        shown: dict[str, torch.Tensor] = {}
        with self.port(f"reading the weights after processing ({setting})", sizes=subject.dims):
            shown = subject.used_weights()
        for flag, promised in held.items():
            if promised:
                yield from _PROMISES[flag](subject, shown, f"weights, {setting}")
        if context.scope.large:
            del subject, shown
            gc.collect()  # a bridge is full of cycles: nothing else frees it before the next

    def _holds(self, subject: LensModel, flag: str) -> bool:
        """Whether the library promises to act on a flag; if not, why."""
        with self.port(f"reading the weights before processing ({flag})", sizes=subject.dims):
            reason = declined(subject, flag)
            if reason is not None:
                self.not_applicable(flag, reason)
            return reason is None
        return False

    def _bare(self, context: Context) -> Iterator[Comparison]:
        """Compatibility mode without processing changes no bit of the logits."""
        assert context.fresh is not None
        at = _prompt(context)
        with self.port(f"compatibility mode ({BARE})"):
            before = context.subject.run(at, lambda *_: None)
            subject = context.fresh()
            with subject.session():
                subject.model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
            after = subject.run(at, lambda *_: None)
            yield identical(before, after, site="logits", on=f"{at.name}, {BARE}")


def _prompt(context: Context) -> Prompt:
    prompts = context.reference.prompts
    return next((p for p in prompts if p.name == "sixteen"), prompts[0])


class _Sites:
    """Compares sites of a processed subject as they fire: that of :meth:`LensModel.run`."""

    def __init__(self, context: Context, at: Prompt, on: str, held: dict[str, bool]) -> None:
        self._context, self._at, self._on, self._held = context, at, on, held
        self._layers = set(context.scope.layers)
        self.found: list[Comparison] = []

    def __call__(self, name: str, value: torch.Tensor) -> None:
        site = parse(name)
        if site.layer is not None and site.layer not in self._layers:
            return
        kind, held = site.kind, self._held
        refactored = held[OPTIONAL]
        centred = held["center_writing_weights"] and kind in _STREAM
        if kind in _FACTORS:
            if refactored or (kind in _VALUES and held["fold_value_biases"]):
                return
        elif kind not in _KEPT and kind not in _STREAM:
            return
        if kind == "mlp.post" and held["fold_ln"] and folds_neurons(self._context.subject):
            return  # what the norm of the neurons multiplies by is folded too
        reference = self._context.reference
        truth = reference.truth(self._at.name, name)
        if truth.shape != value.shape:
            note = f"shape {tuple(value.shape)}, the reference has {tuple(truth.shape)}"
            self.found.append(structure(name, note, self._on))
            return
        found = measure(name, truth, value, self._at.valid, centre=centred)
        spread = reference.spread(self._at.name, name)
        note = "up to its mean over d_model" if centred else ""
        self.found.append(within(found, spread, site=name, on=self._on, note=note))
        if centred and not (kind in _SUMS and self._context.subject.family.embed_ln):
            # What is compared with itself less its mean must have none.
            with torch._C.DisableTorchFunction():
                self.found.append(_centred(value, name, self._on, spread))


def _centred(value: torch.Tensor, site: str, on: str, spread: float = 0.0) -> Comparison:
    """Whether the mean over the last axis is zero, relative to the row's largest entry.

    The row where it is farthest from that decides: an embedding is too large for copies of it.
    """
    rows = value.detach().to(torch.float64).reshape(-1, value.shape[-1])
    size = torch.maximum(rows.amax(1), -rows.amin(1))
    worst = int((rows.mean(1).abs() / size.clamp_min(ZERO)).argmax())  # the first NaN, if any
    row = rows[worst : worst + 1]
    note = "its mean over the last axis, which must be zero"
    found = same(row - row.mean(), row, spread, site=site, on=on, note=note)
    where = torch.unravel_index(torch.tensor(worst), value.shape[:-1])
    return replace(found, index=(*map(int, where), *(found.index or (0,))[-1:]))


# --- what a flag promises ------------------------------------------------------------------------


Weights = dict[str, torch.Tensor]


def _norms_are_folded(subject: LensModel, weights: Weights, on: str) -> Iterator[Comparison]:
    """Norms that something reads: weight one, bias zero; or no parameters at all."""
    adds_one = subject.family.norm_offset and hasattr(subject.model, "original_model")
    for name, tensor in weights.items():
        *_, norm, part = f".{name}".split(".")
        if norm not in _FOLDED or part not in ("w", "b"):
            continue
        neutral = torch.zeros_like if part == "b" or adds_one else torch.ones_like
        note = "a folded norm's parameters are neutral"
        yield identical(neutral(tensor), tensor, site=name, on=on, note=note)


def _writers_are_centred(_: LensModel, weights: Weights, on: str) -> Iterator[Comparison]:
    for name, tensor in weights.items():
        if name.rsplit(".", 1)[-1] in _WRITERS:
            yield _centred(tensor, name, on)


def _head_is_centred(_: LensModel, weights: Weights, on: str) -> Iterator[Comparison]:
    """W_U [d_model, d_vocab] and b_U [d_vocab]: mean zero over the vocabulary."""
    for name in ("unembed.W_U", "unembed.b_U"):
        if name in weights:
            yield _centred(weights[name], name, on)


def _value_biases_are_zero(_: LensModel, weights: Weights, on: str) -> Iterator[Comparison]:
    for name, tensor in value_biases(weights).items():
        yield identical(torch.zeros_like(tensor), tensor, site=name, on=on)


def _factors_are_even(subject: LensModel, weights: Weights, on: str) -> Iterator[Comparison]:
    """W_O [head, d_head, d_model] has orthonormal rows, W_V [head, d_model, d_head] orthogonal
    columns, and columns of W_Q and W_K, biases included, have the same norms."""
    layers = range(subject.dims.n_layers)
    for at in (f"blocks.{i}.{a}." for i in layers for a in _ATTENTION):
        if at + "W_O" not in weights:
            continue
        w: dict[str, Any] = {n: weights[at + n] for n in ("W_Q", "W_K", "W_V", "W_O")}
        rows = w["W_O"] @ w["W_O"].transpose(-1, -2)
        yield same(_identities(rows), rows, 0.0, site=at + "W_O", on=on, row_dims=2)
        columns = w["W_V"].transpose(-1, -2) @ w["W_V"]
        diagonal = torch.diag_embed(torch.diagonal(columns, dim1=-2, dim2=-1))
        yield same(diagonal, columns, 0.0, site=at + "W_V", on=on, row_dims=2)
        none = torch.zeros(())
        squares = [
            w[f"W_{x}"].square().sum(-2) + weights.get(f"{at}b_{x}", none).square() for x in "QK"
        ]
        norms = [s.sqrt() for s in squares]
        yield same(norms[0], norms[1], 0.0, site=at + "W_K", on=on)


def _identities(like: torch.Tensor) -> torch.Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype).expand_as(like)


_PROMISES: dict[str, Callable[[LensModel, Weights, str], Iterator[Comparison]]] = {
    "fold_ln": _norms_are_folded,
    "center_writing_weights": _writers_are_centred,
    "center_unembed": _head_is_centred,
    "fold_value_biases": _value_biases_are_zero,
    OPTIONAL: _factors_are_even,
}
