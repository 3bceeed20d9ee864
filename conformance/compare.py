"""One site against the reference: which entries count, what a row is, and the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.bounds import MASKED_BELOW
from conformance.metrics import Difference, difference
from conformance.sites import parse

if TYPE_CHECKING:
    import torch


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


def measure(
    site: str, truth: torch.Tensor, value: torch.Tensor, valid: torch.Tensor
) -> Difference:
    """The difference of ``value`` from ``truth`` at ``site``.

    Raises:
        ValueError: the shapes differ, or nothing is left to compare.
    """
    # Heads of one position share a row, for a head whose output is small by cancellation has
    # errors of the size of its inputs; so do all scores of one head (the first query sees a
    # single key: its score alone can be arbitrarily near zero). A pattern's row sums to one.
    row_dims = 2 if len(parse(site).axes) == 4 and not site.endswith("attn.pattern") else 1
    return difference(truth, value, kept(site, truth, valid), row_dims)
