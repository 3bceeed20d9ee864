"""A port on the bench: faults go in and out of it, and the checks judge.

A twin's reference trace is read once and its port loaded once per dtype, and once more per dtype
with processed weights; faults go in and out one after another, since a fault changes the subject
only. Each is judged relative to the unfaulted port: what fails without it (a port's known bug) is
neither caught nor named by it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from conformance.checks.base import Context, Pass
from conformance.checks.names import CHECKS
from conformance.errors import ConformanceError
from conformance.jobs import Job
from conformance.own_error import UPCAST
from conformance.prove.proof import GATES, Proof
from conformance.recall import Recall
from conformance.verdicts import conclude, first_divergence, margin

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from conformance.checkpoints import Checkpoint
    from conformance.checks.base import PassMode
    from conformance.engine import Running
    from conformance.faults import Fault
    from conformance.implementations.lens_model import LensModel
    from conformance.prompts import Prompt
    from conformance.records import Comparison
    from conformance.reference import Reference
    from conformance.spec import ModelSpec

#: Prompts that faults are proven on: a short one, a padded one, one past every window.
PROMPTS = ("sixteen", "padded_left", "long")
#: Prompts that common gates see in any case; and every other that the checks needed.
GATE_PROMPTS = ("sixteen", "padded_left")

Progress = Callable[[str], None]
Found = dict[str, list["Comparison"]]


@dataclass
class Bench:
    """A port on the bench: loaded in both dtypes, with what fails unfaulted.

    Attributes:
        exact: in promoted float64.
        used: in the dtype that users run.
        processed: dtype -> the port with processed weights; none where they are wrong unfaulted.
        known: what fails without any fault.
        wrong: whether its logits are: then no fault can be proven on it.
    """

    job: Job
    checkpoint: Checkpoint
    reference: Reference
    exact: LensModel
    used: LensModel
    processed: dict[str, LensModel] = field(default_factory=dict)
    known: frozenset[tuple[str, str, str | None]] = frozenset()
    wrong: bool = False
    _baseline: Proof | None = None
    _recall: Recall = field(default_factory=Recall)
    _unfaulted_runs: dict[str, Found] = field(default_factory=dict)
    _fresh: Callable[[], LensModel] | None = None

    @classmethod
    def load(
        cls,
        model: ModelSpec,
        subject: str,
        cache: Path,
        progress: Progress = lambda _: None,
        *,
        loader: str | None = None,
        prompts: Sequence[str] = PROMPTS,
        invariants: bool = False,
    ) -> Bench:
        """Run or read the reference, load the port and see how it does unfaulted.

        Args:
            prompts: what the unfaulted port is judged on; no names for every prompt.
            invariants: judge it by the checks that make runs of their own, too.
        """
        import torch

        from conformance.engine import load, prepared, quiet_libraries
        from conformance.precision import DTYPES

        quiet_libraries()
        torch.set_num_threads(1)
        checkpoint, reference = prepared(model, cache, progress)
        job = Job("subject", model, str(cache), subject, loader, CHECKS)

        def loaded(dtype: str) -> LensModel:
            return load(job, checkpoint, reference, DTYPES[dtype], progress)

        bench = cls(job, checkpoint, reference, loaded("float64"), loaded(model.dtype))
        bench._fresh = lambda: loaded("float64")
        progress(f"{model.id} {subject}: unfaulted")
        bench._judge_unfaulted(loaded, prompts, invariants)
        return bench

    @property
    def used_dtype(self) -> str:
        """The dtype that users run."""
        return self.job.model.dtype

    def unfaulted(self) -> Proof:
        """The port as it is: how far under its bounds it stays."""
        assert self._baseline is not None
        return self._baseline

    def _judge_unfaulted(
        self, loaded: Callable[[str], LensModel], names: Sequence[str], invariants: bool
    ) -> None:
        from conformance.checks import registry

        since = time.perf_counter()
        prompts = [p for p in self.reference.prompts if not names or p.name in names]
        found: Found = {}
        for dtype in ("float64", self.used_dtype):
            _merge(found, self._judge(dtype, prompts, isolated=prompts))
            processed = loaded(dtype)
            comparisons = self._judge_processed(dtype, processed, prompts)
            _merge(found, comparisons)
            if all(c.ok for c in comparisons["logits"]):
                # From here on it is processed, and processing again would be wrong.
                processed.process_weights = _already  # type: ignore[method-assign]
                self.processed[dtype] = processed
        if invariants:
            for name, check in registry().items():
                if check.runs:
                    _merge(found, self._invariants(name))
        self._recall.learning = False
        failures = {name: [c for c in cs if not c.ok] for name, cs in found.items()}
        self.known = frozenset(_key(name, c) for name, cs in failures.items() for c in cs)
        self.wrong = any(
            c.site == "logits" and c.prompt is not None and "processed" not in c.prompt
            for c in failures.get("logits", ())
        )
        failing = tuple(name for name, cs in failures.items() if cs)
        note = ""
        if self.wrong:
            note = "its logits are wrong unfaulted: no fault can be proven on it"
        elif failing:
            note = "sites that fail unfaulted are left out of every proof on it"
        self._baseline = Proof(
            kind="unfaulted",
            fault="none",
            klass="none",
            model=self.job.model.id,
            subject=str(self.job.subject),
            caught=bool(failing),
            checks=failing,
            named=next((first_divergence(cs) for cs in failures.values() if cs), None),
            factor=factor(([c for c in cs if c.ok] for cs in found.values()), "same_function"),
            prompts=tuple(p.name for p in prompts),
            seed=getattr(self.job.model.source, "seed", None),
            alarms=self._alarms(found),
            duration_s=round(time.perf_counter() - since, 3),
            note=note,
        )

    def _alarms(self, found: Found) -> tuple[str, ...]:
        from conformance.ledger.judging import expected

        model, subject = self.job.model, str(self.job.subject)
        verdicts = [conclude(model, subject, name, cs, {}, 0.0) for name, cs in found.items()]
        return tuple(v.check for v in verdicts if expected(v, model).outcome == "failed")

    # --- faults ---

    def prove(self, fault: Fault) -> Proof:
        """One fault, judged by the checks and taken out again."""
        since = time.perf_counter()
        prompts = [p for p in self.reference.prompts if p.name in PROMPTS]
        found: Found = {}
        gates: dict[str, bool] = {}
        if fault.needs is not None:
            known = self._invariants(fault.needs)
            with contextlib.ExitStack() as stack:
                stack.enter_context(fault.apply(self.exact))
                found = self._run_check(fault.needs, self._anew(fault, stack))
            self.known |= {_key(name, c) for name, cs in known.items() for c in cs if not c.ok}
        elif fault.corrupt is not None:
            for prompt in prompts:
                with self._corrupted(fault, "float64") as subject:
                    _merge(found, self._judge_processed("float64", subject, [prompt]))
                if self._settled(fault, found):
                    break
            with self._corrupted(fault, self.used_dtype) as subject:
                gates = self._gated(subject, _needed(found), centred=True)
        elif fault.kind == "fault":
            with fault.apply(self.exact):
                found = self._hunt(fault, prompts)
            with fault.apply(self.used):
                gates = self._gated(self.used, _needed(found))
        else:
            for dtype, subject in (("float64", self.exact), (self.used_dtype, self.used)):
                # A lost upcast shows in a narrow dtype where components are apart.
                apart = prompts if dtype in UPCAST else prompts[: dtype == "float64"]
                with fault.apply(subject):
                    _merge(found, self._judge(dtype, prompts, isolated=apart))
        return self._conclude(fault, found, gates, time.perf_counter() - since)

    def provable(self, fault: Fault) -> bool:
        """Whether this port has what the fault breaks, and checks exist that could see it."""
        if fault.needs is not None and fault.needs not in CHECKS:
            return False
        if fault.corrupt is not None and len(self.processed) < len({"float64", self.used_dtype}):
            return False
        if fault.dtypes is not None and self.used_dtype not in fault.dtypes:
            return False
        return fault.fits(self.exact)

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

    @contextlib.contextmanager
    def _corrupted(self, fault: Fault, dtype: str) -> Iterator[LensModel]:
        """The port with weights that were processed rightly and then corrupted."""
        import torch

        assert fault.corrupt is not None
        subject = self.processed[dtype]
        before = self.exact if dtype == "float64" else self.used
        with restored(subject):
            with torch.no_grad():
                fault.corrupt(subject, before.named_weights())
            yield subject

    def _settled(self, fault: Fault, found: Found) -> bool:
        new = self._new(fault, found)
        return any(new.values()) and self._named(fault, new) in fault.sites(self.exact)

    def _new(self, fault: Fault, found: Found) -> Found:
        """What fails with the fault in, and not without."""
        return {
            name: [
                c
                for c in comparisons
                if not c.ok and _key(name, c) not in self.known and not _excused(fault, name, c)
            ]
            for name, comparisons in found.items()
        }

    def _named(self, fault: Fault, new: Found) -> str | None:
        return first_divergence(new.get(fault.needs or fault.named_by, []))

    def _conclude(
        self,
        fault: Fault,
        found: Found,
        gates: dict[str, bool],
        seconds: float,
    ) -> Proof:
        new = self._new(fault, found)
        true = fault.sites(self.exact)
        caught = any(new.values())
        judgement = "same_function"
        if fault.kind == "precision":
            judgement = "same_precision"
            caught = caught and all(
                c.judgement == "same_precision" for cs in new.values() for c in cs
            )
        named = self._named(fault, new)
        return Proof(
            kind=fault.kind,
            fault=fault.name,
            klass=fault.klass,
            model=self.job.model.id,
            subject=str(self.job.subject),
            caught=caught,
            checks=tuple(name for name, cs in new.items() if cs),
            site_true=true,
            site_named=None if fault.kind == "equivalent" else named in true,
            named=named,
            factor=factor(new.values() if caught else self._holding(found), judgement),
            gates=gates,
            prompts=_needed(found),
            duration_s=round(seconds, 3),
        )

    def _holding(self, found: Found) -> Iterator[list[Comparison]]:
        """What was compared, but for what fails unfaulted."""
        for name, comparisons in found.items():
            yield [c for c in comparisons if _key(name, c) not in self.known]

    # --- running ---

    def _context(self, subject: LensModel) -> Context:
        return Context(self.reference, subject, recall=self._recall, fresh=self._fresh)

    def _judge(self, dtype: str, prompts: Sequence[Prompt], isolated: Sequence[Prompt]) -> Found:
        """All checks but that of processed weights, on all prompts: check -> comparisons."""
        from conformance.variants import ISOLATION_PROMPTS

        running, context = self._begin(dtype)
        for prompt in prompts:
            self._pass(running, context, dtype, "plain", prompt)
        for prompt in isolated:
            if prompt.name in ISOLATION_PROMPTS:
                self._pass(running, context, dtype, "blocks", prompt)
                self._pass(running, context, dtype, "components", prompt)
        return _found(running)

    def _hunt(self, fault: Fault, prompts: Sequence[Prompt]) -> Found:
        """As :meth:`_judge`, up to the first prompt on which the fault is caught and named.

        Components are isolated on the first prompt on which something fails.
        """
        running, context = self._begin("float64")
        isolated = False
        for prompt in prompts:
            before = self._count(fault, running)
            self._pass(running, context, "float64", "plain", prompt)
            if not isolated and self._count(fault, running) > before:
                isolated = self._isolate(fault, running, context, prompt)
            if self._settled(fault, _found(running)):
                return _found(running)
        if not isolated:
            self._isolate(fault, running, context, prompts[0])
        return _found(running)

    def _isolate(self, fault: Fault, running: Running, context: Context, prompt: Prompt) -> bool:
        """Components apart; whole blocks too, unless that has shown it already."""
        before = self._count(fault, running)
        self._pass(running, context, "float64", "components", prompt)
        if self._count(fault, running) == before:
            self._pass(running, context, "float64", "blocks", prompt)
        return True

    def _count(self, fault: Fault, running: Running) -> int:
        return sum(map(len, self._new(fault, _found(running)).values()))

    def _begin(self, dtype: str) -> tuple[Running, Context]:
        from conformance.checks import registry
        from conformance.engine import Running, read_weights

        running = Running([check() for check in registry().values()])
        context = self._context(self.exact if dtype == "float64" else self.used)
        if dtype == "float64":
            read_weights(running, context)
        return running, context

    def _anew(self, fault: Fault, stack: contextlib.ExitStack) -> Callable[[], LensModel] | None:
        """Loads the port, with the fault in it if it belongs there, until the stack unwinds."""
        if not fault.anew or self._fresh is None:
            return self._fresh
        fresh = self._fresh

        def load() -> LensModel:
            subject = fresh()
            stack.enter_context(fault.apply(subject))
            return subject

        return load

    def _run_check(self, name: str, fresh: Callable[[], LensModel] | None = None) -> Found:
        """One check that makes runs of its own: check -> comparisons."""
        from conformance.checks import registry
        from conformance.engine import Running, run_checks
        from conformance.experiments import store

        model = self.job.model
        store.ensure(model, self.checkpoint, self.reference.path, (name,), _silent)
        running = Running([registry()[name]()])
        context = self._context(self.exact)
        context.fresh = fresh or self._fresh
        run_checks(running, context, _silent)
        if name in running.errors:
            raise ConformanceError(running.errors[name], "this is the harness's failure")
        return _found(running)

    def _invariants(self, name: str) -> Found:
        """What such a check finds unfaulted; run once."""
        if name not in self._unfaulted_runs:
            self._unfaulted_runs[name] = self._run_check(name)
        return self._unfaulted_runs[name]

    def _judge_processed(self, dtype: str, subject: LensModel, prompts: Sequence[Prompt]) -> Found:
        from conformance.checks import registry
        from conformance.engine import Running, run_passes

        running = Running([registry()["logits"]()])
        passes = [Pass(dtype, "processed", prompt) for prompt in prompts]
        run_passes(running, self._context(subject), passes, _silent)
        return _found(running)

    def _pass(
        self, running: Running, context: Context, dtype: str, mode: PassMode, prompt: Prompt
    ) -> None:
        from conformance.engine import run_passes

        run_passes(running, context, [Pass(dtype, mode, prompt)], _silent)

    def _gated(
        self, subject: LensModel, needed: Sequence[str], *, centred: bool = False
    ) -> dict[str, bool]:
        """What common gates say of the subject's logits, in the dtype that users run."""
        import torch

        from conformance.metrics import logit_metrics

        close = dict.fromkeys(GATES, True)
        for prompt in self.reference.prompts:
            if prompt.name not in (*GATE_PROMPTS, *needed):
                continue
            right = self.reference.logits(prompt.name, self.used_dtype)
            shown = subject.run(prompt, lambda *_: None)
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


@contextlib.contextmanager
def restored(subject: LensModel) -> Iterator[None]:
    """Whatever is done to a subject's tensors in place is undone."""
    import torch

    held: dict[int, torch.Tensor] = {}
    for module in subject.model.modules():
        for store in (module._parameters, module._buffers, vars(module)):
            held |= {id(t): t for t in store.values() if isinstance(t, torch.Tensor)}
    before = {key: t.detach().clone() for key, t in held.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for key, t in held.items():
                t.copy_(before[key])


def _already(flags: Mapping[str, bool] | None = None) -> None:
    """Processing of weights that are processed."""


def _silent(_: str) -> None:
    """Progress that nobody reads: a fault takes a fraction of a second."""


def _found(running: Running) -> Found:
    return {check.name: list(check.comparisons) for check in running.checks}


def _needed(found: Found) -> tuple[str, ...]:
    """The prompts that were run."""
    named = dict.fromkeys((c.prompt or "").split(" ")[0] for c in _all(found))
    return tuple(p for p in PROMPTS if p in named)


def _merge(into: Found, other: Found) -> None:
    for name, comparisons in other.items():
        into.setdefault(name, []).extend(comparisons)


def _all(found: Found) -> list[Comparison]:
    return [c for comparisons in found.values() for c in comparisons]


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


def factor(groups: Iterable[Iterable[Comparison]], judgement: str) -> float | None:
    """The largest measured/allowed of one judgement; None where it compared nothing."""
    found = [margin(c) for group in groups for c in group if c.judgement == judgement]
    return max(found) if found else None
