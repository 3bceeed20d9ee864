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
    return [*(f"STALE: {describe_stale(one)}" for one in stale), f"  hint: {hint}"]


def describe_stale(stale: Stale) -> str:
    """``expected_failures.toml:43: bridge / loss: gpt2 no longer fails as listed (docs/x.md)``."""
    names = ", ".join(stale.names)
    said = {
        "entry": f"no port fails as listed: {names}",
        "models": f"no longer as listed: {names}",
        "kinds": f"nothing fails any more at {names}",
    }[stale.what]
    line = f":{stale.line}" if stale.line else ""
    return f"{stale.file}{line}: {stale.subject} / {stale.check}: {said} ({stale.link})"
