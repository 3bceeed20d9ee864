"""Hypotheses about attention masks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from conformance.diagnose.registry import Proposal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conformance.diagnose.evidence import Evidence, Scene
    from conformance.diagnose.formulas import Asked
    from conformance.diagnose.registry import Predicted


def _reach(evidence: Evidence, layer: int) -> tuple[int, int] | None:
    """How far ahead and how far back the subject's queries see, as its pattern shows it."""
    site = f"blocks.{layer}.attn.pattern"
    ahead = back = None
    for name in evidence.prompts:
        pattern = evidence.subject(name, site)
        if pattern is None or pattern.ndim != 4:
            return None
        valid = evidence.prompt(name).valid
        seen = (pattern > 0) & valid[:, None, :, None] & valid[:, None, None, :]
        where = seen.any(1).nonzero()
        if not len(where):
            return None
        away = where[:, 1] - where[:, 2]
        ahead = max(-int(away.min()), -(10**9) if ahead is None else ahead)
        back = max(int(away.max()), -(10**9) if back is None else back)
    return None if ahead is None or back is None else (ahead, back)


def masks(asked: Asked) -> Iterator[Proposal]:
    """The causal mask, the sliding window and the padding mask."""
    evidence, f, layer, by = asked.evidence, asked.formula, asked.layer, asked.by
    own = f.mask.window

    def masked(**fields: Any) -> Callable[[Scene], Predicted]:
        found: Callable[[Scene], Predicted] = by(
            dataclasses.replace(f, mask=dataclasses.replace(f.mask, **fields))
        )
        return found

    for offset in (1, -1):
        what = "sees the next token" if offset == 1 else "does not see its own token"
        for lonely in ("own", "all") if offset < 0 else ("own",):
            yield Proposal(
                "causal_mask",
                f"is masked so that a query {what}",
                masked(offset=offset, lonely=lonely),
                variant=lonely != "own",
            )
    yield Proposal(
        "causal_mask", "has no causal mask: a query sees every later token", masked(offset=10**9)
    )
    yield Proposal("padding_ignored", "gives weight to padding", masked(padding=False))
    windows = [w for w in evidence.dims.windows if w is not None]
    says = "the checkpoint's layer is global" if own is None else f"the checkpoint says {own}"
    if own is not None:
        yield Proposal(
            "window_absent",
            f"has no sliding window: it sees every earlier token; {says}",
            masked(window=None),
            implies=("window_width",),
        )
        yield Proposal(
            "window_absent",
            f"has no sliding window, and beyond where it should be sees padding; {says}",
            masked(window=None, stray=own),
            implies=("window_width",),
            variant=True,
        )
    widths = {w for w in windows if w != own}
    if own is not None:
        widths |= {own - 1, own + 1, 2 * own, own // 2, own * 2 + 1}
    reach = _reach(evidence, layer)
    if reach is not None and reach[1] + 1 != own:
        widths.add(reach[1] + 1)
    for width in sorted(w for w in widths if w > 0):
        yield Proposal(
            "window_width" if own is not None else "window_on_global_layer",
            f"has a sliding window of {width} tokens; {says}",
            masked(window=width),
        )
        if own is not None and width > own:
            yield Proposal(
                "window_width",
                f"has a sliding window of {width} tokens, and beyond the right one sees "
                f"padding; {says}",
                masked(window=width, stray=own),
                variant=True,
            )
