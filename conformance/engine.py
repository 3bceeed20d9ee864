"""Runs one job inside a child process: fetch a checkpoint, run a reference, judge a subject.

A subject is loaded once in promoted float64 and once in the model's dtype; each forward pass
feeds every check that reads it, site by site as the sites fire, so that one model and one site
are in memory at a time.
"""

from __future__ import annotations

import functools
import gc
import time
import traceback
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.checkpoints import Checkpoint, resolve
from conformance.checks import NO_TOKENS, judging, registry
from conformance.checks.base import Check, Context, Pass, structure
from conformance.checks.choosing import judge_choices
from conformance.choices import watched
from conformance.errors import ImplementationError, NotApplicable
from conformance.experiments import code_hashes
from conformance.flags import refused
from conformance.footprint.fitting import footprint_facts, require
from conformance.footprint.predict import predict
from conformance.footprint.shapes import of_checkpoint, of_reference
from conformance.memory import give_back, worth_tidying
from conformance.own_error import UPCAST
from conformance.profiles import facts
from conformance.reference import Reference, code_hash, directory, ensure, load_tokenizer
from conformance.variants import ISOLATION_PROMPTS, teacher
from conformance.verdicts import conclude

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

    from conformance.choices import Watch
    from conformance.implementations.lens_model import LensModel
    from conformance.jobs import Emit, Job
    from conformance.spec import ModelSpec

code_hash()
code_hashes()


def run_job(job: Job, emit: Emit) -> None:
    """Do one job, sending progress and verdicts through ``emit``.

    Raises:
        ConformanceError: the job could not be done; the class says whose fault it is.
    """

    tidied = False

    def progress(text: str) -> None:
        if tidied:
            give_back()  # what the last step held is not what the next one needs
        emit({"event": "progress", "text": text})

    quiet_libraries()
    if job.model.evidence == "twin":
        # Starting a second thread costs more than a twin's largest product.
        import torch

        torch.set_num_threads(1)
    cache = Path(job.cache)
    checkpoint = resolve(job.model, cache, progress)
    tidied = worth_tidying(checkpoint.path)
    if job.kind != "checkpoint":
        settle(job.model, progress)
    if job.kind == "reference":
        from conformance.experiments import store

        if job.limit is not None:
            shape = of_checkpoint(checkpoint, job.model)
            require(shape, job.model.dtype, job.checks, job.limit)
        trace = ensure(job.model, checkpoint, cache, progress)
        reference = Reference(trace, checkpoint.path, job.model.architecture, "float64")
        checks = judging(job.checks, reference.family)
        store.ensure(job.model, checkpoint, trace, checks, progress)
    elif job.kind == "subject":
        _judge(job, checkpoint, cache, emit, progress)


def quiet_libraries() -> None:
    """No progress bars and no advice from transformers."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def settle(model: ModelSpec, progress: Callable[[str], None]) -> None:
    """Make this process fit for a model's dtype: kernels that kill a process are not used."""
    from conformance.precision import DTYPES, settle_kernels

    if model.dtype in UPCAST and not settle_kernels(DTYPES[model.dtype]):
        progress(f"oneDNN has no working kernels for {model.dtype} here: left out")


def prepared(
    model: ModelSpec, cache: Path, progress: Callable[[str], None]
) -> tuple[Checkpoint, Reference]:
    """A model's checkpoint and reference, made in this process where they are not there yet.

    Raises:
        ConformanceError: either could not be done.
    """
    checkpoint = resolve(model, cache, progress)
    settle(model, progress)
    path = ensure(model, checkpoint, cache, progress)
    return checkpoint, Reference(path, checkpoint.path, model.architecture, model.dtype)


@dataclass
class Running:
    """The checks of one subject, with the time each took."""

    checks: list[Check]
    seconds: dict[str, float] = field(default_factory=dict)
    #: Check -> why the harness could not bring it to its end.
    errors: dict[str, str] = field(default_factory=dict)

    def spend(self, check: Check, since: float) -> None:
        self.seconds[check.name] = self.seconds.get(check.name, 0.0) + time.perf_counter() - since


def _judge(
    job: Job,
    checkpoint: Checkpoint,
    cache: Path,
    emit: Emit,
    progress: Callable[[str], None],
) -> None:

    from conformance.precision import DTYPES

    assert job.subject is not None
    model = job.model
    trace = directory(model, checkpoint, cache)
    reference = Reference(trace, checkpoint.path, model.architecture, model.dtype)
    available = registry()
    judged = judging(job.checks, reference.family)
    running = Running([available[name]() for name in judged])
    silent = [available[name]() for name in job.checks if name not in judged]
    for check in silent:
        check.not_applicable(check.name, NO_TOKENS)
    every = sorted([*running.checks, *silent], key=lambda check: job.checks.index(check.name))
    every[0].metrics["facts"] = facts(reference) | footprint_facts(
        predict(of_reference(reference), model.dtype)
    )
    tokenizer = load_tokenizer(checkpoint)
    word = None if tokenizer is None else functools.partial(_word, tokenizer)
    dtypes = ["float64"] if job.model.dtype == "float64" else ["float64", job.model.dtype]
    for dtype in dtypes:
        subject = load(job, checkpoint, reference, DTYPES[dtype], progress)
        context = Context(reference, subject, word=word)
        passes = list(plan(context, dtype))
        if dtype == "float64":
            read_weights(running, context)
        run_passes(running, context, [p for p in passes if p.mode != "processed"], progress)
        if dtype == "float64":
            context.fresh = functools.partial(
                load, job, checkpoint, reference, DTYPES[dtype], progress
            )
            run_checks(running, context, progress)
        run_passes(running, context, [p for p in passes if p.mode == "processed"], progress)
        del subject, context
        gc.collect()
    for check in every:
        verdict = conclude(
            job.model,
            job.subject,
            check.name,
            check.comparisons,
            {**check.metrics, **_left_out(check, reference), **_of_reference(check, reference)},
            running.seconds.get(check.name, 0.0),
            error=running.errors.get(check.name),
            order=reference.family.order,
        )
        verdict = replace(verdict, commit=checkpoint.commit)
        emit({"event": "verdict", "record": asdict(verdict)})


def _word(tokenizer: Any, token: int) -> str:
    return str(tokenizer.decode([token]))


def load(
    job: Job,
    checkpoint: Checkpoint,
    reference: Reference,
    dtype: torch.dtype,
    progress: Callable[[str], None],
) -> LensModel:
    """The job's subject in one dtype.

    Raises:
        ImplementationError: the port could not load the checkpoint, whatever it raised.
    """
    from conformance.implementations.subjects import load_subject

    assert job.subject is not None
    progress(f"{job.subject}: loading in {str(dtype).removeprefix('torch.')}")
    try:
        return load_subject(
            job.subject,
            checkpoint.path,
            reference.family,
            reference.dims,
            dtype,
            loader=job.loader,
            hooked_name=job.model.hooked_name,
            trust_remote_code=job.model.trust_remote_code,
        )
    except (NotApplicable, ImplementationError):
        raise
    except Exception as error:
        if isinstance(error, ImportError) and "needs the optional" in str(error):
            raise NotApplicable(
                f"{job.subject} wants a package that is not installed: {error}",
                "install it to have this model judged",
            ) from error
        raise ImplementationError(
            f"{job.subject} could not load {job.model.id}: "
            f"{type(error).__name__}: {error}\n{_tail(error)}",
            "this is the port's failure: load the checkpoint with TransformerLens by hand",
        ) from error


def _left_out(check: Check, reference: Reference) -> dict[str, Any]:
    if not check.modes or not reference.left_out:
        return {}
    return {"prompts_left_out": reference.left_out}


def read_weights(running: Running, context: Context) -> None:
    """Let the checks that compare loaded weights do so."""
    checks = [c for c in running.checks if c.reads_weights]
    if not checks:
        return
    context.parameters = context.reference.parameters()
    context.tied_unembed = context.reference.tied_unembed
    for check in checks:
        since = time.perf_counter()
        check.comparisons.extend(check.weights(context))
        running.spend(check, since)
    context.parameters = {}


def _of_reference(check: Check, reference: Reference) -> dict[str, Any]:
    """What a reader must know of the reference itself."""
    found: dict[str, Any] = {}
    if reference.contradictions:
        found["reference_contradicts_itself"] = reference.contradictions
    if check.modes and reference.overflows:
        found["reference_overflows"] = {"dtype": reference.dtype, "first": reference.overflows}
    return found


def run_checks(running: Running, context: Context, progress: Callable[[str], None]) -> None:
    """Let the checks that make runs of their own do so. One that fails does not stop the next."""
    for check in running.checks:
        if not check.runs:
            continue
        progress(f"{context.subject.name}: {check.name}")
        since = time.perf_counter()
        try:
            check.comparisons.extend(check.exact(context))
        except NotApplicable as reason:
            check.not_applicable(check.name, reason.message)
        except Exception as error:
            running.errors[check.name] = f"{type(error).__name__}: {error}\n{_tail(error, 12)}"
        if context.scope.large:
            gc.collect()  # a bridge that a check loaded anew is full of cycles
        running.spend(check, since)


def plan(context: Context, dtype: str) -> Iterator[Pass]:
    """All forward passes of one load, processed weights last: processing is in place."""
    prompts = context.reference.prompts
    for prompt in prompts:
        yield Pass(dtype, "plain", prompt)
    for prompt in prompts:
        if prompt.name in ISOLATION_PROMPTS:
            yield Pass(dtype, "blocks", prompt)
            yield Pass(dtype, "components", prompt)
    for prompt in prompts:
        yield Pass(dtype, "processed", prompt)


def run_passes(
    running: Running,
    context: Context,
    passes: Iterable[Pass],
    progress: Callable[[str], None],
) -> None:
    """Forward passes, each read by the checks that want it.

    Args:
        passes: some of :func:`plan`'s, in its order.
    """
    processed: BaseException | bool = False
    unprocessed = refused(context.subject)
    for run in passes:
        readers = [c for c in running.checks if c.wants(run)]
        if not readers:
            continue
        if run.mode == "processed" and unprocessed:
            for check in readers:
                check.not_applicable("processed weights", unprocessed)
            continue
        progress(f"{context.subject.name}: {run}")
        if run.mode == "processed" and processed is False:
            try:
                context.subject.process_weights()
                processed = True
            except Exception as error:
                processed = error
        if isinstance(processed, BaseException):
            note = f"weight processing raised {type(processed).__name__}: {processed}"
            for check in readers:
                check.comparisons.append(structure(None, note, str(run)))
            continue
        _one_pass(running, context, run, readers)


def _one_pass(running: Running, context: Context, run: Pass, readers: list[Check]) -> None:
    """One forward pass of the subject. What it raises is the port's failure; what a check
    raises inside a hook is ours, and is told apart."""
    subject, reference = context.subject, context.reference
    ours: list[BaseException] = []
    started = time.perf_counter()
    inside = 0.0

    def on_site(name: str, value: torch.Tensor) -> None:
        nonlocal inside
        if ours:
            return
        for check in readers:
            since = time.perf_counter()
            try:
                check.comparisons.extend(check.site(context, run, name, value))
            except Exception as error:
                ours.append(error)
            running.spend(check, since)
            inside += time.perf_counter() - since

    def forward() -> tuple[torch.Tensor, torch.Tensor | None]:
        if run.mode == "plain":
            if subject.family.reads:  # no token to predict
                return subject.run(run.prompt, on_site), None
            return subject.run_with_loss(run.prompt, on_site)
        if run.mode == "processed":
            return subject.run(run.prompt, lambda *_: None), None
        force = teacher(
            run.mode, lambda name: reference.input(run.prompt.name, name), subject.dtype
        )
        return subject.run(run.prompt, on_site, force=force), None

    watch: Watch | None = None
    try:
        if run.exact:
            logits, loss = forward()
        else:
            replayed = reference.choices(run.mode, run.prompt.name)
            with watched(subject, replayed) as watch:
                logits, loss = forward()
    except Exception as error:
        if not ours:
            note = f"the forward pass raised {type(error).__name__}: {error}\n{_tail(error)}"
            for check in readers:
                check.comparisons.append(structure(None, note, str(run)))
            return
    if ours:
        raise ours[0]
    spent = time.perf_counter() - started - inside
    flipped = [] if watch is None else list(judge_choices(context, run, watch, readers))
    for check in readers:
        since = time.perf_counter()
        check.comparisons.extend(check.finish(context, run, logits, loss))
        check.comparisons.extend(flipped)
        running.spend(check, since - spent / len(readers))


def _tail(error: BaseException, lines: int = 6) -> str:
    text = "".join(traceback.format_exception(error)).rstrip().splitlines()
    return "\n".join(text[-lines:])
