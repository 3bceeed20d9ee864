"""Proves that the checks can fail: fault x twin x check, judged by the checks themselves.

A twin's reference trace is read once and its port loaded once per dtype; faults go in and out
one after another, since a fault changes the subject only. Each is judged relative to the
unfaulted port: what fails without it (a port's known bug) is neither caught nor named by it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from conformance.checks.names import CHECKS
from conformance.errors import ConformanceError
from conformance.jobs import Job

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from conformance.checkpoints import Checkpoint
    from conformance.faults import Fault
    from conformance.implementations.subjects import LensModel
    from conformance.records import Comparison
    from conformance.reference import Reference
    from conformance.spec import ModelSpec

FILE_NAME = "prove.jsonl"

#: Prompts that faults are proven on: a short one, a padded one, one past every window.
PROMPTS = ("sixteen", "padded_left", "long")

#: Gates in common use, on float32 logits: name -> what it allows.
GATES = (
    "allclose rtol 1e-3 atol 3e-2",
    "allclose rtol 1e-5 atol 1e-3",
    "mean KL < 0.1",
    "min cosine > 0.99",
)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Proof:
    """What the checks made of one fault in one port of one twin.

    Attributes:
        fault: the fault's name, or ``none`` for the port as it is.
        klass: its class of bug (``class`` in the file).
        caught: whether any check failed that passes without it; for a precision fault, whether
            *same function* held and *same precision* did not.
        checks: the checks that failed.
        site_true: where the fault is; any of these counts as named.
        site_named: whether the first divergence is there.
        named: the first divergence of the check that must name it.
        factor: the largest measured/allowed of *same function* (of *same precision* for a
            precision fault); for the unfaulted port and equivalents, how near to 1 it came.
            None where nothing but exact weights or missing hooks is at fault.
        gates: gate -> whether it would have caught the fault.
        note: why there is no verdict, if there is none.
    """

    kind: str
    fault: str
    klass: str
    model: str
    subject: str
    caught: bool
    checks: tuple[str, ...] = ()
    site_true: tuple[str, ...] = ()
    site_named: bool | None = None
    named: str | None = None
    factor: float | None = None
    gates: dict[str, bool] = field(default_factory=dict)
    duration_s: float = 0.0
    note: str = ""

    def to_json(self) -> str:
        """One line of ``prove.jsonl``."""
        data = dataclasses.asdict(self)
        data["class"] = data.pop("klass")
        if self.factor is not None and not math.isfinite(self.factor):
            data["factor"] = str(self.factor)
        return json.dumps(data, ensure_ascii=False, allow_nan=False)


def prove(
    model: ModelSpec,
    subject: str,
    faults: Sequence[Fault],
    cache: Path,
    progress: Progress = lambda _: None,
    *,
    loader: str | None = None,
    gates: bool = True,
) -> Iterator[Proof]:
    """All faults that apply to one port of one twin, the unfaulted port first.

    Args:
        gates: also compute what common gates would have caught (a float32 run a fault).

    Raises:
        ConformanceError: the reference or the port could not be run at all.
    """
    bench = Bench.load(model, subject, cache, progress, loader=loader)
    yield bench.unfaulted()
    if bench.wrong:
        return
    for fault in faults:
        if fault.needs is not None or not fault.applies(bench.exact):
            continue
        progress(f"{model.id} {subject}: {fault.name}")
        try:
            yield bench.prove(fault, gates=gates)
        except Exception as error:
            yield bench.broken(fault, error)


@dataclass
class Bench:
    """A port on the bench: loaded in both dtypes, with what fails unfaulted."""

    job: Job
    checkpoint: Checkpoint
    reference: Reference
    exact: LensModel
    used: LensModel
    known: frozenset[tuple[str, str, str | None]] = frozenset()
    wrong: bool = False
    _worst: float | None = None
    _failing: tuple[str, ...] = ()
    _named: str | None = None
    _seconds: float = 0.0

    @classmethod
    def load(
        cls,
        model: ModelSpec,
        subject: str,
        cache: Path,
        progress: Progress = lambda _: None,
        *,
        loader: str | None = None,
    ) -> Bench:
        """Run or read the reference, load the port and see how it does unfaulted."""
        import torch

        from conformance.checkpoints import resolve
        from conformance.engine import load, quiet_libraries
        from conformance.precision import DTYPES
        from conformance.reference import Reference, ensure

        quiet_libraries()
        torch.set_num_threads(1)
        checkpoint = resolve(model, cache, progress)
        path = ensure(model, checkpoint, cache, progress)
        reference = Reference(path, checkpoint.path, model.architecture)
        job = Job("subject", model, str(cache), subject, loader, CHECKS)
        exact, used = (
            load(job, checkpoint, reference, DTYPES[d], progress) for d in ("float64", model.dtype)
        )
        bench = cls(job, checkpoint, reference, exact, used)
        bench._baseline(progress)
        return bench

    def _baseline(self, progress: Progress) -> None:
        since = time.perf_counter()
        progress(f"{self.job.model.id} {self.job.subject}: unfaulted")
        found = self._judge(("float64", self.job.model.dtype))
        with self._fresh() as (exact, used):
            for name, comparisons in self._judge_processed(exact, used).items():
                found.setdefault(name, []).extend(comparisons)
        failures = {name: [c for c in cs if not c.ok] for name, cs in found.items()}
        self.known = frozenset(_key(name, c) for name, cs in failures.items() for c in cs)
        self.wrong = any(
            c.site == "logits" and c.prompt is not None and "processed" not in c.prompt
            for c in failures.get("logits", ())
        )
        self._failing = tuple(name for name, cs in failures.items() if cs)
        self._worst = factor(found.values(), "same_function")
        self._named = next((_first(cs) for cs in failures.values() if cs), None)
        self._seconds = time.perf_counter() - since

    def unfaulted(self) -> Proof:
        """The port as it is: how far under its bounds it stays."""
        note = ""
        if self.wrong:
            note = "its logits are wrong unfaulted: no fault can be proven on it"
        elif self._failing:
            note = "sites that fail unfaulted are left out of every proof on it"
        return Proof(
            kind="unfaulted",
            fault="none",
            klass="none",
            model=self.job.model.id,
            subject=str(self.job.subject),
            caught=bool(self._failing),
            checks=self._failing,
            named=self._named,
            factor=self._worst,
            duration_s=round(self._seconds, 3),
            note=note,
        )

    def prove(self, fault: Fault, *, gates: bool = True) -> Proof:
        """One fault, judged by the checks and taken out again."""
        since = time.perf_counter()
        logits: dict[str, torch.Tensor] | None = None
        if fault.processed:
            with self._fresh() as (exact, used), fault.apply(exact), fault.apply(used):
                found = self._judge_processed(exact, used)
                if gates:
                    logits = self._logits(used)
        else:
            with fault.apply(self.exact):
                found = self._judge(("float64",), sparing=fault.kind == "fault")
            if fault.kind != "fault" or gates:
                with fault.apply(self.used):
                    if fault.kind != "fault":
                        in_use = self._judge((self.job.model.dtype,), weights=False)
                        for name, comparisons in in_use.items():
                            found[name].extend(comparisons)
                    if gates:
                        logits = self._logits(self.used)
        return self._conclude(fault, found, logits, time.perf_counter() - since)

    def broken(self, fault: Fault, error: Exception) -> Proof:
        """A fault that could not be put in: the catalogue's mistake, and not a proof."""
        return Proof(
            kind=fault.kind,
            fault=fault.name,
            klass=fault.klass,
            model=self.job.model.id,
            subject=str(self.job.subject),
            caught=fault.kind == "equivalent",
            note=f"could not be put in: {type(error).__name__}: {error}",
        )

    def _conclude(
        self,
        fault: Fault,
        found: dict[str, list[Comparison]],
        logits: dict[str, torch.Tensor] | None,
        seconds: float,
    ) -> Proof:
        new = {
            name: [
                c
                for c in comparisons
                if not c.ok and _key(name, c) not in self.known and not _excused(fault, name, c)
            ]
            for name, comparisons in found.items()
        }
        checks = tuple(name for name, cs in new.items() if cs)
        true = fault.sites(self.exact)
        caught = bool(checks)
        judgement = "same_function"
        if fault.kind == "precision":
            judgement = "same_precision"
            caught = caught and all(
                c.judgement == "same_precision" for cs in new.values() for c in cs
            )
        named = _first(new.get(fault.named_by, []))
        return Proof(
            kind=fault.kind,
            fault=fault.name,
            klass=fault.klass,
            model=self.job.model.id,
            subject=str(self.job.subject),
            caught=caught,
            checks=checks,
            site_true=true,
            site_named=None if fault.kind == "equivalent" else named in true,
            named=named,
            factor=factor(new.values() if caught else found.values(), judgement),
            gates={} if logits is None else self._gated(logits, centred=fault.processed),
            duration_s=round(seconds, 3),
        )

    # --- running ---

    def _judge(
        self, dtypes: Iterable[str], *, weights: bool = True, sparing: bool = False
    ) -> dict[str, list[Comparison]]:
        """All checks but that of processed weights.

        Args:
            sparing: isolate components on one prompt only, the first whose plain pass fails.
        """
        from conformance.checks import registry
        from conformance.checks.base import Context
        from conformance.engine import Running, plan, read_weights, run_passes

        running = Running([check() for check in registry().values()])
        for dtype in dtypes:
            subject = self.exact if dtype == "float64" else self.used
            context = Context(self.reference, subject)
            if weights and dtype == "float64":
                read_weights(running, context)
            passes = [p for p in plan(context, dtype) if p.prompt.name in PROMPTS]
            run_passes(running, context, (p for p in passes if p.mode == "plain"), _silent)
            isolated: tuple[str, ...] = PROMPTS
            if sparing:
                comparisons = [c for check in running.checks for c in check.comparisons]
                failing = {(c.prompt or "").split(" ")[0] for c in comparisons if not c.ok}
                isolated = tuple(p for p in PROMPTS if p in failing)[:1] or PROMPTS[:1]
            run_passes(
                running,
                context,
                (
                    p
                    for p in passes
                    if p.mode in ("blocks", "components") and p.prompt.name in isolated
                ),
                _silent,
            )
        return {check.name: check.comparisons for check in running.checks}

    def _judge_processed(self, exact: LensModel, used: LensModel) -> dict[str, list[Comparison]]:
        from conformance.checks import registry
        from conformance.checks.base import Context
        from conformance.engine import Running, plan, run_passes

        running = Running([registry()["logits"]()])
        for dtype, subject in (("float64", exact), (self.job.model.dtype, used)):
            context = Context(self.reference, subject)
            passes = [
                run
                for run in plan(context, dtype)
                if run.mode == "processed" and run.prompt.name in PROMPTS
            ]
            run_passes(running, context, passes, _silent)
        return {"logits": running.checks[0].comparisons}

    @contextlib.contextmanager
    def _fresh(self) -> Iterator[tuple[LensModel, LensModel]]:
        """The port loaded anew: weight processing cannot be taken back."""
        from conformance.engine import load
        from conformance.precision import DTYPES

        exact, used = (
            load(self.job, self.checkpoint, self.reference, DTYPES[d], lambda _: None)
            for d in ("float64", self.job.model.dtype)
        )
        yield exact, used
        del exact, used
        gc.collect()

    def _logits(self, subject: LensModel) -> dict[str, torch.Tensor]:
        return {
            prompt.name: subject.run(prompt, lambda *_: None)
            for prompt in self.reference.prompts
            if prompt.name in PROMPTS
        }

    def _gated(self, logits: dict[str, torch.Tensor], *, centred: bool) -> dict[str, bool]:
        """What common gates say, over the same prompts."""
        import torch

        from conformance.metrics import logit_metrics

        close = dict.fromkeys(GATES, True)
        for prompt in self.reference.prompts:
            if prompt.name not in logits:
                continue
            right = self.reference.logits(prompt.name, self.job.model.dtype)
            shown = logits[prompt.name]
            if centred:
                right = right - right.mean(-1, keepdim=True)
                shown = shown - shown.mean(-1, keepdim=True)
            a, b = shown[prompt.valid].float(), right[prompt.valid].float()
            metrics = logit_metrics(right, shown, prompt.valid)
            results = (
                torch.allclose(a, b, rtol=1e-3, atol=3e-2),
                torch.allclose(a, b, rtol=1e-5, atol=1e-3),
                metrics.kl_rs_mean < 0.1,
                metrics.cosine_min > 0.99,
            )
            for gate, ok in zip(GATES, results, strict=True):
                close[gate] = close[gate] and bool(ok)
        return {gate: not ok for gate, ok in close.items()}


def _silent(_: str) -> None:
    """Progress that nobody reads: a fault takes a fraction of a second."""


def _key(check: str, c: Comparison) -> tuple[str, str, str | None]:
    """What a failure is known by: its check, judgement and site, whatever the prompt."""
    processed = " processed" if c.prompt is not None and "processed" in c.prompt else ""
    return check, c.judgement + processed, c.site


def _excused(fault: Fault, check: str, c: Comparison) -> bool:
    """Whether an equivalent change may show here."""
    if check in fault.may_differ:
        return True
    if c.site is None:
        return False
    if c.prompt is not None and any(c.prompt.endswith(f" {mode}") for mode in fault.may_differ):
        return True
    return any(c.site.endswith(f".{kind}") for kind in fault.may_differ)


def _first(failures: Sequence[Comparison]) -> str | None:
    from conformance.verdicts import first_divergence

    return first_divergence(failures)


def factor(groups: Iterable[Iterable[Comparison]], judgement: str) -> float | None:
    """The largest measured/allowed of one judgement; None where it compared nothing."""
    from conformance.verdicts import margin

    found = [margin(c) for group in groups for c in group if c.judgement == judgement]
    return max(found) if found else None


def catalogue(names: Sequence[str] = ()) -> list[Fault]:
    """The faults to prove.

    Raises:
        ConformanceError: a name is in no catalogue.
    """
    import difflib

    from conformance.faults import CATALOGUE

    for name in names:
        if name not in CATALOGUE:
            near = difflib.get_close_matches(name, CATALOGUE, n=3)
            raise ConformanceError(
                f"no fault named {name!r}",
                f"did you mean {', '.join(near)}?" if near else "see conformance/faults",
            )
    return [CATALOGUE[name] for name in names] if names else list(CATALOGUE.values())
