"""What a check is, and what it sees."""

from __future__ import annotations

import contextlib
import math
import traceback
from abc import ABC
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import conformance
from conformance import bounds
from conformance.compare import measure
from conformance.records import Comparison
from conformance.variants import CENTRED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

    from conformance.experiments.base import Scope
    from conformance.experiments.store import Stored
    from conformance.families import Dims
    from conformance.implementations.lens_model import LensModel
    from conformance.metrics import Difference
    from conformance.prompts import Prompt
    from conformance.recall import Recall
    from conformance.reference import Reference

#: How the library says that a layer's heads are not of the model's size, and that its weights are
#: to be read otherwise.
_DECLINES = "PerLayerGeometryError"

#: What a subject's forward pass is: the reference's modes.
PassMode = Literal["plain", "blocks", "components", "processed"]


def declines(error: Exception, sizes: Dims) -> bool:
    """Whether the library says that it does not show a weight, and rightly so: layers have heads
    of different sizes. The same words about a model whose layers are alike are its failure
    (docs/findings/053-latent-attention-parameters.md)."""
    return type(error).__name__ == _DECLINES and bool(sizes.layers)


@dataclass(frozen=True)
class Pass:
    """One forward pass of a subject.

    Attributes:
        dtype: ``float64`` (promoted: same function) or the model's own (same precision).
        mode: how components are fed.
        prompt: on what.
    """

    dtype: str
    mode: PassMode
    prompt: Prompt

    @property
    def exact(self) -> bool:
        """Whether this pass judges *same function*."""
        return self.dtype == "float64"

    @property
    def where(self) -> str:
        """What a comparison calls it."""
        return self.prompt.name + ("" if self.mode == "plain" else f" ({self.mode})")

    def __str__(self) -> str:
        return f"{self.prompt.name} [{self.dtype}, {self.mode}]"


@dataclass
class Context:
    """The two sides, as far as they are loaded."""

    reference: Reference
    subject: LensModel
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    tied_unembed: bool = False
    #: Comparisons that need not be made again, where one port is judged many times.
    recall: Recall | None = None
    #: The job's subject, loaded anew in promoted float64.
    fresh: Callable[[], LensModel] | None = None
    #: Tokens generated at most; None for as many as the reference generated.
    generated: int | None = None
    #: What a token id stands for, where there is a tokenizer; for a reader.
    word: Callable[[int], str] | None = None

    @property
    def scope(self) -> Scope:
        """How much of this model the checks of invariants cover."""
        from conformance.experiments.base import Scope

        return Scope.of(self.reference.dims)

    def experiment(self, check: str) -> Stored:
        """What the reference computed for a check.

        Raises:
            TraceError: it could not, or was not asked to.
        """
        from conformance.experiments.store import stored

        return stored(self.reference.path, check)


class Check(ABC):
    """One family of comparisons. An instance lives for one subject of one model."""

    name: ClassVar[str]
    #: The passes this check reads.
    modes: ClassVar[frozenset[PassMode]] = frozenset()
    #: Whether it reads the loaded weights (once, in float64).
    reads_weights: ClassVar[bool] = False
    #: Whether it judges models that read pixels or a wave, and no tokens.
    of_content: ClassVar[bool] = False
    #: Whether it makes runs of its own (:meth:`exact`).
    runs: ClassVar[bool] = False

    def __init__(self) -> None:
        self.comparisons: list[Comparison] = []
        self.metrics: dict[str, Any] = {}

    def exact(self, context: Context) -> Iterable[Comparison]:
        """Make runs of one's own, of the subject in promoted float64, before its weights are
        processed; it must be left as it was found."""
        return ()

    def not_applicable(self, what: str, reason: str) -> None:
        """An invariant that this architecture makes meaningless, or a port cannot show."""
        self.metrics.setdefault("not_applicable", {})[what] = reason

    @contextlib.contextmanager
    def port(
        self, doing: str, site: str | None = None, sizes: Dims | None = None
    ) -> Iterator[None]:
        """Around a call of the port: what it raises is its failure, and the check goes on.

        An exception from our own code passes through.

        Args:
            sizes: of the model, where weights are read that the library may decline to show.
        """
        try:
            yield
        except Exception as error:
            if is_ours(error):
                raise
            if sizes is not None and declines(error, sizes):
                self.not_applicable(doing, f"the library declines: {error}")
                return
            note = f"{doing} raised {type(error).__name__}: {error}"
            self.comparisons.append(structure(site, note))

    def wants(self, run: Pass) -> bool:
        """Whether this check reads ``run``."""
        return run.mode in self.modes

    def weights(self, context: Context) -> Iterable[Comparison]:
        """Compare loaded weights; called once, before any forward pass."""
        return ()

    def site(
        self, context: Context, run: Pass, name: str, value: torch.Tensor
    ) -> Iterable[Comparison]:
        """Compare one site of one pass, as it fires."""
        return ()

    def finish(
        self,
        context: Context,
        run: Pass,
        logits: torch.Tensor,
        loss: torch.Tensor | None,
    ) -> Iterable[Comparison]:
        """Compare what the pass returned. ``loss`` is [batch, pos - 1], plain passes only."""
        return ()


def is_ours(error: BaseException) -> bool:
    """Whether an exception was raised in the harness's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    # Promotion passes on what a torch call of the port raises.
    last = next(f for f in reversed(frames) if f.name != "__torch_function__")
    return Path(last.filename).is_relative_to(Path(conformance.__file__).parent)


def agree(
    stored: Stored,
    key: str,
    value: torch.Tensor,
    *,
    site: str | None,
    on: str,
    truth: torch.Tensor | None = None,
    row_dims: int = 1,
    note: str = "",
) -> Comparison:
    """One result of the subject against the reference's, under *same function*.

    Args:
        key: the result's name in the experiment: whose value, unless ``truth`` is given, and
            whose spread count.
        value: the subject's, of the same shape.
        site: where a failure is to be named, if anywhere.
        on: the prompt and what was done to it, for a reader.
        row_dims: how many trailing dimensions share a scale (``metrics.difference``).
    """
    return same(
        stored[key] if truth is None else truth,
        value,
        stored.spread(key),
        site=site,
        on=on,
        row_dims=row_dims,
        note=note,
    )


def same(
    truth: torch.Tensor,
    value: torch.Tensor,
    spread: float,
    *,
    site: str | None,
    on: str,
    row_dims: int = 1,
    note: str = "",
) -> Comparison:
    """Two tensors under *same function*, given how far roundoff alone moves them (relative)."""
    from conformance.metrics import difference

    if truth.shape != value.shape:
        return structure(
            site, f"shape {tuple(value.shape)}, expected {tuple(truth.shape)}; {note or on}", on
        )
    if truth.ndim == 0:
        truth, value = truth.reshape(1), value.reshape(1)
    found = difference(truth, value.detach(), row_dims=row_dims)
    return within(found, spread, site=site, on=on, note=note)


def within(
    found: Difference, spread: float, *, site: str | None, on: str, note: str = ""
) -> Comparison:
    """A difference that was measured already, under *same function*."""
    allowed, source = bounds.same_function(spread)
    return Comparison(
        judgement="same_function",
        site=site,
        prompt=on,
        measured=found.rel_max,
        allowed=allowed,
        ok=found.rel_max <= allowed,  # NaN is not
        index=found.index,
        reference=found.reference,
        subject=found.subject,
        bound=source,
        note=note,
    )


def identical(
    truth: torch.Tensor, value: torch.Tensor, *, site: str | None, on: str, note: str = ""
) -> Comparison:
    """Two tensors bit for bit (NaN equals NaN); integers too."""
    import torch

    if truth.shape != value.shape or truth.dtype != value.dtype:
        what = f"{value.dtype} {tuple(value.shape)}, expected {truth.dtype} {tuple(truth.shape)}"
        return structure(site, f"{what}; {note or on}", on)
    apart = (truth != value) & ~((truth != truth) & (value != value))
    count = int(apart.sum())
    index = None
    if count:
        index = tuple(int(i) for i in torch.nonzero(apart)[0])
    return Comparison(
        judgement="exact",
        site=site,
        prompt=on,
        measured=float(count),
        allowed=0.0,
        ok=count == 0,
        index=index,
        reference=None if index is None else float(truth[index]),
        subject=None if index is None else float(value[index]),
        bound="bit for bit: number of entries that differ",
        note=note,
    )


def judge(
    context: Context, run: Pass, name: str, value: torch.Tensor, *, centre: bool = False
) -> Comparison:
    """One site of one pass, under the judgement of the pass's dtype.

    Args:
        centre: subtract each position's mean on both sides.
    """

    def compare() -> Comparison:
        return _judged(context, run, name, value, centre)

    return compare() if context.recall is None else context.recall(str(run), name, value, compare)


def _judged(
    context: Context, run: Pass, name: str, value: torch.Tensor, centre: bool
) -> Comparison:
    reference = context.reference
    truth = truth_of(reference, run, name)
    judgement: Literal["same_function", "same_precision"] = (
        "same_function" if run.exact else "same_precision"
    )
    if value.shape != truth.shape:
        return structure(
            name,
            f"shape {tuple(value.shape)}, the reference has {tuple(truth.shape)}",
            run.prompt.name,
        )
    loose = name.endswith("attn.scores") and context.subject.scores_up_to_a_constant
    found = measure(name, truth, value, run.prompt.valid, up_to_a_constant=loose, centre=centre)
    known_as = CENTRED if centre else name
    if run.exact:
        measured = found.rel_max
        allowed, source = bounds.same_function(reference.spread(run.prompt.name, known_as))
        note = ""
    else:
        own = reference.error(run.mode, run.prompt.name, known_as)
        measured = found.rel_rms
        if not math.isfinite(own):
            return _unjudged(name, run, measured)
        allowed, warn, source = bounds.same_precision(
            own, run.dtype, same_numbers=has_own_truth(reference, run)
        )
        note = "warning: over twice the reference's own error" if measured > warn else ""
    return Comparison(
        judgement=judgement,
        site=name,
        prompt=run.where,
        measured=measured,
        allowed=allowed,
        ok=measured <= allowed,  # NaN is not
        index=found.index,
        reference=found.reference,
        subject=found.subject,
        bound=source,
        note=note,
    )


def has_own_truth(reference: Reference, run: Pass) -> bool:
    """Whether a pass is held against arithmetic on the very numbers that its dtype holds."""
    return run.mode == "components" and not run.exact and reference.isolates


def truth_of(reference: Reference, run: Pass, name: str) -> torch.Tensor:
    """What a site of a pass is held against."""
    if has_own_truth(reference, run):
        return reference.isolated(run.prompt.name, name)
    return reference.truth(run.prompt.name, name)


def _unjudged(name: str, run: Pass, measured: float) -> Comparison:
    """A site at which the reference itself leaves the range of the dtype."""
    return Comparison(
        judgement="same_precision",
        site=name,
        prompt=run.where,
        measured=measured,
        allowed=None,
        ok=True,
        note=f"not judged: the reference itself is not finite here in {run.dtype}",
    )


def structure(site: str | None, note: str, prompt: str | None = None) -> Comparison:
    """Something that must exist, or must have a shape, and does not."""
    return Comparison(
        judgement="structure",
        site=site,
        prompt=prompt,
        measured=math.inf,
        allowed=0.0,
        ok=False,
        bound="present, with the promised shape",
        note=note,
    )
