"""What of the ledger a run found stale, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conformance.records import Stale


def stale_lines(stale: Sequence[Stale]) -> list[str]:
    """What of the ledger no verdict showed, and what to do about it."""
    if not stale:
        return []
    hint = "take it out of the ledger, or have `conformance ledger update` propose it"
    return [*(f"STALE: {one.describe()}" for one in stale), f"  hint: {hint}"]
