"""How exact HuggingFace itself is in a dtype that users run.

One directory per dtype, inside the reference's trace of promoted float64, holds

* the reference's *error* in that dtype: its distance from the truth, the largest over eager
  attention, sdpa and another batch shape; for whole forward passes, and for components fed the
  truth;
* in bfloat16 and float16, whose computations upcast, components' own truth: float64 arithmetic on
  the very weights and inputs that the dtype holds, so that rounding those hides nothing;
* of discrete choices (a router's), the error of the scores chosen by. Every variant chooses as the
  truth did.

Float64 has none: there is no arithmetic wider than it that a port could have lost.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance import SEEDS, choices
from conformance.errors import TraceError
from conformance.trace import Trace, TraceWriter
from conformance.variants import (
    CENTRED,
    DOUBLED_SKIPS,
    ISOLATION_PROMPTS,
    Differences,
    choices_to_store,
    compare,
    move,
    stored_choices,
    teacher,
    widen,
    with_sdpa,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from conformance.implementations.huggingface import HuggingFaceModel
    from conformance.prompts import Prompt


#: Dtypes that the libraries upcast from inside norms, softmaxes and rotary tables. From float32
#: neither does: there is no upcast to lose.
UPCAST: frozenset[str] = frozenset({"bfloat16", "float16"})


@functools.cache
def code_hash() -> str:
    """Hash of this module's source, which with the trace's own determines what is stored."""
    return hashlib.sha256(inspect.getsource(sys.modules[__name__]).encode()).hexdigest()[:12]


def where(trace: Path, dtype: str) -> Path:
    """The directory of a dtype, inside its reference's trace."""
    return trace / "precision" / f"{dtype}-{code_hash()}"


def ensure(
    trace: Path,
    dtype: str,
    prompts: tuple[Prompt, ...],
    load: Callable[[torch.dtype, str], HuggingFaceModel],
    progress: Callable[[str], None],
) -> None:
    """Measure the reference in a dtype, if that has not been done yet.

    Args:
        trace: the finished trace of promoted float64.
        load: loads the reference: dtype, kind of attention.
    """
    target = where(trace, dtype)
    if (target / "index.json").exists():
        try:
            Trace(target)
        except TraceError:
            shutil.rmtree(target)
        else:
            return
    target.parent.mkdir(exist_ok=True)
    for stale in target.parent.glob(f"{dtype}-*"):
        shutil.rmtree(stale)
    work = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        _run(Trace(trace), dtype, prompts, load, work, progress)
        work.replace(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _run(
    truth: Trace,
    dtype: str,
    prompts: tuple[Prompt, ...],
    load: Callable[[torch.dtype, str], HuggingFaceModel],
    target: Path,
    progress: Callable[[str], None],
) -> None:
    from conformance.precision import DTYPES

    model = load(DTYPES[dtype], "eager")
    isolated = tuple(p for p in prompts if p.name in ISOLATION_PROMPTS)
    measured = Measured(truth, prompts)
    if truth.facts["contradictions"]:
        measured.variants["sdpa"] = "left out: it computes another function than eager"
    with TraceWriter(target) as writer:
        own_truth = None
        if dtype in UPCAST:
            exact = load(DTYPES["float64"], "eager")
            same_weights(exact, model)
            for prompt in isolated:
                progress(f"reference: components in float64 on {dtype} inputs, {prompt.name}")
                _trace_components(exact, model.dtype, prompt, truth, writer)
            del exact
            writer.finish({})
            own_truth = Trace(target)
        logits: dict[str, torch.Tensor] = {}
        measured.run(model, load, own_truth, logits, progress)
        writer.next_run()
        for name, tensor in logits.items():
            writer.add(f"{name}/logits@{dtype}", tensor)
        writer.finish(measured.facts())


def same_weights(exact: HuggingFaceModel, narrow: HuggingFaceModel) -> None:
    """Give a model in float64 the weights of one in a narrower dtype, as that holds them."""
    import torch

    held = narrow.parameters()
    with torch.no_grad():
        for name, parameter in exact.parameters().items():
            parameter.copy_(held[name].to(parameter.dtype))


def _trace_components(
    exact: HuggingFaceModel,
    dtype: torch.dtype,
    prompt: Prompt,
    truth: Trace,
    writer: TraceWriter,
) -> None:
    """Every component's sites in float64, on true inputs as a narrower dtype holds them."""
    import torch

    def rounded(name: str) -> torch.Tensor | None:
        value = truth.get(f"{prompt.name}/in:{name}")
        return None if value is None else value.to(dtype)

    def on_site(name: str, tensor: torch.Tensor) -> None:
        writer.add(f"{prompt.name}/{name}", tensor)

    writer.next_run()
    force = teacher("components", rounded, torch.float64)
    replay = stored_choices(truth, prompt.name)
    with choices.watched(exact, replay) as watch:
        on_site("logits", exact.run(prompt, on_site, force=force))
    # One choice for all: inputs that components are fed were made with it.
    made = {
        key: choices.Choice(own.scores, replay[key].indices)
        for key, own in watch.seen.items()
        if key in replay
    }
    for name, tensor in choices_to_store(prompt.name, made).items():
        writer.add(name, tensor)


class Measured:
    """What is found of the reference in one dtype."""

    def __init__(self, truth: Trace, prompts: tuple[Prompt, ...]) -> None:
        self.truth, self.prompts = truth, prompts
        self.variants: dict[str, str] = {}
        self.error: dict[str, dict[str, Differences]] = {}
        self.choices: dict[str, dict[str, Differences]] = {}
        self.shared: dict[str, Differences] = {}
        self.flips: dict[str, dict[str, int]] = {}

    def facts(self) -> dict[str, Any]:
        """As the trace keeps it."""
        return {
            "variants": self.variants,
            "error": self.error,
            "choices": self.choices,
            "shared": self.shared,
            "flips": self.flips,
        }

    def _add(self, mode: str, prompt: str, sites: Mapping[str, float], chosen: Differences) -> None:
        """Widen what is known of a mode and a prompt."""
        for into, other in ((self.error, sites), (self.choices, chosen)):
            known = into.setdefault(mode, {})
            if prompt in known:
                widen(known[prompt], other)
            else:  # the first is eager attention itself, finite or not
                known[prompt] = dict(other)

    def run(
        self,
        model: HuggingFaceModel,
        load: Callable[[torch.dtype, str], HuggingFaceModel],
        own_truth: Trace | None,
        logits: dict[str, torch.Tensor],
        progress: Callable[[str], None],
    ) -> None:
        """All variants on all prompts.

        Args:
            own_truth: of components, where the dtype has one.
            logits: where the logits of eager attention go, by prompt.
        """
        truth = self.truth
        for prompt in self.prompts:
            name = prompt.name
            progress(f"reference: {str(model.dtype).removeprefix('torch.')}, prompt {name}")
            plain = compare(model, prompt, truth, "rel_rms", keep_logits=logits)
            self._add("plain", name, plain.sites, plain.choices)
            if plain.flips:
                self.flips[name] = plain.flips
            if name not in DOUBLED_SKIPS:
                other = compare(model, prompt, truth, "rel_rms", twice=True)
                self._add("plain", name, other.sites, other.choices)
            if name in ISOLATION_PROMPTS:
                blocks = compare(model, prompt, truth, "rel_rms", mode="blocks")
                self._add("blocks", name, blocks.sites, blocks.choices)
                apart = compare(
                    model,
                    prompt,
                    own_truth or truth,
                    "rel_rms",
                    inputs=truth if own_truth else None,
                    mode="components",
                )
                self._add("components", name, apart.sites, apart.choices)
                self.shared[name] = apart.shared
        self.variants["doubled"] = "run"
        progress("reference: all prompts again with every weight rounded anew")
        self._reround(model)
        self.variants["rerounded"] = "run"
        other_model = None
        if "sdpa" not in self.variants:
            other_model, self.variants["sdpa"] = with_sdpa(model, load)
        for prompt in self.prompts:
            name = prompt.name
            if other_model is not None:
                found = compare(other_model, prompt, truth, "rel_rms")
                self._add("plain", name, found.sites, found.choices)
            plain_error = {CENTRED: self.error["plain"][name][CENTRED]}
            self._add("processed", name, plain_error, self.choices["plain"][name])

    def _reround(self, model: HuggingFaceModel) -> None:
        """The reference's error at the centred logits when its weights are rounded anew.

        Weight processing multiplies and centres weights in the dtype that users run, and so rounds
        each of them again, about twice, whatever the port does right. Here every matrix entry is
        moved by a random part of one unit in the last place (two roundings of half a unit). Where
        a position is ill-conditioned one draw says little about the next, so several are made.
        """
        import torch

        from conformance.bounds import EPS, REROUNDED_DRAWS

        unit = EPS[str(model.dtype).removeprefix("torch.")]
        generator = torch.Generator().manual_seed(SEEDS["prompts"])
        matrices = [p for p in model.model.parameters() if p.ndim > 1]
        kept = [p.detach().clone() for p in matrices]
        with torch.no_grad():
            for _ in range(REROUNDED_DRAWS):
                for parameter, exact in zip(matrices, kept, strict=True):
                    parameter.copy_(exact)
                    move(parameter, unit, generator)
                for prompt in self.prompts:
                    drawn = compare(model, prompt, self.truth, "rel_rms", only=(CENTRED,))
                    self._add("processed", prompt.name, drawn.sites, drawn.choices)
            for parameter, exact in zip(matrices, kept, strict=True):
                parameter.copy_(exact)
