"""The reference run: HuggingFace's trace in promoted float64, and how exact HuggingFace itself is.

One directory per (checkpoint, prompts, versions, our own tracing code) holds

* every site of every prompt in promoted float64 (the truth), and the input of every component;
* the reference's *spread* at each site: how far roundoff moves the truth, the larger of a
  re-association of the same mathematics (the prompt in a larger batch) and of every weight
  moved by one unit in the last place;
* the reference's *error* in the dtype that users run: its distance from the truth, the largest
  over eager attention, sdpa and another batch shape; once for whole forward passes and once for
  components fed the truth.

A port is judged against these numbers, so a second run needs no HuggingFace model at all.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from conformance import SEEDS
from conformance.errors import TraceError
from conformance.media import generated
from conformance.prompts import Prompt, build
from conformance.trace import Trace, TraceWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from conformance.checkpoints import Checkpoint
    from conformance.families import Dims, Family
    from conformance.implementations.base import Force
    from conformance.implementations.huggingface import HuggingFaceModel
    from conformance.spec import ModelSpec

#: ``plain``: an ordinary forward pass. ``blocks``: every block is fed the reference's own input.
#: ``components``: every norm, attention and MLP is.
#: ``processed`` (errors only): the reference with its weights rounded anew.
Mode = Literal["plain", "blocks", "components", "processed"]

#: What the logits less their mean at each position are known as: weight processing may shift all
#: logits of a position, and what is left after centring may be much smaller than the shift.
CENTRED = "logits, centred"

#: Prompts on which components are isolated: a short one, a padded one, and one past the window.
ISOLATION_PROMPTS = ("sixteen", "padded_left", "long")

#: Prompts on which eager attention and sdpa are compared: plain, padded.
CONTRADICTION_PROMPTS = ("sixteen", "padded_left")

#: The longest prompt in a doubled batch would double the run; it has the other variants.
DOUBLED_SKIPS = frozenset({"long"})

_TRACING_MODULES = (
    "conformance.reference",
    "conformance.media",
    "conformance.prompts",
    "conformance.precision",
    "conformance.families.base",
    "conformance.trace",
    "conformance.compare",
    "conformance.metrics",
    "conformance.weights",
    "conformance.implementations.base",
    "conformance.implementations.huggingface",
)


@functools.cache
def code_hash() -> str:
    """Hash of the source that determines a trace: a change to it makes old traces stale.

    Taken once a process and inherited by its forks, so that editing the source during a run
    does not part a subject from its reference.
    """
    digest = hashlib.sha256()
    for name in _TRACING_MODULES:
        module = sys.modules.get(name) or __import__(name, fromlist=["_"])
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()


def fingerprint(model: ModelSpec, checkpoint: Checkpoint) -> str:
    """What a stored trace is keyed by."""
    import transformers

    from conformance.families import family

    config = transformers.AutoConfig.from_pretrained(
        checkpoint.path, trust_remote_code=model.trust_remote_code
    )
    facts = {
        "checkpoint": checkpoint.digest,
        "architecture": repr(family(model.architecture, config)),
        "dtype": model.dtype,
        "prompts": model.prompts,
        "seeds": dict(SEEDS),
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
        "code": code_hash(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def directory(model: ModelSpec, checkpoint: Checkpoint, cache: Path) -> Path:
    """Where the trace of this model belongs."""
    return cache / "traces" / f"{model.id}-{fingerprint(model, checkpoint)}"


class Reference:
    """A stored reference run.

    Raises:
        TraceError: there is none, or it is damaged.
    """

    def __init__(self, path: Path, checkpoint: Path, architecture: str) -> None:
        import transformers

        from conformance.families import dims, family

        self.path = path
        self.trace = Trace(path)
        facts = self.trace.facts
        config = transformers.AutoConfig.from_pretrained(checkpoint)
        self.family: Family = family(architecture, config)
        self.dims: Dims = dims(config)
        self.dtype: str = facts["dtype"]
        self.left_out: dict[str, str] = facts["left_out"]
        self.variants: dict[str, Any] = facts["variants"]
        #: Where the reference's own variants compute different functions: nobody's error.
        self.contradictions: list[str] = facts["contradictions"]
        self._spread: dict[str, dict[str, float]] = facts["spread"]
        self._error: dict[str, dict[str, dict[str, float]]] = facts["error"]
        self._sites: list[str] = facts["sites"]
        self.tied_unembed: bool = facts["tied_unembed"]
        self.prompts: tuple[Prompt, ...] = tuple(self._prompt(name) for name in facts["prompts"])

    def _prompt(self, name: str) -> Prompt:
        mask = f"{name}/mask"
        return Prompt(
            name,
            self.trace[f"{name}/tokens"].clone(),
            self.trace[mask].clone() if mask in self.trace else None,
            {
                key.removeprefix(f"{name}/extra:"): self.trace[key].clone()
                for key in self.trace
                if key.startswith(f"{name}/extra:")
            },
        )

    @property
    def sites(self) -> list[str]:
        """Every site of the architecture (``logits`` included), in order of firing."""
        return self._sites

    def truth(self, prompt: str, site: str) -> torch.Tensor:
        """The site in promoted float64."""
        return self.trace[f"{prompt}/{site}"]

    def input(self, prompt: str, component: str) -> torch.Tensor | None:
        """A component's input in promoted float64; None if it has none of that name."""
        name = f"{prompt}/in:{component}"
        return self.trace.get(name)

    def logits(self, prompt: str, dtype: str) -> torch.Tensor:
        """Logits as the reference gives them in ``dtype``."""
        if dtype == "float64":
            return self.truth(prompt, "logits")
        return self.trace[f"{prompt}/logits@{dtype}"]

    def parameters(self) -> dict[str, torch.Tensor]:
        """Every parameter by its HuggingFace name, tied ones once."""
        prefix = "parameter:"
        return {
            name.removeprefix(prefix): self.trace[name]
            for name in self.trace
            if name.startswith(prefix)
        }

    def spread(self, prompt: str, site: str) -> float:
        """Relative (``rel_max``) float64 spread of a site: what roundoff alone may move."""
        return self._spread[prompt].get(site, 0.0)

    def error(self, mode: Mode, prompt: str, site: str) -> float:
        """The reference's own relative rms error in the model's dtype."""
        try:
            return self._error[mode][prompt][site]
        except KeyError:
            raise TraceError(
                f"the reference has no {mode} error of {site} on {prompt}",
                "delete the trace cache and run again",
            ) from None


def teacher(mode: Mode, get: Callable[[str], torch.Tensor | None], dtype: torch.dtype) -> Force:
    """The function that feeds components their true inputs in this mode."""

    def force(name: str) -> torch.Tensor | None:
        parts = name.count(".")
        if mode == "blocks" and parts > 1:
            return None
        value = get(name)
        return None if value is None else value.to(dtype)

    return force


def ensure(
    model: ModelSpec,
    checkpoint: Checkpoint,
    cache: Path,
    progress: Callable[[str], None],
) -> Path:
    """The trace directory, run now if it is not there yet."""
    from filelock import FileLock

    target = directory(model, checkpoint, cache)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if (target / "index.json").exists():
            try:
                Trace(target)
            except TraceError:
                shutil.rmtree(target)
            else:
                return target
        for stale in target.parent.glob(f"{model.id}-*"):
            if stale.is_dir() and len(stale.name) == len(target.name):
                shutil.rmtree(stale)
        work = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
        try:
            _run(model, checkpoint, work, progress)
            work.replace(target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return target


def load_model(
    model: ModelSpec, checkpoint: Checkpoint, dtype: torch.dtype, attention: str = "eager"
) -> HuggingFaceModel:
    """HuggingFace's model of an entry."""
    from conformance.implementations.huggingface import HuggingFaceModel

    return HuggingFaceModel(
        checkpoint.path,
        model.architecture,
        dtype,
        attention=attention,
        trust_remote_code=model.trust_remote_code,
    )


def load_tokenizer(checkpoint: Checkpoint) -> Any | None:
    """The checkpoint's tokenizer; None if it has none."""
    if not checkpoint.has_tokenizer:
        return None
    import transformers

    return transformers.AutoTokenizer.from_pretrained(checkpoint.path)


def _run(
    model: ModelSpec, checkpoint: Checkpoint, target: Path, progress: Callable[[str], None]
) -> None:
    import torch

    from conformance.precision import DTYPES

    def load(dtype: torch.dtype, attention: str = "eager") -> HuggingFaceModel:
        progress(f"reference: loading in {str(dtype).removeprefix('torch.')}, {attention}")
        return load_model(model, checkpoint, dtype, attention)

    tokenizer = load_tokenizer(checkpoint)
    truth_model = load(torch.float64)
    media = generated(truth_model.model.config, truth_model.dims)
    prompts, left_out = build(truth_model.dims, tokenizer, model.prompts, media)
    facts: dict[str, Any] = {
        "dtype": model.dtype,
        "prompts": [p.name for p in prompts],
        "left_out": left_out,
        "variants": {},
    }
    with TraceWriter(target) as writer:
        for prompt in prompts:
            progress(f"reference: float64, prompt {prompt.name}")
            facts["sites"] = _trace_prompt(truth_model, prompt, writer)
        writer.next_run()
        _store_parameters(truth_model, writer)
        facts["tied_unembed"] = truth_model.tied_unembed()
        writer.finish({})
        truth = Trace(target)
        apart = _sdpa_apart(truth_model, load, prompts, truth, progress)
        facts["spread"] = _spread(truth_model, prompts, truth, progress)
        facts["contradictions"] = _contradictions(apart, facts["spread"])
        del truth_model
        model_in_use = load(DTYPES[model.dtype])
        logits: dict[str, torch.Tensor] = {}
        variants = facts["variants"]
        if facts["contradictions"]:
            variants["sdpa"] = "left out: it computes another function than eager"
        facts["error"] = _errors(model_in_use, load, prompts, truth, logits, variants, progress)
        writer.next_run()
        for name, tensor in logits.items():
            writer.add(f"{name}/logits@{model.dtype}", tensor)
        writer.finish(facts)


def _trace_prompt(model: HuggingFaceModel, prompt: Prompt, writer: TraceWriter) -> list[str]:
    sites: list[str] = []

    def on_site(name: str, tensor: torch.Tensor) -> None:
        sites.append(name)
        writer.add(f"{prompt.name}/{name}", tensor)

    writer.next_run()
    writer.add(f"{prompt.name}/tokens", prompt.tokens)
    if prompt.mask is not None:
        writer.add(f"{prompt.name}/mask", prompt.mask)
    for name, tensor in prompt.extra.items():
        writer.add(f"{prompt.name}/extra:{name}", tensor)
    logits = model.run(
        prompt,
        on_site,
        on_input=lambda name, tensor: writer.add(f"{prompt.name}/in:{name}", tensor),
    )
    on_site("logits", logits)
    return sites


def _doubled(prompt: Prompt) -> Prompt:
    mask = None if prompt.mask is None else prompt.mask.repeat(2, 1)
    extra = {k: v.repeat(2, *(1,) * (v.ndim - 1)) for k, v in prompt.extra.items()}
    return Prompt(prompt.name, prompt.tokens.repeat(2, 1), mask, extra)


def _store_parameters(model: HuggingFaceModel, writer: TraceWriter) -> None:
    """As stored in the checkpoint: float64 copies of narrower numbers are kept narrow."""
    import torch

    for name, parameter in model.parameters().items():
        narrow = parameter.to(torch.float32)
        exact = torch.equal(narrow.to(torch.float64), parameter)
        writer.add(f"parameter:{name}", narrow if exact else parameter)


Differences = dict[str, float]


def _compare(
    model: HuggingFaceModel,
    prompt: Prompt,
    truth: Trace,
    what: Literal["rel_max", "rel_rms"],
    *,
    doubled: bool = False,
    mode: Mode = "plain",
    keep_logits: dict[str, torch.Tensor] | None = None,
    only: tuple[str, ...] | None = None,
) -> Differences:
    """One variant of the reference against the truth: site -> relative difference."""
    from conformance.compare import measure

    found: Differences = {}

    def on_site(name: str, tensor: torch.Tensor, *, centre: bool = False) -> None:
        known_as = CENTRED if centre else name
        if only is not None and known_as not in only:
            return
        true = truth[f"{prompt.name}/{name}"]
        if doubled:
            tensor = tensor[: true.shape[0]]
        found[known_as] = getattr(measure(name, true, tensor, prompt.valid, centre=centre), what)

    force = None
    if mode != "plain":
        prefix = f"{prompt.name}/in:"

        def get(name: str) -> torch.Tensor | None:
            return truth.get(prefix + name)

        force = teacher(mode, get, model.dtype)
    logits = model.run(_doubled(prompt) if doubled else prompt, on_site, force=force)
    if mode != "blocks":
        on_site("logits", logits)
    if mode == "plain":
        on_site("logits", logits, centre=True)
    if keep_logits is not None:
        keep_logits[prompt.name] = logits.clone()
    return found


def _spread(
    model: HuggingFaceModel,
    prompts: tuple[Prompt, ...],
    truth: Trace,
    progress: Callable[[str], None],
) -> dict[str, Differences]:
    """prompt -> site -> how far roundoff alone moves the truth. Leaves the weights moved.

    A computation's roundoff is that of exact arithmetic on inputs moved by about a unit in the
    last place (backward error: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
    sections 1.5 and 3.5), so weights moved by so much show what every order of summation,
    number of threads and kernel may do, the conditioning of each site included.
    """
    found: dict[str, Differences] = {}
    for prompt in prompts:
        progress(f"reference: float64 spread, prompt {prompt.name}")
        skipped = prompt.name in DOUBLED_SKIPS
        found[prompt.name] = (
            {} if skipped else _compare(model, prompt, truth, "rel_max", doubled=True)
        )
    move_weights(model)
    for prompt in prompts:
        progress(f"reference: float64 spread, weights moved, prompt {prompt.name}")
        _widen(found[prompt.name], _compare(model, prompt, truth, "rel_max"))
    return found


def move_weights(model: HuggingFaceModel) -> None:
    """Move every weight, in place, by up to one unit in the last place of float64."""
    import torch

    from conformance.bounds import EPS

    generator = torch.Generator().manual_seed(SEEDS["prompts"])
    with torch.no_grad():
        for parameter in model.model.parameters():
            _move(parameter, EPS["float64"], generator)


def _move(parameter: torch.Tensor, unit: float, generator: torch.Generator) -> None:
    """Multiply each entry in place by 1 + ``unit`` x (a number drawn evenly from [-1, 1])."""
    import torch

    for part in parameter.view(-1).split(1 << 22):
        noise = torch.rand(part.shape, generator=generator, dtype=torch.float64) * 2 - 1
        part.copy_(part.double() * (1 + unit * noise))


def _with_sdpa(
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


def _sdpa_apart(
    model: HuggingFaceModel,
    load: Callable[[torch.dtype, str], HuggingFaceModel],
    prompts: tuple[Prompt, ...],
    truth: Trace,
    progress: Callable[[str], None],
) -> dict[str, Differences]:
    """prompt -> site -> how far sdpa is from eager attention in promoted float64.

    A variant that computes another function must not pass for an error of precision: it would
    lend its size to the bound of every port.
    """
    other, _ = _with_sdpa(model, load)
    if other is None:
        return {}
    found = {}
    for prompt in prompts:
        if prompt.name in CONTRADICTION_PROMPTS:
            progress(f"reference: float64 with sdpa, prompt {prompt.name}")
            found[prompt.name] = _compare(other, prompt, truth, "rel_max")
    if other is model:
        model.model.set_attn_implementation("eager")
    return found


def _contradictions(
    apart: Mapping[str, Differences], spread: Mapping[str, Differences]
) -> list[str]:
    from conformance.bounds import same_function

    found = []
    for prompt, sites in apart.items():
        for site, measured in sites.items():
            if not measured <= same_function(spread[prompt].get(site, 0.0))[0]:
                found.append(
                    f"sdpa and eager attention of transformers compute different functions: "
                    f"{measured:.1e} apart at {site} on {prompt}"
                )
                break
    return found


def _errors(
    model: HuggingFaceModel,
    load: Callable[[torch.dtype, str], HuggingFaceModel],
    prompts: tuple[Prompt, ...],
    truth: Trace,
    logits: dict[str, torch.Tensor],
    variants: dict[str, Any],
    progress: Callable[[str], None],
) -> dict[str, dict[str, Differences]]:
    """mode -> prompt -> site -> the reference's own error, the largest over its variants."""
    errors: dict[str, dict[str, Differences]] = {"plain": {}, "blocks": {}, "components": {}}
    for prompt in prompts:
        progress(f"reference: {str(model.dtype).removeprefix('torch.')}, prompt {prompt.name}")
        plain = _compare(model, prompt, truth, "rel_rms", keep_logits=logits)
        if prompt.name not in DOUBLED_SKIPS:
            _widen(plain, _compare(model, prompt, truth, "rel_rms", doubled=True))
        errors["plain"][prompt.name] = plain
        if prompt.name in ISOLATION_PROMPTS:
            errors["blocks"][prompt.name] = _compare(model, prompt, truth, "rel_rms", mode="blocks")
            errors["components"][prompt.name] = _compare(
                model, prompt, truth, "rel_rms", mode="components"
            )
    variants["doubled"] = "run"
    progress("reference: all prompts again with every weight rounded anew")
    errors["processed"] = _rerounded(model, prompts, truth)
    variants["rerounded"] = "run"
    other = None
    if "sdpa" not in variants:
        other, variants["sdpa"] = _with_sdpa(model, load)
    for prompt in prompts:
        plain = errors["plain"][prompt.name]
        if other is not None:
            _widen(plain, _compare(other, prompt, truth, "rel_rms"))
        _widen(errors["processed"][prompt.name], {CENTRED: plain[CENTRED]})
    return errors


def _rerounded(
    model: HuggingFaceModel, prompts: tuple[Prompt, ...], truth: Trace
) -> dict[str, Differences]:
    """The reference's error at the centred logits when its weights are rounded anew.

    Weight processing multiplies and centres weights in the dtype that users run, and so rounds
    each of them again, about twice, whatever the port does right. Here every matrix entry is
    moved by a random part of one unit in the last place (two roundings of half a unit). Where a
    position is ill-conditioned one draw says little about the next, so several are made.
    """
    import torch

    from conformance.bounds import EPS, REROUNDED_DRAWS

    unit = EPS[str(model.dtype).removeprefix("torch.")]
    generator = torch.Generator().manual_seed(SEEDS["prompts"])
    matrices = [p for p in model.model.parameters() if p.ndim > 1]
    kept = [p.detach().clone() for p in matrices]
    found: dict[str, Differences] = {prompt.name: {} for prompt in prompts}
    with torch.no_grad():
        for _ in range(REROUNDED_DRAWS):
            for parameter, exact in zip(matrices, kept, strict=True):
                parameter.copy_(exact)
                _move(parameter, unit, generator)
            for prompt in prompts:
                drawn = _compare(model, prompt, truth, "rel_rms", only=(CENTRED,))
                _widen(found[prompt.name], drawn)
        for parameter, exact in zip(matrices, kept, strict=True):
            parameter.copy_(exact)
    return found


def _widen(into: Differences, other: Mapping[str, float]) -> None:
    """Keep the larger of two variants, site by site; NaN (an undefined variant) is ignored."""
    for name, value in other.items():
        if value > into.get(name, 0.0):
            into[name] = value
