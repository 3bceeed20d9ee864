"""Which weight-processing flag, or which dtype, breaks a port: each tried alone."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conformance import bounds
from conformance.compare import measure
from conformance.explain.explanations import Bisection
from conformance.flags import FLAGS, OPTIONAL, STANDARD, centres
from conformance.precision import DTYPES
from conformance.variants import CENTRED, teacher

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from conformance.explain.survey import Progress
    from conformance.implementations.lens_model import LensModel
    from conformance.prompts import Prompt
    from conformance.reference import Reference

#: Loads the port afresh in a dtype: weight processing cannot be undone.
Load = Callable[["torch.dtype"], "LensModel"]

#: Sites that no weight processing changes, but for the mean of the residual stream.
_INVARIANT = ("attn.pattern", "mlp.post", "resid_post")


@dataclass(frozen=True)
class Processed:
    """One run with processed weights.

    Attributes:
        result: the setting, and how far the centred logits were from the reference's.
        first: the first site that processing should not have changed and did.
    """

    result: Bisection
    first: str | None = None


def flags(
    load: Load, reference: Reference, prompt: Prompt, progress: Progress
) -> tuple[Processed, ...]:
    """Every flag alone, on a port loaded afresh in promoted float64.

    A standard flag that alone raises says nothing about the numbers: the others are then tried
    without it, as ``all but`` it. :data:`OPTIONAL` is tried too, and last.
    """
    found = []
    for flag in (*STANDARD, OPTIONAL):
        progress(f"weight processing: {flag} alone")
        chosen = {name: name == flag for name in FLAGS}
        found.append(_processed(load, reference, prompt, flag, chosen))
        gc.collect()
    for tried in found[:-1]:
        name = tried.result.setting
        if tried.result.ok is False and tried.result.measured is None:
            progress(f"weight processing: all but {name}")
            chosen = {flag: flag in STANDARD and flag != name for flag in FLAGS}
            found.append(_processed(load, reference, prompt, f"all but {name}", chosen))
    return tuple(found)


def culprits(tried: tuple[Bisection, ...]) -> tuple[str, ...]:
    """The standard flags that break the port: alone, or in that all is right without them."""
    results = {b.setting: b for b in tried}
    found = []
    for flag in STANDARD:
        own, rest = results.get(flag), results.get(f"all but {flag}")
        alone = own is not None and own.ok is False and own.measured is not None
        if alone or (rest is not None and rest.ok):
            found.append(flag)
    return tuple(found)


def _processed(
    load: Load, reference: Reference, prompt: Prompt, flag: str, chosen: dict[str, bool]
) -> Processed:
    import torch

    subject = load(torch.float64)
    if flag == "center_writing_weights" and not centres(subject):
        note = "not tried: this norm does not subtract the mean, and the library leaves it off"
        return Processed(Bisection(flag, None, note=note))
    seen: dict[str, tuple[float, float]] = {}

    def on_site(name: str, value: torch.Tensor) -> None:
        if name.endswith(_INVARIANT) and name not in seen:
            truth = reference.truth(prompt.name, name)
            if truth.shape != value.shape:
                return
            allowed = bounds.same_function(reference.spread(prompt.name, name))[0]
            centre = name.endswith("resid_post")
            found = measure(name, truth, value, prompt.valid, centre=centre)
            seen[name] = (found.rel_max, allowed)

    try:
        subject.process_weights(chosen)
        logits = subject.run(prompt, on_site)
    except Exception as error:
        lines = str(error).splitlines() or [""]
        note = f"it raises {type(error).__name__}: {lines[0][:200]}"
        return Processed(Bisection(flag, None if flag == OPTIONAL else False, note=note))
    truth = reference.truth(prompt.name, "logits")
    found = measure("logits", truth, logits, prompt.valid, centre=True).rel_max
    allowed = bounds.same_function(reference.spread(prompt.name, CENTRED))[0]
    first = next((name for name, (d, limit) in seen.items() if not d <= limit), None)
    ok = found <= allowed
    site = None if ok else first or "logits"
    return Processed(Bisection(flag, ok, found, allowed, site), site)


def dtypes(
    load: Load,
    reference: Reference,
    prompt: Prompt,
    site: str,
    isolated: bool,
    architecture: str,
    checkpoint: Path,
    progress: Progress,
    trust_remote_code: bool = False,
) -> tuple[Bisection, ...]:
    """The port's error at a site in each dtype, against the reference's own in that dtype.

    Args:
        isolated: with every component fed the truth.
    """
    from conformance.implementations.huggingface import HuggingFaceModel

    found = []
    for name in ("float32", "bfloat16", "float16"):
        progress(f"error at {site} in {name}")
        dtype = DTYPES[name]
        try:
            own = HuggingFaceModel(
                checkpoint, architecture, dtype, trust_remote_code=trust_remote_code
            )
            reference_error = _error(own, reference, prompt, site, isolated)
            del own
            error = _error(load(dtype), reference, prompt, site, isolated)
        except Exception as raised:
            lines = str(raised).splitlines() or [""]
            note = f"{type(raised).__name__}: {lines[0][:200]}"
            found.append(Bisection(name, None, site=site, note=note))
            continue
        allowed, _, _ = bounds.same_precision(reference_error, name)
        note = f"the reference's own error is {reference_error:.1e}"
        found.append(Bisection(name, error <= allowed, error, allowed, site, note))
        gc.collect()
    return tuple(found)


def _error(model: Any, reference: Reference, prompt: Prompt, site: str, isolated: bool) -> float:
    """Relative rms error of one site in the model's dtype."""
    found: dict[str, float] = {}

    def on_site(name: str, value: torch.Tensor) -> None:
        if name == site:
            truth = reference.truth(prompt.name, name)
            found[name] = measure(name, truth, value, prompt.valid).rel_rms

    force = None
    if isolated:
        force = teacher("components", lambda name: reference.input(prompt.name, name), model.dtype)
    logits = model.run(prompt, on_site, force=force)
    if site == "logits":
        on_site("logits", logits)
    return found[site]
