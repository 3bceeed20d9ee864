"""Sequences one at a time: what any batch of them, padded or not, must give back."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

from conformance import bounds
from conformance.experiments.base import Apparatus, Experiment
from conformance.experiments.rows import project, seeded
from conformance.prompts import Prompt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from conformance.experiments.base import Scope
    from conformance.families import Dims

#: Lengths of the sequences that share a padded batch, in tokens; shorter where a scope is.
LENGTHS = (3, 8, 14)
#: How many sequences of one length share a batch without padding.
EQUAL = 3
SIDES = ("left", "right")
#: Positions count from here where they are given, not derived.
SHIFT = 3


def sequences(dims: Dims, scope: Scope) -> dict[str, torch.Tensor]:
    """Token ids [pos] by name: ``unequal{i}`` and ``equal{i}``."""
    import torch

    longest = min(scope.positions, dims.n_ctx - SHIFT)
    lengths = [min(n, longest) for n in LENGTHS]
    lengths += [min(lengths[1], longest)] * EQUAL
    generator = seeded("sequences")
    names = [f"unequal{i}" for i in range(len(LENGTHS))] + [f"equal{i}" for i in range(EQUAL)]
    # The first ids are special tokens in every vocabulary we know of.
    first = min(4, dims.n_ids - 1)
    return {
        name: torch.randint(first, dims.n_ids, (length,), generator=generator)
        for name, length in zip(names, lengths, strict=True)
    }


def padded(rows: Sequence[torch.Tensor], side: str, fill: int = 0) -> Prompt:
    """One batch of sequences, padded on one side with a token."""
    import torch

    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), fill, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, where], mask[i, where] = row, 1
    return Prompt(f"padded_{side}", tokens, mask)


def unpadded(value: torch.Tensor, prompt: Prompt, row: int) -> torch.Tensor:
    """The real positions of one row of [batch, pos, ...]."""
    return value[row][prompt.valid[row]]


class Batching(Experiment):
    """Logits, projected [pos, 16], of every sequence alone; and of one at shifted positions.

    Results: names of :func:`sequences`, and ``shifted`` where the model takes position ids.
    Facts: for each side, how far padding moves the reference's own rows, if that is more than
    roundoff: then the architecture's results depend on padding, and no port can be blamed.
    """

    uses: ClassVar[tuple[str, ...]] = ("conformance.experiments.rows",)

    def run(self, on: Apparatus) -> Iterator[tuple[str, torch.Tensor]]:
        found = sequences(on.model.dims, on.scope)
        for name, tokens in found.items():
            logits = on.model.run(Prompt(name, tokens[None]), lambda *_: None)
            yield name, project(logits)[0]
        takes = "position_ids" in inspect.signature(on.model.model.forward).parameters
        fam = on.model.family
        if takes and not fam.own_positions and not fam.encoder:  # the encoder's or the decoder's?
            tokens = found["equal0"][None]
            with on.model.session():
                positions = SHIFT + _arange(tokens)
                logits = on.model.model(
                    input_ids=tokens, position_ids=positions, use_cache=False
                ).logits
            yield "shifted", project(logits)[0]

    def facts(self, on: Apparatus) -> dict[str, Any]:
        from conformance.metrics import difference

        found = sequences(on.model.dims, on.scope)
        rows = [tokens for name, tokens in found.items() if name.startswith("unequal")]
        moved: dict[str, float] = {}
        for side in SIDES:
            prompt = padded(rows, side, on.model.dims.pad)
            batch = on.model.run(prompt, lambda *_: None)
            for i, tokens in enumerate(rows):
                alone = on.model.run(Prompt(side, tokens[None]), lambda *_: None)[0]
                apart = difference(alone, unpadded(batch, prompt, i)).rel_max
                if not apart <= bounds.SAME_FUNCTION_CEILING:
                    moved[side] = max(apart, moved.get(side, 0.0))
        return {"moved_by_padding": moved}


def _arange(tokens: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.arange(tokens.shape[1]).repeat(tokens.shape[0], 1)


EXPERIMENT = Batching()
