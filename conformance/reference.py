"""The reference run: HuggingFace's trace in promoted float64, and how exact HuggingFace itself is.

One directory per (checkpoint, prompts, versions, our own tracing code), whatever the dtypes, holds

* every site of every prompt in promoted float64 (the truth), and the input of every component;
* the reference's *spread* at each site: how far roundoff moves the truth, the larger of a
  re-association of the same mathematics (the prompt in a larger batch) and of every weight
  moved by one unit in the last place;
* every discrete choice of the truth: a router's experts;
* for each dtype asked for, how exact the reference is in it (:mod:`conformance.own_error`).

A port is judged against these numbers, so a second run needs no HuggingFace model at all.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance import SEEDS, choices, own_error
from conformance.classes import read_config
from conformance.content import contents
from conformance.errors import TraceError
from conformance.media import generated
from conformance.prompts import Prompt, build
from conformance.trace import Trace, TraceWriter
from conformance.variants import (
    DOUBLED_SKIPS,
    Differences,
    Mode,
    choices_to_store,
    compare,
    move,
    stored_choices,
    widen,
    with_sdpa,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from conformance.checkpoints import Checkpoint
    from conformance.choices import Choices
    from conformance.families import Dims, Family
    from conformance.implementations.huggingface import HuggingFaceModel
    from conformance.spec import ModelSpec

#: Prompts on which eager attention and sdpa are compared: plain, padded.
CONTRADICTION_PROMPTS = ("sixteen", "padded_left")

_MATRICES = ("attn.scores", "attn.pattern")

_TRACING_MODULES = (
    "conformance.reference",
    "conformance.variants",
    "conformance.choices",
    "conformance.content",
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
    "conformance.native.model",
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

    from conformance.families import family

    config = read_config(checkpoint.path, trust_remote_code=model.trust_remote_code)
    facts = {
        "checkpoint": checkpoint.digest,
        "architecture": repr(family(model.architecture, config)),
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

    Args:
        path: the trace's directory.
        checkpoint: the directory of the weights.
        architecture: the HuggingFace class.
        dtype: the one that precision is judged in; ``float64`` for none.

    Raises:
        TraceError: there is none, it is damaged, or it was not measured in ``dtype``.
    """

    def __init__(
        self, path: Path, checkpoint: Path, architecture: str, dtype: str = "float32"
    ) -> None:

        from conformance.families import dims, family

        self.path = path
        self.trace = Trace(path)
        facts = self.trace.facts
        config = read_config(checkpoint)
        self.family: Family = family(architecture, config)
        self.dims: Dims = dims(config)
        self.config = config
        self.dtype = dtype
        self.left_out: dict[str, str] = facts["left_out"]
        #: Where the reference's own variants compute different functions: nobody's error.
        self.contradictions: list[str] = facts["contradictions"]
        self._spread: dict[str, dict[str, float]] = facts["spread"]
        self._own: Trace | None = None
        own: Mapping[str, Any] = {"variants": {}, "error": {}, "choices": {}, "shared": {}}
        if dtype != "float64":
            self._own = Trace(own_error.where(path, dtype))
            own = self._own.facts
        self.variants: dict[str, Any] = own["variants"]
        self._error: dict[str, dict[str, dict[str, float]]] = own["error"]
        self._choices: dict[str, dict[str, dict[str, float]]] = own["choices"]
        self._shared: dict[str, dict[str, float]] = own["shared"]
        #: prompt -> choice -> how many tokens the reference itself, in the dtype, would flip.
        self.own_flips: dict[str, dict[str, int]] = own.get("flips", {})
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
        """Logits as the reference gives them in ``dtype``: float64 or :attr:`dtype`."""
        if dtype == "float64" or self._own is None:
            return self.truth(prompt, "logits")
        return self._own[f"{prompt}/logits@{dtype}"]

    @property
    def isolates(self) -> bool:
        """Whether components have a truth of their own in :attr:`dtype`."""
        return self.dtype in own_error.UPCAST

    def isolated(self, prompt: str, site: str) -> torch.Tensor:
        """The site of a component on its own, in float64, on what :attr:`dtype` holds."""
        assert self._own is not None
        return self._own[f"{prompt}/{site}"]

    def choices(self, mode: Mode, prompt: str) -> Choices:
        """The truth's discrete choices."""
        own = mode == "components" and self.isolates
        source = self._own if own and self._own is not None else self.trace
        return stored_choices(source, prompt)

    def choice_error(self, mode: Mode, prompt: str, choice: str) -> float:
        """The reference's own error of the scores chosen by, relative, the largest."""
        return self._choices.get(mode, {}).get(prompt, {}).get(choice, 0.0)

    def shared_error(self, prompt: str, site: str) -> float | None:
        """The reference's own error that a row's entries share; None where none is judged."""
        return self._shared.get(prompt, {}).get(site)

    @functools.cached_property
    def overflows(self) -> dict[str, str]:
        """prompt -> the first site that is not finite in the reference itself, in :attr:`dtype`."""
        found = {}
        for prompt, sites in self._error.get("plain", {}).items():
            first = next((s for s in self._sites if not math.isfinite(sites.get(s, 0.0))), None)
            if first is not None:
                found[prompt] = first
        return found

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
        """The reference's own relative rms error in :attr:`dtype`; not finite where it is not."""
        try:
            return self._error[mode][prompt][site]
        except KeyError:
            raise TraceError(
                f"the reference has no {mode} error of {site} on {prompt}",
                "delete the trace cache and run again",
            ) from None


def ensure(
    model: ModelSpec,
    checkpoint: Checkpoint,
    cache: Path,
    progress: Callable[[str], None],
) -> Path:
    """The trace directory, run now if it is not there yet; the dtype's part of it likewise."""
    from filelock import FileLock

    target = directory(model, checkpoint, cache)
    target.parent.mkdir(parents=True, exist_ok=True)
    load = _loader(model, checkpoint, progress)
    with FileLock(str(target) + ".lock"):
        if not _sound(target):
            _remove_stale(target, model.id)
            work = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
            try:
                _run(model, checkpoint, load, work, progress)
                work.replace(target)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
        if model.dtype != "float64":
            prompts = Reference(target, checkpoint.path, model.architecture, "float64").prompts
            own_error.ensure(target, model.dtype, prompts, load, progress)
    return target


def _remove_stale(target: Path, model: str) -> None:
    """Remove a model's other traces, but for those that another run is at work on."""
    from filelock import FileLock, Timeout

    for stale in target.parent.glob(f"{model}-*"):
        if stale.is_dir() and len(stale.name) == len(target.name):
            with contextlib.suppress(Timeout), FileLock(f"{stale}.lock", timeout=0):
                shutil.rmtree(stale)


def _sound(target: Path) -> bool:
    """Whether there is a finished trace; a damaged one is removed."""
    if not (target / "index.json").exists():
        return False
    try:
        Trace(target)
    except TraceError:
        shutil.rmtree(target)
        return False
    return True


def _loader(
    model: ModelSpec, checkpoint: Checkpoint, progress: Callable[[str], None]
) -> Callable[[torch.dtype, str], HuggingFaceModel]:
    def load(dtype: torch.dtype, attention: str) -> HuggingFaceModel:
        progress(f"reference: loading in {str(dtype).removeprefix('torch.')}, {attention}")
        return load_model(model, checkpoint, dtype, attention)

    return load


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
    model: ModelSpec,
    checkpoint: Checkpoint,
    load: Callable[[torch.dtype, str], HuggingFaceModel],
    target: Path,
    progress: Callable[[str], None],
) -> None:
    import torch

    tokenizer = load_tokenizer(checkpoint)
    truth_model = load(torch.float64, "eager")
    prompts, left_out = prompts_for(truth_model, tokenizer, model.prompts)
    facts: dict[str, Any] = {"prompts": [p.name for p in prompts], "left_out": left_out}
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
        writer.finish(facts)


def prompts_for(
    model: HuggingFaceModel, tokenizer: Any | None, names: tuple[str, ...] | None
) -> tuple[tuple[Prompt, ...], dict[str, str]]:
    """What the model is given, and why some prompts are left out."""
    if model.family.reads:
        return contents(model.family, model.model.config, names)
    media = generated(model.model.config, model.dims)
    return build(model.dims, tokenizer, names, media)


def _trace_prompt(model: HuggingFaceModel, prompt: Prompt, writer: TraceWriter) -> list[str]:
    sites: list[str] = []

    def on_site(name: str, tensor: torch.Tensor) -> None:
        sites.append(name)
        # Matrices [head, query, key] are the largest sites, and each has one name only.
        writer.add(f"{prompt.name}/{name}", tensor, again=not name.endswith(_MATRICES))

    writer.next_run()
    writer.add(f"{prompt.name}/tokens", prompt.tokens)
    if prompt.mask is not None:
        writer.add(f"{prompt.name}/mask", prompt.mask)
    for name, tensor in prompt.extra.items():
        writer.add(f"{prompt.name}/extra:{name}", tensor)
    with choices.watched(model) as watch:
        logits = model.run(
            prompt,
            on_site,
            on_input=lambda name, tensor: writer.add(f"{prompt.name}/in:{name}", tensor),
        )
    on_site("logits", logits)
    for name, tensor in choices_to_store(prompt.name, watch.seen).items():
        writer.add(name, tensor)
    return sites


def _store_parameters(model: HuggingFaceModel, writer: TraceWriter) -> None:
    """As stored in the checkpoint: float64 copies of narrower numbers are kept narrow."""
    import torch

    for name, parameter in model.parameters().items():
        narrow = parameter.to(torch.float32)
        exact = torch.equal(narrow.to(torch.float64), parameter)
        writer.add(f"parameter:{name}", narrow if exact else parameter, again=False)


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
        found[prompt.name] = {} if skipped else _moved(model, prompt, truth, twice=True)
    move_weights(model)
    for prompt in prompts:
        progress(f"reference: float64 spread, weights moved, prompt {prompt.name}")
        widen(found[prompt.name], _moved(model, prompt, truth))
    return found


def _moved(
    model: HuggingFaceModel, prompt: Prompt, truth: Trace, *, twice: bool = False
) -> Differences:
    """In promoted float64 nothing is replayed: a port's choice is judged as it is."""
    return compare(model, prompt, truth, "rel_max", twice=twice, replay=False).sites


def move_weights(model: HuggingFaceModel) -> None:
    """Move every weight, in place, by up to one unit in the last place of float64."""
    import torch

    from conformance.bounds import EPS

    generator = torch.Generator().manual_seed(SEEDS["prompts"])
    with torch.no_grad():
        for parameter in model.model.parameters():
            move(parameter, EPS["float64"], generator)


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
    other, _ = with_sdpa(model, load)
    if other is None:
        return {}
    found = {}
    for prompt in prompts:
        if prompt.name in CONTRADICTION_PROMPTS:
            progress(f"reference: float64 with sdpa, prompt {prompt.name}")
            found[prompt.name] = _moved(other, prompt, truth)
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
