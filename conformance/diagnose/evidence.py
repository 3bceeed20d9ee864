"""What a diagnosis may look at: both sides' values, the checkpoint's weights and its config.

:func:`collect` runs a loaded subject in promoted float64 over a few prompts, three times each: on
its own (``plain``), with every block fed the reference's input (``blocks``), and with every norm,
attention and MLP fed the reference's input (``components``). It finds the first site that diverges
although everything before it was right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from conformance import bounds
from conformance.classes import read_config
from conformance.compare import measure
from conformance.sites import BLOCK_KINDS, USUAL, Order, computation_order, parse
from conformance.variants import ISOLATION_PROMPTS, teacher
from conformance.weights import canonical

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.families import Dims, Family
    from conformance.implementations.lens_model import LensModel
    from conformance.prompts import Prompt
    from conformance.reference import Reference

#: How components were fed when a site diverged, the most isolated first.
Mode = Literal["components", "blocks", "plain"]
MODES: tuple[Mode, ...] = ("components", "blocks", "plain")

_IN_BLOCK = frozenset(kind.name for kind in BLOCK_KINDS)

#: (prompt, site) -> a value in promoted float64, or None where there is none.
Values = Callable[[str, str], "torch.Tensor | None"]


class Weights(Mapping[str, torch.Tensor]):
    """The checkpoint's weights under TransformerLens's names, float64 as they are asked for."""

    def __init__(self, reference: Reference) -> None:
        found = canonical(reference.parameters(), reference.family, reference.dims)
        self._stored = {name: weight.tensor for name, weight in found.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._stored[name].double()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Without a conversion."""
        return tuple(self._stored[name].shape)


@dataclass
class Evidence:
    """What is known about one divergence.

    Attributes:
        reference: the stored reference run.
        config: the checkpoint's HuggingFace config.
        family, dims: the reference's.
        weights: the checkpoint's, under TransformerLens's names, float64.
        site: the first site that diverges given right inputs; None if nothing does.
        prompts: on which prompts there are values.
        subject: the subject's value at a site, in the pass in which ``site`` diverged.
        subject_plain: the same in an ordinary forward pass.
        truth: the reference's value at a site.
        input: the reference's input of a component.
        mode: the pass in which ``site`` diverged.
        hidden: sites that the port does not show rightly whatever else is wrong with it.
    """

    reference: Reference
    config: Any
    family: Family
    dims: Dims
    weights: Weights
    site: str | None
    prompts: tuple[str, ...]
    subject: Values
    subject_plain: Values
    truth: Callable[[str, str], torch.Tensor]
    input: Values
    mode: Mode = "components"
    hidden: frozenset[str] = frozenset()

    def prompt(self, name: str) -> Prompt:
        """Tokens and mask of a prompt."""
        return next(p for p in self.reference.prompts if p.name == name)

    def allowed(self, prompt: str, site: str) -> float:
        """The same-function bound (relative)."""
        return bounds.same_function(self.reference.spread(prompt, site))[0]

    def shows(self, site: str) -> bool:
        """Whether the port shows this site, rightly when nothing is wrong with it."""
        if site in self.hidden or site not in self.reference.sites:
            return False
        return self.subject(self.prompts[0], site) is not None


class Scene:
    """One prompt, seen from one layer: what a formula is computed from."""

    def __init__(self, evidence: Evidence, prompt: str, layer: int | None) -> None:
        self.evidence, self.name, self.layer = evidence, prompt, layer
        self.prompt = evidence.prompt(prompt)
        self._kept: dict[object, torch.Tensor] = {}

    def _at(self, name: str) -> str:
        return name if self.layer is None else f"blocks.{self.layer}.{name}"

    def truth(self, kind: str) -> torch.Tensor:
        """The reference's value at a kind of site, of this layer where the kind is a block's."""
        site = self._at(kind) if kind in _IN_BLOCK else kind
        return self.evidence.truth(self.name, site).double()

    def subject(self, kind: str) -> torch.Tensor | None:
        """The subject's value there."""
        site = self._at(kind) if kind in _IN_BLOCK else kind
        value = self.evidence.subject(self.name, site)
        return None if value is None else value.double()

    def input(self, component: str) -> torch.Tensor:
        """The reference's input of a component, [batch, pos, d_model]."""
        whole = component in ("ln_encoder", "ln_final", "unembed")
        value = self.evidence.input(self.name, component if whole else self._at(component))
        if value is None:
            raise KeyError(f"no input of {component}")
        return value.double().reshape(*self.prompt.tokens.shape, -1)

    def weight(self, name: str) -> torch.Tensor | None:
        """A weight of this layer; None if the architecture has none."""
        full = self._at(name)
        return self.evidence.weights.get(full)

    def whole(self, name: str) -> torch.Tensor | None:
        """A weight that belongs to no layer."""
        return self.evidence.weights.get(name)

    @property
    def positions(self) -> torch.Tensor:
        """Position of each token, [batch, pos]: only real tokens count."""
        tokens, mask = self.prompt.tokens, self.prompt.mask
        if mask is None:
            return torch.arange(tokens.shape[1]).expand(tokens.shape)
        return (mask.cumsum(-1) - 1).clamp_min(0)

    def once(self, key: object, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A value that several hypotheses share."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


@dataclass
class Run:
    """What the subject showed, and how far each site was from the reference.

    Attributes:
        order: of the architecture's computation.
        measured: (mode, prompt, site) -> (relative difference, what is allowed).
        values: (mode, prompt, site) -> the value, float64.
    """

    order: Order = USUAL
    measured: dict[tuple[Mode, str, str], tuple[float, float]] = field(default_factory=dict)
    values: dict[tuple[Mode, str, str], torch.Tensor] = field(default_factory=dict)

    def failing(self, mode: Mode) -> list[str]:
        """Sites past their bound on any prompt, in order of computation. NaN is."""
        found = {
            site
            for (m, _, site), (d, allowed) in self.measured.items()
            if m == mode
            if not d <= allowed
        }
        return computation_order(sorted(found), self.order)

    def first(self, ignore: frozenset[str] = frozenset()) -> tuple[str, Mode] | None:
        """The first site that diverges given right inputs, in the most isolated pass."""
        for mode in MODES:
            for site in self.failing(mode):
                if site not in ignore:
                    return site, mode
        return None


def checkpoint_config(path: Path) -> Any:
    """The HuggingFace config of a checkpoint directory's language model."""

    return read_config(path).get_text_config()


def watch(
    reference: Reference,
    subject: LensModel,
    prompts: tuple[str, ...] = ISOLATION_PROMPTS,
    *,
    modes: tuple[Mode, ...] = MODES,
    lean: bool = False,
    into: Run | None = None,
) -> Run:
    """Run a subject that is loaded in promoted float64.

    Args:
        prompts: on which; those that the reference lacks are left out.
        modes: ``components`` and ``blocks`` need prompts that the reference isolated.
        lean: keep the values of sites past their bound only, for models too large for more.
        into: add to this run.
    """
    run = Run(reference.family.order) if into is None else into
    for prompt in reference.prompts:
        if prompt.name in prompts:
            for mode in modes:
                _pass(run, reference, subject, prompt, mode, lean)
    return run


def _pass(
    run: Run,
    reference: Reference,
    subject: LensModel,
    prompt: Prompt,
    mode: Mode,
    lean: bool,
) -> None:
    loose = subject.scores_up_to_a_constant

    def on_site(name: str, value: torch.Tensor) -> None:
        if mode != "plain" and name.endswith("resid_pre"):
            return  # shown before or after it is fed, as the port likes
        key = (mode, prompt.name, name)
        truth = reference.truth(prompt.name, name)
        distance = float("inf")
        if value.shape == truth.shape:
            up_to = loose and name.endswith("attn.scores")
            found = measure(name, truth, value, prompt.valid, up_to_a_constant=up_to)
            distance = found.rel_max
        spread = reference.spread(prompt.name, name)
        allowed = bounds.same_function(spread)[0]
        run.measured[key] = (distance, allowed)
        if not lean or not distance <= allowed:
            # Some ports go on to change what they showed in place.
            run.values[key] = value.detach().to(torch.float64, copy=True)

    force = None
    if mode != "plain":
        force = teacher(mode, lambda name: reference.input(prompt.name, name), subject.dtype)
    logits = subject.run(prompt, on_site, force=force)
    on_site("logits", logits)


def evidence(
    reference: Reference,
    config: Any,
    run: Run,
    *,
    ignore: frozenset[str] = frozenset(),
    site: str | None = None,
    mode: Mode | None = None,
) -> Evidence:
    """The evidence on the first divergence of a run, or on the one named.

    Args:
        ignore: sites that the port does not show rightly whatever else is wrong with it.
        site, mode: a divergence other than the first.
    """
    first = run.first(ignore)
    if site is None:
        site, mode = first or (None, "components")
    chosen: Mode = mode or "components"
    names = {prompt for _, prompt, _ in run.measured}
    layer = None if site is None else parse(site).layer

    def shown(where: Mode) -> Values:
        def get(prompt: str, name: str) -> torch.Tensor | None:
            key = (where, prompt, name)
            if key not in run.measured:
                return None
            # A lean run keeps what differs: the rest is the reference's, to the bound.
            value = run.values.get(key)
            return reference.truth(prompt, name) if value is None else value

        return get

    return Evidence(
        reference=reference,
        config=config,
        family=reference.family if layer is None else reference.family.of(layer),
        dims=reference.dims if layer is None else reference.dims.of(layer),
        weights=Weights(reference),
        site=site,
        prompts=tuple(p.name for p in reference.prompts if p.name in names),
        subject=shown(chosen),
        subject_plain=shown("plain"),
        truth=reference.truth,
        input=reference.input,
        mode=chosen,
        hidden=ignore,
    )


def collect(
    reference: Reference,
    subject: LensModel,
    prompts: tuple[str, ...] = ISOLATION_PROMPTS,
    *,
    config: Any,
    ignore: frozenset[str] = frozenset(),
    lean: bool = False,
) -> Evidence:
    """Run a subject and gather the evidence on its first divergence.

    Args:
        subject: loaded in promoted float64, without weight processing.
        prompts: on which; a long prompt of a large model is slow and takes memory.
        config: the checkpoint's HuggingFace config, see :func:`checkpoint_config`.
        ignore: sites that the port does not show rightly whatever else is wrong with it.
        lean: keep the values of diverging sites only.
    """
    run = watch(reference, subject, prompts, modes=("components", "plain"), lean=lean)
    if not [site for site in run.failing("components") if site not in ignore]:
        watch(reference, subject, prompts, modes=("blocks",), lean=lean, into=run)
    return evidence(reference, config, run, ignore=ignore)
