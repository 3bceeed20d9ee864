"""What a change of a site does, against what it does to the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance import bounds
from conformance.checks.base import agree, structure

if TYPE_CHECKING:
    import torch

    from conformance.experiments.store import Stored
    from conformance.records import Comparison


def effect(
    stored: Stored,
    key: str,
    value: torch.Tensor,
    *,
    unchanged: tuple[str, torch.Tensor],
    site: str,
    on: str,
    what: str,
) -> Comparison:
    """The changed result against the reference's. A change that does nothing is said to do so.

    Args:
        key: the reference's result with the same change.
        unchanged: the name of the reference's result without it, and the subject's.
        what: was done to the site ("edit", "patch"), for the message.
    """
    found = agree(stored, key, value, site=site, on=on)
    name, before = unchanged
    if found.ok or before.shape != value.shape:
        return found
    due = float((stored[key] - stored[name]).abs().max())
    if float((value - before).abs().max()) > bounds.NO_EFFECT * due:
        return found
    scale = float(stored[name].abs().max())
    note = f"the {what} had no effect; it moves the reference's logits by {due / scale:.1e}"
    return structure(site, note, on)
