"""Discrete choices inside a forward pass: which experts (or keys) each token is sent to.

Two right implementations round differently, and where two experts score nearly alike one may
choose the other: everything after it then differs by as much as the experts do, which says nothing
of its precision. So the reference's choice is replayed wherever precision is judged, in its own
variants as in a port, and what a port would have chosen itself is held against the margin of the
choice alone.

A choice is a ``torch.topk`` over the last dimension inside a block: all routers of HuggingFace
and TransformerLens make theirs so, groups of experts and sparse attention's keys included.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from conformance.bounds import MASKED_BELOW, ZERO
from conformance.metrics import difference

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from conformance.families import Family
    from conformance.implementations.base import Implementation

_TOPK = frozenset({torch.topk, torch.Tensor.topk})


@dataclass(frozen=True)
class Choice:
    """One choice of all tokens.

    Attributes:
        scores: what is chosen by, [..., candidate].
        indices: the candidates chosen, [..., chosen].
    """

    scores: torch.Tensor
    indices: torch.Tensor

    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [token, candidate] in float64 and indices [token, chosen]."""
        scores = self.scores.reshape(-1, self.scores.shape[-1]).to(torch.float64)
        return scores, self.indices.reshape(-1, self.indices.shape[-1])


#: ``layer:number of the choice in its block`` -> the choice.
Choices = dict[str, Choice]


@dataclass(frozen=True)
class Flips:
    """Where an implementation would have chosen otherwise than the truth.

    Attributes:
        tokens: how many would.
        of: how many there are.
        margin: the largest difference in the truth's scores between a candidate dropped and one
            taken instead, relative to the largest of the token's scores.
    """

    tokens: int
    of: int
    margin: float


def chooses(fam: Family) -> bool:
    """Whether an architecture makes discrete choices at all."""
    return any(own.moe or own.indexed for own in fam.every)


@contextlib.contextmanager
def watched(model: Implementation, replay: Mapping[str, Choice] | None = None) -> Iterator[Watch]:
    """See every choice of a model while the context lasts; make it choose as ``replay`` did."""
    watch = Watch(replay or {})
    if not chooses(model.family):
        yield watch
        return
    with contextlib.ExitStack() as stack:
        for name, module in model.components().items():
            if name.startswith("blocks.") and name.count(".") == 1:
                enter = watch.entering(int(name.split(".")[1]))
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(watch.leave).remove)
        stack.enter_context(watch)
        yield watch


class Watch(TorchFunctionMode):
    """Reads, and replays, what is chosen inside blocks; see :func:`watched`.

    Attributes:
        seen: the model's own choices, each made after the earlier ones were replayed.
        unmatched: choices of the model that no replayed one has the shape of.
    """

    def __init__(self, replay: Mapping[str, Choice]) -> None:
        super().__init__()
        self.seen: Choices = {}
        self.unmatched: list[str] = []
        self._replay = replay
        self._layer: int | None = None
        self._count = 0

    def entering(self, layer: int) -> Any:
        """A forward pre-hook for the block of a layer."""

        def enter(*_: Any) -> None:
            self._layer, self._count = layer, 0

        return enter

    def leave(self, *_: Any) -> None:
        """A forward hook for every block."""
        self._layer = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._layer is None or func not in _TOPK:
            return result
        scores = args[0] if args else kwargs["input"]
        dim = args[2] if len(args) > 2 else kwargs.get("dim", -1)
        if dim % scores.ndim != scores.ndim - 1:
            return result
        key = f"{self._layer}:{self._count}"
        self._count += 1
        self.seen[key] = Choice(scores.detach(), result.indices)
        wanted = self._replay.get(key)
        if wanted is None:
            if self._replay:
                self.unmatched.append(key)
            return result
        indices = result.indices
        fits = wanted.scores.shape[-1] == scores.shape[-1]
        if not fits or wanted.indices.numel() != indices.numel():
            self.unmatched.append(key)
            return result
        chosen = wanted.indices.reshape(indices.shape).to(indices.dtype)
        return torch.return_types.topk((scores.gather(-1, chosen), chosen))


def doubled(choices: Mapping[str, Choice]) -> Choices:
    """The choices of a batch for the batch twice over."""

    def twice(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor])

    return {key: Choice(twice(c.scores), twice(c.indices)) for key, c in choices.items()}


def error(truth: Choice, own: Choice, valid: torch.Tensor) -> float:
    """How far scores are from the truth's, the largest over tokens, relative to the token's.

    Args:
        own: of as many tokens, or of the same batch twice over.
        valid: bool [batch, pos], True at real tokens.
    """
    right, _ = truth.rows()
    scores, _ = own.rows()
    if scores.shape[-1] != right.shape[-1] or scores.shape[0] < right.shape[0]:
        return float("nan")
    keep = (right > MASKED_BELOW) & _real(right, valid)[:, None]
    if not bool(keep.any()):
        return 0.0
    return difference(right, scores[: right.shape[0]], keep).rel_max


def flips(truth: Choice, own: Choice, valid: torch.Tensor) -> Flips | None:
    """Where ``own`` chooses otherwise than the truth, whatever the order; None where nowhere.

    Candidates that a mask forbids make no difference to each other.
    """
    right, chosen = truth.rows()
    _, others = own.rows()
    if others.shape != chosen.shape:
        return None
    real = _real(right, valid)
    live = right > MASKED_BELOW
    in_truth = torch.zeros_like(live).scatter(1, chosen.long(), True)
    in_own = torch.zeros_like(live).scatter(1, others.long(), True)
    dropped = in_truth & ~in_own & live & real[:, None]
    rows = dropped.any(1)
    if not bool(rows.any()):
        return None
    infinite = torch.tensor(float("inf"), dtype=right.dtype)
    best = right.where(dropped, -infinite).amax(1)
    worst = right.where(live, -infinite).where(in_own & ~in_truth, infinite).amin(1)
    scale = right.abs().where(live, torch.zeros_like(infinite)).amax(1).clamp_min(ZERO)
    # Below zero where rounded weights turn the choice themselves.
    margin = ((best - worst) / scale)[rows].amax().clamp_min(0)
    return Flips(int(rows.sum()), int(real.sum()), float(margin))


def _real(rows: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Which rows [token] are of real tokens, where rows are tokens."""
    if rows.shape[0] == valid.numel():
        return valid.reshape(-1)
    return torch.ones(rows.shape[0], dtype=torch.bool)
