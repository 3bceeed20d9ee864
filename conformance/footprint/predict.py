"""The bytes that each step of a run holds at once, from a model's sizes.

A phase is a sum of what was found alive in it (``docs/footprint.md``): the weights as often as they
are held, what a forward pass makes, what is kept. Its parts are named for a reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from conformance.checks.names import CHECKS
from conformance.memory import LOGITS, LOGITS_AT_ONCE, MAPPED, MOVED_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from conformance.footprint.shapes import Shape

_ITEM = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_F64 = 8
#: Resident bytes of a child before it does anything: what transformers, and TransformerLens on top,
#: import; and what the first model loads besides (measured: docs/footprint.md).
IMPORTS: Mapping[str, int] = {"reference": 292_000_000, "subject": 355_000_000}
_TOUCHED = 60_000_000
#: What a subject's process has gathered by its second dtype: comparisons, tables of hooks.
_GATHERED = 60_000_000
#: What transformers maps of a checkpoint while it loads: its weights, mostly in float32 at most.
_STORED = 4
#: How often TransformerLens's weight processing holds a table of tokens, and the rest, besides the
#: model's own (docs/footprint.md). Tied: while it centres the unembedding, the parameters as they
#: were given and a copy of them, each with two tables, the port's new table, and the difference
#: with its mean. Logits with a soft cap are not centred.
_COPIED_TIED, _COPIED_CAPPED, _COPIED = (7, 2), (5, 2), (6, 1.25)
#: Tensors that the reference's trace holds on to, and how many a block gives (trace.py).
_KEPT_BLOCKS = 3
#: Matrices [head, query, key] that eager attention has at once: scores, masked, pattern, a copy.
_MATRICES = 4
#: Logits [pos, d_vocab] that a judged pass has at once: the model's, shifted ones, log-softmax.
_LOGITS = 3
#: The same, of both sides, where they are compared: given, valid, centred; and the model's.
_COMPARED = 7
#: Float64 copies of a part of them that their figures take (metrics.logit_metrics).
_FIGURES = 10
#: Float64 copies of a part of a weight that is moved by roundoff: noise, product, sum.
_RANDOM = 5
#: Sites of a block that are edited, heads apart (sites.py, at most).
_SITES = 16
#: Rows, longest prompt and steps of the largest batch that generates (experiments/generation.py).
_GENERATING = (3, 14, 24)
#: Tokens of all prompts but the longest (prompts.py), whose logits are kept in a dtype.
_SHORT_TOKENS = 16 + 1 + 2 + 64 + 64 + 42 + 42


@dataclass(frozen=True, slots=True)
class Phase:
    """One step of a run.

    Attributes:
        name: what is done, by whom.
        side: ``reference`` or ``subject``: a process each.
        parts: what is held -> bytes, without the libraries.
    """

    name: str
    side: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes over the import of the libraries."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a run needs. The peak decides: one phase runs at a time."""

    dtype: str
    phases: tuple[Phase, ...]

    @property
    def peak(self) -> Phase:
        """The phase with the most memory in use, its process's imports included."""
        return max(self.phases, key=lambda phase: IMPORTS[phase.side] + phase.total)

    @property
    def host_bytes(self) -> int:
        """Peak resident bytes of a process on the CPU, its libraries included."""
        return IMPORTS[self.peak.side] + self.peak.total

    @property
    def gpu_bytes(self) -> int:
        """The same tensors on a GPU: without the libraries, and without what is mapped from disk.

        What CUDA itself takes is not in it, and none of it was measured.
        """
        return max(
            sum(count for name, count in phase.parts.items() if name not in _HOST_ONLY)
            for phase in self.phases
        )

    @property
    def sides(self) -> dict[str, Phase]:
        """The largest phase of each of the two processes."""
        found: dict[str, Phase] = {}
        for phase in self.phases:
            if phase.side not in found or phase.total > found[phase.side].total:
                found[phase.side] = phase
        return found


_MAPPED, _LIBRARIES, _TRACE = "mapped files", "libraries", "trace"
#: Parts that stay in RAM wherever the tensors are.
_HOST_ONLY = frozenset({_MAPPED, _LIBRARIES, _TRACE, "gathered before"})


def predict(
    shape: Shape,
    dtype: str = "float32",
    checks: Collection[str] = CHECKS,
    *,
    tokens: int | None = None,
    batch: int = 1,
) -> Footprint:
    """What a run of some checks needs.

    Args:
        shape: the model's sizes.
        dtype: that precision is judged in.
        checks: which of them are asked for.
        tokens: of the longest prompt; the harness's own unless given.
        batch: rows of the longest prompt; the harness's own has one.
    """
    run = _Run(shape, dtype, tokens or shape.long, batch)
    return Footprint(dtype, tuple(run.phases(frozenset(checks))))


class _Run:
    """The phases of one run; sizes are those of :class:`Shape`."""

    def __init__(self, shape: Shape, dtype: str, tokens: int, batch: int) -> None:
        self.shape, self.dtype, self.tokens, self.batch = shape, dtype, tokens, batch
        self.weights = _F64 * shape.parameters
        self.table = _F64 * shape.embedding
        #: Tokens of one batch of edited rows: a row for each site and head of the layers covered at
        #: each position; no more than :data:`~conformance.memory.LOGITS` allows.
        layers, positions = (min(3, shape.layers), 8) if shape.large else (shape.layers, 16)
        rows = layers * (shape.heads + _SITES) * positions
        self.rows = min(rows * positions, LOGITS // shape.d_vocab)

    def phases(self, checks: frozenset[str]) -> Iterator[Phase]:
        """All of them, those of checks that are not asked for left out."""
        yield self._phase("trace in float64", "reference", 1, blocks=1 + _KEPT_BLOCKS)
        if self.dtype != "float64":
            yield self._own_error()
        yield from self._experiments(checks)
        yield from self._subject(checks)

    def _experiments(self, checks: frozenset[str]) -> Iterator[Phase]:
        if "gradients" in checks:
            name = "gradients of the reference"
            yield Phase(name, "reference", {**self._weights(2), **self._tables(), **self._rest()})
        if checks & {"interventions", "patching"}:
            yield self._edited("edits of the reference", "reference")

    def _subject(self, checks: frozenset[str]) -> Iterator[Phase]:
        stored = {_MAPPED: _STORED * self.shape.parameters}
        copies = 2 if "weights" in checks else 1
        yield Phase("loading", "subject", {**self._weights(copies), **stored, **self._rest()})
        if checks & _PASSES:
            yield self._phase("forward in float64", "subject", 1, blocks=2)
            yield self._judged()
        if checks & {"interventions", "patching"}:
            yield self._edited("edits", "subject")
        if "generation" in checks:
            yield self._generated()
        if "hooks" in checks:
            yield Phase("hooks", "subject", {**self._weights(2), **self._tables(), **self._rest()})
        if "gradients" in checks:
            # The port's gradients, and the checkpoint's weights that they are pulled back to.
            yield Phase("gradients", "subject", {**self._weights(3), **stored, **self._rest()})
        processed = self._processed()
        if "processing" in checks:
            # The model that other checks go on with, and one loaded anew.
            yield Phase(
                "weight processing", "subject", {**self._weights(2), **processed, **self._rest()}
            )
        elif "logits" in checks:
            yield Phase(
                "weight processing", "subject", {**self._weights(1), **processed, **self._rest()}
            )

    def _rest(self) -> dict[str, int]:
        """What the first model loads of the libraries, and the window on mapped traces."""
        shape, n = self.shape, self.tokens
        matrices = 2 * self.batch * _F64 * shape.heads * n * n
        sites = self.batch * n * self._per_token() + matrices
        trace = shape.layers * sites + _STORED * shape.parameters
        return {_LIBRARIES: _TOUCHED, _TRACE: min(MAPPED, trace)}

    def _weights(self, times: int) -> dict[str, int]:
        return {"weights": times * self.weights}

    def _tables(self) -> dict[str, int]:
        """Gradients of a table are as large as it, once for each use and once for their sum."""
        return {"gradients of the tables": (2 if self.shape.tied else 1) * self.table}

    def _processed(self) -> dict[str, int]:
        """What weight processing copies: all but experts; a tied unembedding gets a table too."""
        tied = _COPIED_CAPPED if self.shape.capped else _COPIED_TIED
        tables, blocks = tied if self.shape.tied else _COPIED
        size = _F64 * (self.shape.blocks - self.shape.experts)
        return {
            "copies of blocks": round(blocks * size),
            "copies of tables": round(tables * self.table),
        }

    def _phase(self, name: str, side: str, times: int, *, blocks: int) -> Phase:
        """A forward pass of the longest prompt, of which some blocks' sites are held."""
        shape, n = self.shape, self.tokens
        positions = self.batch * n
        return Phase(
            name,
            side,
            {
                **self._weights(times),
                "activations": blocks * positions * self._per_token(),
                "attention matrices": _MATRICES * _F64 * shape.heads * positions * n,
                "logits": _LOGITS * _F64 * positions * shape.d_vocab,
                **self._rest(),
            },
        )

    def _per_token(self) -> int:
        """Bytes of a block's sites but the attention matrices."""
        shape = self.shape
        heads = (shape.heads + 2 * shape.kv_heads) * shape.d_head
        return _F64 * (8 * shape.d_model + 2 * heads + 3 * shape.d_mlp)

    def _own_error(self) -> Phase:
        """The reference in the dtype, its weights rounded anew and kept as they were."""
        shape, item = self.shape, _ITEM[self.dtype]
        kept = item * (_SHORT_TOKENS + self.batch * self.tokens) * shape.d_vocab
        own = self._phase("", "", 0, blocks=1).parts
        return Phase(
            f"precision in {self.dtype}",
            "reference",
            {
                "weights": 2 * item * shape.parameters,
                "activations": own["activations"] * item // _F64,
                "attention matrices": own["attention matrices"] * item // _F64,
                "logits": own["logits"] * item // _F64 + kept,
                "random numbers": _RANDOM * _F64 * min(MOVED_AT_ONCE, shape.embedding),
                **self._rest(),
            },
        )

    def _judged(self) -> Phase:
        """The longest prompt's logits in the dtype, held against the reference's, all processed."""
        shape, item = self.shape, _ITEM[self.dtype]
        own = self._phase("", "", 0, blocks=2).parts
        logits = self.batch * self.tokens * shape.d_vocab
        return Phase(
            f"forward in {self.dtype}",
            "subject",
            {
                "weights": 2 * item * shape.parameters,
                "activations": own["activations"] * item // _F64,
                "attention matrices": own["attention matrices"] * item // _F64,
                "logits": _COMPARED * item * logits,
                "gathered before": _GATHERED,
                "figures of logits": _FIGURES * _F64 * min(LOGITS_AT_ONCE, logits),
                **self._rest(),
            },
        )

    def _generated(self) -> Phase:
        """Tokens after a prompt, one at a time, their keys and values kept."""
        shape, (rows, prompt, steps) = self.shape, _GENERATING
        cache = 2 * shape.layers * shape.kv_heads * shape.d_head * rows * (prompt + steps)
        return Phase(
            "generation",
            "subject",
            {
                **self._weights(1),
                "caches": _F64 * cache,
                "logits": _LOGITS * _F64 * rows * steps * shape.d_vocab,
                **self._rest(),
            },
        )

    def _edited(self, name: str, side: str) -> Phase:
        """Many rows, each edited on its own, in one forward pass."""
        shape = self.shape
        return Phase(
            name,
            side,
            {
                **self._weights(1),
                "logits": _F64 * self.rows * shape.d_vocab,
                "activations": _F64 * self.rows * (2 * shape.d_model + shape.d_mlp),
                **self._rest(),
            },
        )


#: Checks that read forward passes of all prompts.
_PASSES = frozenset({"activations", "components", "logits", "loss"})
