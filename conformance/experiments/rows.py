"""Many edited runs in one forward pass: the prompt repeated, each row edited on its own.

Both sides edit alike, so what is here decides what an experiment of edits compares. Logits are
kept as a seeded Gaussian projection: two sets of logits that differ anywhere at a position differ
there in every one of its numbers with probability one, in proportion to the difference.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from conformance import SEEDS
from conformance.content import contents
from conformance.memory import LOGITS
from conformance.prompts import build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from conformance.experiments.base import Scope
    from conformance.families import Dims, Family
    from conformance.implementations.base import Edits, Implementation
    from conformance.prompts import Prompt

    #: What to make of a site's value in one row: laid out along the site's axes, no batch.
    RowEdit = Callable[[torch.Tensor], torch.Tensor]
    #: What is done in one row: site -> edit.
    Row = Mapping[str, RowEdit]

#: Numbers kept of the logits of a position.
WIDTH = 16


def seeded(what: str) -> torch.Generator:
    """A generator of its own for everything random that has a name."""
    import torch

    return torch.Generator().manual_seed(SEEDS["prompts"] + zlib.crc32(what.encode()))


def gaussian(what: str, *shape: int) -> torch.Tensor:
    """Standard normal float64 numbers, the same wherever they are asked for by this name."""
    import torch

    return torch.randn(*shape, generator=seeded(what), dtype=torch.float64)


def prompt_of(dims: Dims, scope: Scope) -> Prompt:
    """The prompt ``sixteen``, one row, as long as the scope has it."""
    (prompt,), _ = build(dims, None, ("sixteen",))
    return scope.cut(prompt)


def read_by(fam: Family, config: Any, dims: Dims, scope: Scope) -> Prompt:
    """The same, or for a model without tokens an image, or a wave of sixteen frames: whole, as one
    cut short is another.

    Args:
        config: HuggingFace's.
    """
    if fam.reads is None:
        return prompt_of(dims, scope)
    (prompt,), _ = contents(fam, config, ("sixteen",))
    return prompt


def project(logits: torch.Tensor) -> torch.Tensor:
    """[batch, pos, d_vocab] -> [batch, pos, WIDTH]."""
    d_vocab = logits.shape[-1]
    return logits @ (gaussian("logits", d_vocab, WIDTH) / d_vocab**0.5).to(logits.dtype)


def apart(rows: Sequence[Row]) -> Edits:
    """One edit for each site that any row edits: each row's own, and no other row's."""
    by_site: dict[str, dict[int, RowEdit]] = {}
    for index, row in enumerate(rows):
        for site, edit in row.items():
            by_site.setdefault(site, {})[index] = edit

    def edits(own: Mapping[int, RowEdit]) -> Callable[[torch.Tensor], torch.Tensor]:
        def edit(value: torch.Tensor) -> torch.Tensor:
            changed = value.clone()
            for index, change in own.items():
                changed[index] = change(value[index])
            return changed

        return edit

    return {site: edits(own) for site, own in by_site.items()}


def batches(dims: Dims, prompt: Prompt, rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Parts of rows, as many in each as memory allows for one forward pass."""
    step = max(1, LOGITS // (prompt.tokens.shape[1] * dims.d_vocab))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def repeated(prompt: Prompt, rows: int) -> Prompt:
    """A prompt of one row as a batch."""
    given = prompt.decoder
    return replace(
        prompt,
        tokens=prompt.tokens.repeat(rows, 1),
        extra={k: v.repeat(rows, *(1,) * (v.ndim - 1)) for k, v in prompt.extra.items()},
        decoder=None if given is None else given.repeat(rows, 1),
    )


def run_rows(
    model: Implementation, prompt: Prompt, rows: Sequence[Row]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Row index -> its logits, projected [pos, WIDTH]; as few forward passes as memory allows.

    Args:
        prompt: of one row.
    """
    start = 0
    for part in batches(model.dims, prompt, rows):
        batch = repeated(prompt, len(part))
        logits = project(model.run(batch, lambda *_: None, edits=apart(part)))
        for index, value in enumerate(logits):
            yield start + index, value.clone()
        start += len(part)
