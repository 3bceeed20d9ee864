"""One site against the reference: which entries count, what a row is, and the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from conformance.bounds import MASKED_BELOW, SAME_FUNCTION_CEILING
from conformance.metrics import Difference, Shared, difference, shared_error
from conformance.sites import parse

if TYPE_CHECKING:
    from conformance.families import Family


def kept(site: str, truth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor | None:
    """Which entries of a site count: real positions, and for scores what no mask forbids.

    Args:
        site: the site's name.
        truth: the reference's value, along the site's axes.
        valid: bool [batch, pos], True at real tokens.

    Returns:
        Bool of ``truth``'s shape, or None when everything counts.
    """
    axes = parse(site).axes
    keep: torch.Tensor | None = None
    if not bool(valid.all()):
        if "query" in axes:
            keep = valid[:, None, :, None]
        elif axes[0] == "token":
            keep = valid.reshape(-1)[:, None]
        else:
            keep = valid.reshape(*valid.shape, *[1] * (truth.ndim - 2))
        keep = keep.expand(truth.shape)
    if site.endswith("attn.scores"):
        unmasked = truth > MASKED_BELOW
        keep = unmasked if keep is None else keep & unmasked
    return keep


def _shifted(truth: torch.Tensor, value: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """``value`` with each row moved by a constant so that its mean is the truth's."""
    if keep is None:
        return value + (truth - value).mean(-1, keepdim=True)
    gap = (truth - value).where(keep, truth.new_zeros(()))
    return value + gap.sum(-1, keepdim=True) / keep.sum(-1, keepdim=True).clamp_min(1)


def measure(
    site: str,
    truth: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor,
    *,
    up_to_a_constant: bool = False,
    centre: bool = False,
) -> Difference:
    """The difference of ``value`` from ``truth`` at ``site``.

    Args:
        centre: subtract each row's mean on both sides (logits after weight processing).
        up_to_a_constant: leave out a constant per row (a query's scores).

    Raises:
        ValueError: the shapes differ, or nothing is left to compare.
    """
    # Called inside a model's forward pass: its function modes (promotion) are none of ours.
    with torch._C.DisableTorchFunction():
        return _measure(site, truth, value, valid, up_to_a_constant, centre)


def _measure(
    site: str,
    truth: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor,
    up_to_a_constant: bool,
    centre: bool,
) -> Difference:
    keep = kept(site, truth, valid)
    if up_to_a_constant:
        value = _shifted(truth, value.to(truth.dtype), keep)
    # Heads of one position share a row, for a head whose output is small by cancellation has
    # errors of the size of its inputs; so do all scores of one head (the first query sees a
    # single key: its score alone can be arbitrarily near zero). A pattern's row sums to one.
    row_dims = 2 if len(parse(site).axes) == 4 and not site.endswith("attn.pattern") else 1
    return difference(truth, value, keep, row_dims, centre=centre)


class SharedErrors:
    """The error that many entries have in common, at the sites where one number makes them all.

    Those are norms' outputs (each row is divided by its root mean square), patterns (by the
    softmax's sum) and rotated queries and keys (each position and frequency has one angle, for
    all heads). A pattern is held against the softmax of the very scores it was made of: their own
    error, which the exponential multiplies, says nothing of the softmax.

    Args:
        fam: the architecture.
        valid: bool [batch, pos], True at real tokens.
    """

    _NORMS = frozenset({"ln1", "ln2", "ln_final", "attn.q_normed", "attn.k_normed"})
    _ROTATED = frozenset({"attn.rot_q", "attn.rot_k"})

    def __init__(self, fam: Family, valid: torch.Tensor) -> None:
        self._family, self._valid = fam, valid
        self._scores: tuple[torch.Tensor, torch.Tensor] | None = None
        #: ``q`` or ``k`` -> the truth before its rotation.
        self._before: dict[str, torch.Tensor] = {}

    def see(self, site: str, truth: torch.Tensor, value: torch.Tensor) -> Shared | None:
        """Look at one site of a pass, in order; None where entries have no such number."""
        with torch._C.DisableTorchFunction():
            at = parse(site)
            if at.kind in ("attn.q", "attn.k", "attn.q_normed", "attn.k_normed"):
                self._before[at.kind[5]] = truth
            if at.kind == "attn.scores":
                self._scores = (truth, value.detach().to(torch.float64))
            elif at.kind == "attn.pattern":
                return self._softmax(site, value)
            elif at.kind in self._ROTATED:
                return self._angle(self._before.pop(at.kind[-1], None), truth, value)
            elif at.kind in self._NORMS or self._post_norm(at.kind, at.layer):
                return shared_error(truth, value, kept(site, truth, self._valid))
            return None

    def _post_norm(self, kind: str, layer: int | None) -> bool:
        if layer is None:
            return False
        own = self._family.of(layer)
        after = {"attn_out": own.ln1_post, "mlp_out": own.ln2_post}
        return after.get(kind) is not None

    def _softmax(self, site: str, value: torch.Tensor) -> Shared | None:
        scores, self._scores = self._scores, None
        if scores is None or self._family.sinks or scores[1].shape != value.shape:
            return None
        live = scores[0] > MASKED_BELOW
        right = scores[1].masked_fill(~live, float("-inf")).softmax(-1)
        keep = kept(site, right, self._valid)
        return shared_error(right, value, live if keep is None else keep & live)

    def _angle(
        self, before: torch.Tensor | None, truth: torch.Tensor, value: torch.Tensor
    ) -> Shared | None:
        """In radians: a small turn moves each pair of entries at a right angle to itself."""
        if before is None or before.shape != truth.shape or truth.shape != value.shape:
            return None
        pairs = _pairs(before, truth)
        if pairs is None:
            return None

        def paired(tensor: torch.Tensor) -> torch.Tensor:
            """[batch, pos, pair, head, 2], real positions only."""
            both = torch.stack([tensor[..., pairs[0]], tensor[..., pairs[1]]], dim=-1)
            return both.transpose(2, 3)[self._valid].to(torch.float64)

        right = paired(truth)
        turned = torch.stack([-right[..., 1], right[..., 0]], dim=-1)
        return shared_error(right, paired(value), row_dims=2, along=turned)


def _pairs(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Which entries of a head rotate together: indices of the first of each pair and the second.

    Read off what rotation keeps: the size of each pair, up to one factor of all.

    Args:
        before, after: [batch, pos, head, d_head].
    """
    moved = (before != after).flatten(0, 2).any(0).nonzero()[:, 0]
    if not moved.numel():
        return None
    start, width = int(moved[0]), int(moved[-1]) + 1 - int(moved[0])
    if width % 2:
        return None
    every = torch.arange(start, start + width)
    for first, second in (every.chunk(2), (every[::2], every[1::2])):
        ratio = _sizes(after, first, second) / _sizes(before, first, second)
        if bool(((ratio / ratio.flatten()[0] - 1).abs() < SAME_FUNCTION_CEILING).all()):
            return first, second
    return None


def _sizes(tensor: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.hypot(tensor[..., first], tensor[..., second])
