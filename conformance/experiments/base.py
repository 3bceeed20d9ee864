"""What an experiment is, and how much of a model it covers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import torch

    from conformance.families import Dims
    from conformance.implementations.huggingface import HuggingFaceModel
    from conformance.prompts import Prompt

#: A model with more parameters in its blocks and its embedding than this is *large*: experiments
#: cover its first, middle and last layer and a short prompt, so that they stay minutes apart from
#: hours. It bounds cost, not a verdict, and what was left out is said in the record.
LARGE = 20_000_000
SHORT = 8


@dataclass(frozen=True)
class Scope:
    """How much of a model the checks of invariants cover.

    Attributes:
        layers: which blocks.
        positions: longest prompt, in tokens.
        large: whether that is less than the whole.
    """

    layers: tuple[int, ...]
    positions: int
    large: bool

    @classmethod
    def of(cls, dims: Dims) -> Scope:
        """All layers and 16 tokens, or three layers and 8 tokens of a large model."""
        size = 12 * dims.n_layers * dims.d_model**2 + dims.d_vocab * dims.d_model
        every = tuple(range(dims.n_layers))
        if size <= LARGE:
            return cls(every, 16, large=False)
        some = sorted({0, dims.n_layers // 2, dims.n_layers - 1})
        return cls(tuple(some), SHORT, large=True)

    def cut(self, prompt: Prompt) -> Prompt:
        """The first tokens of a prompt, as many as this scope has."""
        mask = None if prompt.mask is None else prompt.mask[:, : self.positions]
        return replace(prompt, tokens=prompt.tokens[:, : self.positions], mask=mask)

    def said(self) -> dict[str, Any]:
        """For a record's metrics: what was left out, if anything."""
        if not self.large:
            return {}
        return {"covered": {"layers": list(self.layers), "positions": self.positions}}


@dataclass(frozen=True)
class Apparatus:
    """What an experiment works with.

    Attributes:
        model: the reference, in promoted float64.
        prompts: those of its trace, by name.
        checkpoint: its directory (tokenizer files and all).
        tokenizer: the reference's, or None.
    """

    model: HuggingFaceModel
    prompts: Mapping[str, Prompt]
    checkpoint: Path
    tokenizer: Any | None

    @property
    def scope(self) -> Scope:
        return Scope.of(self.model.dims)


class Experiment(ABC):
    """What the reference computes for one check.

    Attributes:
        uses: modules, besides its own, whose source determines its results.
        needs_model: False if it reads the tokenizer alone: then no model is loaded, and
            ``Apparatus.model`` must not be touched.
    """

    uses: ClassVar[tuple[str, ...]] = ()
    needs_model: ClassVar[bool] = True

    @abstractmethod
    def run(self, on: Apparatus) -> Iterator[tuple[str, torch.Tensor]]:
        """Results by name, each once. It must leave the model as it found it.

        Floating-point results get a spread: how far they move when the weights move by one
        unit in the last place. Others (token ids) must come out the same both times to be
        stored with spread 0.0; where they do not, their spread is infinite.
        """

    def facts(self, on: Apparatus) -> dict[str, Any]:
        """What else the check must know, as JSON values."""
        return {}
