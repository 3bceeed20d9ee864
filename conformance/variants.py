"""One run of the reference beside the truth: another batch shape, kernel, dtype or feeding."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from conformance import choices
from conformance.memory import MOVED_AT_ONCE
from conformance.prompts import Prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from conformance.choices import Choices
    from conformance.implementations.base import Force
    from conformance.implementations.huggingface import HuggingFaceModel
    from conformance.trace import Trace

#: ``plain``: an ordinary forward pass. ``blocks``: every block is fed the reference's own input.
#: ``components``: every norm, attention and MLP is.
#: ``processed`` (errors only): the reference with its weights rounded anew.
Mode = Literal["plain", "blocks", "components", "processed"]

#: What the logits less their mean at each position are known as: weight processing may shift all
#: logits of a position, and what is left after centring may be much smaller than the shift.
CENTRED = "logits, centred"

#: Prompts on which components are isolated: a short one, a padded one, and one past the window.
ISOLATION_PROMPTS = ("sixteen", "padded_left", "long")

#: The longest prompt in a doubled batch would double the run; it has the other variants.
DOUBLED_SKIPS = frozenset({"long"})

Differences = dict[str, float]


def teacher(mode: Mode, get: Callable[[str], torch.Tensor | None], dtype: torch.dtype) -> Force:
    """The function that feeds components their true inputs in this mode."""

    def force(name: str) -> torch.Tensor | None:
        parts = name.count(".")
        if mode == "blocks" and parts > 1:
            return None
        value = get(name)
        return None if value is None else value.to(dtype)

    return force


def doubled(prompt: Prompt) -> Prompt:
    """The same rows twice over, in one batch."""
    mask = None if prompt.mask is None else prompt.mask.repeat(2, 1)
    extra = {k: v.repeat(2, *(1,) * (v.ndim - 1)) for k, v in prompt.extra.items()}
    return Prompt(prompt.name, prompt.tokens.repeat(2, 1), mask, extra)


@dataclass
class Compared:
    """One variant on one prompt.

    Attributes:
        sites: site -> relative difference from the truth.
        shared: site -> the part of it that a row's entries share, where rows are divided by one
            number each (components only).
        choices: choice -> error of the scores chosen by, relative.
        flips: choice -> how many tokens would have chosen otherwise than the truth.
    """

    sites: Differences = field(default_factory=dict)
    shared: Differences = field(default_factory=dict)
    choices: Differences = field(default_factory=dict)
    flips: dict[str, int] = field(default_factory=dict)


def compare(
    model: HuggingFaceModel,
    prompt: Prompt,
    truth: Trace,
    what: Literal["rel_max", "rel_rms"],
    *,
    inputs: Trace | None = None,
    twice: bool = False,
    mode: Mode = "plain",
    keep_logits: dict[str, torch.Tensor] | None = None,
    only: tuple[str, ...] | None = None,
    replay: bool = True,
) -> Compared:
    """One variant of the reference against the truth.

    Args:
        truth: what its sites are compared with; and its choices, which are replayed.
        inputs: what holds components' inputs; the truth, unless given.
        twice: run the prompt in a batch of itself and itself.
        only: names of the sites to look at; None for all.
        replay: choose as the truth did.
    """
    from conformance.compare import SharedErrors, measure

    found = Compared()
    scale = SharedErrors(model.family, prompt.valid) if inputs is not None else None

    def on_site(name: str, tensor: torch.Tensor, *, centre: bool = False) -> None:
        known_as = CENTRED if centre else name
        if only is not None and known_as not in only:
            return
        true = truth[f"{prompt.name}/{name}"]
        if twice:
            tensor = tensor[: true.shape[0]]
        measured = measure(name, true, tensor, prompt.valid, centre=centre)
        found.sites[known_as] = getattr(measured, what)
        if scale is not None and (shared := scale.see(name, true, tensor)) is not None:
            found.shared[name] = shared.value

    force = None
    if mode not in ("plain", "processed"):
        prefix, source = f"{prompt.name}/in:", inputs or truth

        def get(name: str) -> torch.Tensor | None:
            return source.get(prefix + name)

        force = teacher(mode, get, model.dtype)
    chosen = stored_choices(truth, prompt.name)
    again = choices.doubled(chosen) if twice else chosen
    with choices.watched(model, again if replay else None) as watch:
        logits = model.run(doubled(prompt) if twice else prompt, on_site, force=force)
    if mode != "blocks":
        on_site("logits", logits)
    if mode == "plain":
        on_site("logits", logits, centre=True)
    if keep_logits is not None:
        keep_logits[prompt.name] = logits.clone()
    if replay:
        for key, own in watch.seen.items():
            if key in chosen:
                found.choices[key] = choices.error(chosen[key], own, prompt.valid)
                flips = choices.flips(chosen[key], own, prompt.valid)
                if flips is not None:
                    found.flips[key] = flips.tokens
    return found


_CHOICE, _SCORES = "choice:", "choice_scores:"


def choices_to_store(prompt: str, found: Choices) -> dict[str, torch.Tensor]:
    """Choices of a run as tensors of a trace."""
    stored = {}
    for key, choice in found.items():
        stored[f"{prompt}/{_CHOICE}{key}"] = choice.indices
        stored[f"{prompt}/{_SCORES}{key}"] = choice.scores
    return stored


def stored_choices(trace: Trace, prompt: str) -> Choices:
    """The choices of a run that a trace holds, in order."""
    prefix = f"{prompt}/{_CHOICE}"
    return {
        key: choices.Choice(trace[f"{prompt}/{_SCORES}{key}"], trace[name])
        for name in trace
        if name.startswith(prefix)
        for key in (name.removeprefix(prefix),)
    }


def move(parameter: torch.Tensor, unit: float, generator: torch.Generator) -> None:
    """Multiply each entry in place by 1 + ``unit`` x (a number drawn evenly from [-1, 1])."""
    import torch

    for part in parameter.view(-1).split(MOVED_AT_ONCE):
        noise = torch.rand(part.shape, generator=generator, dtype=torch.float64) * 2 - 1
        part.copy_(part.double() * (1 + unit * noise))


def with_sdpa(
    model: HuggingFaceModel, load: Callable[[torch.dtype, str], HuggingFaceModel]
) -> tuple[HuggingFaceModel | None, str]:
    """The model with sdpa for its attention, itself where it can switch; or None, and why."""
    try:
        model.model.set_attn_implementation("sdpa")
        if model.model.config._attn_implementation == "sdpa":
            return model, "run"
        return load(model.dtype, "sdpa"), "run"
    except (ValueError, ImportError) as error:
        return None, f"not available: {error}"


def widen(into: Differences, other: Mapping[str, float]) -> None:
    """Keep the larger of two variants, site by site; one that is not finite is ignored."""
    for name, value in other.items():
        if math.isfinite(value) and value > into.get(name, 0.0):
            into[name] = value
