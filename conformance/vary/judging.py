"""Judges one configuration inside a child process: passes of both sides in promoted float64.

The reference is run and stored as always, in a process that never saw TransformerLens; the port is
judged by the checks that read ordinary passes. Where our description of the architecture does not
fit a configuration, the two sides' logits alone are compared.
"""

from __future__ import annotations

import dataclasses
import linecache
import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.classes import read_config
from conformance.errors import ConformanceError, FamilyError, ImplementationError, NotApplicable
from conformance.jobs import Job
from conformance.vary.records import Difference, Judged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from conformance.checkpoints import Checkpoint
    from conformance.engine import Running
    from conformance.implementations.lens_model import LensModel
    from conformance.jobs import Emit
    from conformance.prompts import Prompt
    from conformance.records import Comparison
    from conformance.reference import Reference
    from conformance.sites import Order

#: A short prompt, a padded one, one past every window and every context of scaled positions.
PROMPTS = ("sixteen", "padded_left", "long")
#: Checks that read ordinary passes.
_CHECKS = ("weights", "activations", "components", "logits", "loss")
#: Prompts on which components are fed the reference's inputs, and of weight processing.
_APART, _PROCESSED = ("sixteen", "padded_left"), ("sixteen", "long")
#: Where the reference's logits are kept when they are all there is.
_BARE = "bare.pt"


@dataclass(frozen=True, slots=True)
class VaryJob(Job):
    """A job on one configuration.

    Attributes:
        twin: directory of the twin's own trace, to compare the reference's logits with; None for
            the twin itself.
        bare: run, or compare with, the reference's logits alone.
    """

    twin: str | None = None
    bare: bool = False


def run_job(job: Job, emit: Emit) -> None:
    """The engine of the child process."""
    if isinstance(job, VaryJob):
        import torch

        from conformance.engine import quiet_libraries

        quiet_libraries()
        torch.set_num_threads(1)
        if job.kind == "reference":
            _run_bare(job)
            return
        judged = _judge_bare(job) if job.bare else _judge(job, _silent)
        emit({"event": "verdict", "record": dataclasses.asdict(judged)})
        return
    from conformance.explain.command import run_job as run_other

    run_other(job, emit)


def _silent(_: str) -> None:
    pass


# --- the whole ------------------------------------------------------------------------------------


def _judge(job: VaryJob, progress: Callable[[str], None]) -> Judged:
    import torch

    from conformance.checks import judging, registry
    from conformance.checks.base import Context
    from conformance.engine import Running, load, prepared, read_weights, run_passes

    checkpoint, reference = prepared(job.model, Path(job.cache), progress)
    effect = _effect(reference, job.twin)
    try:
        subject = load(job, checkpoint, reference, torch.float64, progress)
    except NotApplicable as error:
        return Judged("refused", "port", error.message, effect=effect)
    except ImplementationError as error:
        return dataclasses.replace(_not_loaded(error), effect=effect)
    checks = judging(_CHECKS, reference.family)
    running = Running([registry()[name]() for name in checks])
    context = Context(reference, subject)
    read_weights(running, context)
    _check_described(running)
    run_passes(running, context, _passes(reference.prompts), progress)
    found: dict[str, list[Comparison]] = {}
    for check in running.checks:
        for c in check.comparisons:
            where = "processing" if c.prompt and "processed" in c.prompt else check.name
            found.setdefault(where, []).append(c)
    differences = tuple(_differences(found, reference.family.order))
    return Judged("failed" if differences else "passed", "", "", differences, effect)


def _check_described(running: Running) -> None:
    """That the description of the architecture fits the configuration.

    Raises:
        FamilyError: it does not: what it says of sites is not to be relied on.
    """
    from conformance.checks.weights import UNCLAIMED

    for check in running.checks:
        for c in check.comparisons:
            if UNCLAIMED in c.note:
                raise FamilyError(
                    f"our description of the architecture has no place for {c.site}",
                    "describe it in conformance/families",
                )


def _passes(prompts: Sequence[Prompt]) -> list[Any]:
    from conformance.checks.base import Pass

    return [
        *(Pass("float64", "plain", p) for p in prompts),
        *(Pass("float64", "components", p) for p in prompts if p.name in _APART),
        *(Pass("float64", "processed", p) for p in prompts if p.name in _PROCESSED),
    ]


def _differences(found: dict[str, list[Comparison]], order: Order) -> Iterable[Difference]:
    """One for each check that does not hold; a pass that raises fails none of them but ``run``."""
    from conformance.verdicts import failing, first_divergence

    raised = ""
    for check, comparisons in found.items():
        failures = []
        for c in comparisons:
            if c.ok:
                continue
            if check != "processing" and c.note.startswith("the forward pass raised "):
                raised = raised or c.note.removeprefix("the forward pass ")
                continue
            failures.append(c)
        if not failures:
            continue
        site = first_divergence(failures, order)
        at = next((c for c in failures if c.site == site), failures[0])
        kinds = failing([at])
        measured = None if at.judgement == "structure" else at.measured
        allowed = None if at.judgement == "structure" else at.allowed
        note = at.note.splitlines()[0] if at.note else ""
        kind = kinds[0] if kinds else _exception(note)
        yield Difference(check, site, kind, at.prompt, measured, allowed, note)
    if raised:
        said = raised.splitlines()[0]
        yield Difference("run", None, _exception(said), note=said)


def _exception(note: str) -> str:
    """The name of the exception that a note tells of: two that raise alike fail alike."""
    words = note.split("raised ", 1)
    return words[1].split(":", 1)[0] if len(words) == 2 else ""


def _not_loaded(error: ImplementationError) -> Judged:
    """A port that raises on purpose refuses; any other exception is a failure to load."""
    cause = error.__cause__ or error
    while isinstance(cause, ImplementationError) and cause.__cause__ is not None:
        cause = cause.__cause__
    said = f"{type(cause).__name__}: {_first_line(cause)}"
    if refuses(cause):
        return Judged("refused", "port", said)
    return Judged("failed", differences=(_raised("load", said),))


def _raised(check: str, said: str) -> Difference:
    return Difference(check, None, said.split(":", 1)[0], note=f"raised {said}")


def refuses(error: BaseException) -> bool:
    """Whether the port's own code raised this, by a ``raise`` or an assertion that says why."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if f.name != "__torch_function__"
    ]
    if not frames:
        return False
    last = frames[-1]
    if "transformer_lens" not in Path(last.filename).parts:
        return False
    if isinstance(error, AssertionError):
        return bool(str(error))
    line = last.line or linecache.getline(last.filename, last.lineno or 0)
    return line.strip().startswith("raise ")


def _first_line(error: BaseException) -> str:
    text = error.message if isinstance(error, ConformanceError) else str(error)
    frames = traceback.extract_tb(error.__traceback__)
    if not text.strip() and frames:
        return f"in {Path(frames[-1].filename).name}, {frames[-1].name}: {frames[-1].line}"
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # another in every process
    return (text.splitlines() or [""])[0][:300]


def _effect(reference: Reference, twin: str | None) -> float | None:
    """How far the reference's logits are from the twin's; None if the parameters are others."""
    from conformance.compare import measure
    from conformance.trace import Trace

    if twin is None:
        return None
    own, other = Trace(Path(twin)), reference.trace

    def parameters(trace: Trace) -> dict[str, tuple[int, ...]]:
        return {n: tuple(trace[n].shape) for n in trace if n.startswith("parameter:")}

    if parameters(own) != parameters(other):
        return None
    return max(
        measure("logits", own[f"{p.name}/logits"], other[f"{p.name}/logits"], p.valid).rel_max
        for p in reference.prompts
    )


# --- logits alone ---------------------------------------------------------------------------------


def _bare_prompts(job: VaryJob, checkpoint: Checkpoint) -> tuple[Prompt, ...]:
    """Those that need no mask, which each port takes in its own way."""

    from conformance.content import contents
    from conformance.families import dims, family
    from conformance.prompts import build

    config = read_config(checkpoint.path)
    fam = family(job.model.architecture, config)
    if fam.reads:
        return contents(fam, config, ("sixteen", "long"))[0]
    return build(dims(config), None, ("sixteen", "long"))[0]


def _run_bare(job: VaryJob) -> None:
    """The reference's logits, plain and with weights moved by roundoff; nothing is hooked."""
    import torch

    from conformance.checkpoints import resolve
    from conformance.compare import measure
    from conformance.implementations.huggingface import load
    from conformance.precision import promoted
    from conformance.reference import move_weights

    checkpoint = resolve(job.model, Path(job.cache))
    model = load(checkpoint.path, job.model.architecture, torch.float64)
    prompts = _bare_prompts(job, checkpoint)

    def run() -> dict[str, torch.Tensor]:
        with promoted(torch.float64), torch.no_grad():
            return {p.name: _logits(model, p) for p in prompts}

    logits = run()
    move_weights(_Moved(model))  # type: ignore[arg-type]
    moved = run()
    spread = {
        (p.name, centre): measure(
            "logits", logits[p.name], moved[p.name], p.valid, centre=centre
        ).rel_max
        for p in prompts
        for centre in (False, True)
    }
    torch.save({"logits": logits, "spread": spread}, Path(job.cache) / _BARE)


def _logits(model: Any, prompt: Prompt) -> torch.Tensor:
    """HuggingFace's [batch, pos, d_vocab]; of an image, its one row at each position."""
    import torch

    from conformance.implementations.base import at_each

    if not prompt.extra:
        found: torch.Tensor = model(prompt.tokens, use_cache=False).logits
        return found
    from conformance.implementations.huggingface import returned

    found = returned(model(**prompt.given(torch.float64)))
    return at_each(prompt, found) if found.ndim == 2 else found


@dataclass
class _Moved:
    """What :func:`move_weights` asks of a model."""

    model: Any


def _judge_bare(job: VaryJob) -> Judged:
    import torch

    from conformance.checkpoints import resolve
    from conformance.flags import refused

    checkpoint = resolve(job.model, Path(job.cache))
    stored = torch.load(Path(job.cache) / _BARE, weights_only=True)
    try:
        subject = _load_bare(job, checkpoint)
    except NotApplicable as error:
        return Judged("refused", "port", error.message, logits_only=True)
    except Exception as error:
        wrapped = ImplementationError("did not load", "see its cause")
        wrapped.__cause__ = error
        return dataclasses.replace(_not_loaded(wrapped), logits_only=True)
    prompts = _bare_prompts(job, checkpoint)
    wrong = _compared_bare(subject, prompts, stored, "logits")
    if wrong is None and not refused(subject):
        try:
            subject.process_weights()
        except Exception as error:
            wrong = _raised("processing", f"{type(error).__name__}: {_first_line(error)}")
        else:
            wrong = _compared_bare(subject, prompts, stored, "processing")
    if wrong is None:
        return Judged("passed", logits_only=True)
    return Judged("failed", differences=(wrong,), logits_only=True)


def _compared_bare(
    subject: LensModel, prompts: Sequence[Prompt], stored: Any, check: str
) -> Difference | None:
    """The first prompt on which the port's logits are not the reference's."""
    import torch

    from conformance import bounds
    from conformance.compare import measure
    from conformance.implementations.base import at_each
    from conformance.precision import promoted

    centre = check == "processing"  # which may shift all logits of a position
    for prompt in prompts:
        try:
            with promoted(torch.float64), torch.no_grad():
                given, content = subject.content(prompt)
                shown = subject.model(content, **given)
            if subject.family.pooled:
                shown = at_each(prompt, shown)
        except Exception as error:
            said = f"{type(error).__name__}: {_first_line(error)}"
            return _raised("processing" if centre else "run", said)
        truth = stored["logits"][prompt.name]
        if shown.shape != truth.shape:
            note = f"shape {tuple(shown.shape)}, the reference has {tuple(truth.shape)}"
            return Difference(check, "logits", "logits", prompt.name, note=note)
        measured = measure("logits", truth, shown, prompt.valid, centre=centre).rel_max
        allowed = bounds.same_function(stored["spread"][prompt.name, centre])[0]
        if not measured <= allowed:
            return Difference(check, "logits", "logits", prompt.name, measured, allowed)
    return None


def _load_bare(job: VaryJob, checkpoint: Checkpoint) -> LensModel:
    """The port, none of whose hooks is asked for."""
    import torch

    from conformance.families import dims, family
    from conformance.implementations.subjects import load_subject

    assert job.subject is not None
    config = read_config(checkpoint.path)
    return load_subject(
        job.subject,
        checkpoint.path,
        family(job.model.architecture, config),
        dims(config),
        torch.float64,
        loader=job.loader,
        hooked_name=job.model.hooked_name,
    )
