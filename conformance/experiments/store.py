"""Where experiments' results are kept, and how they come to be there."""

from __future__ import annotations

import math
import shutil
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance import SEEDS
from conformance.errors import TraceError
from conformance.experiments import code_hashes, experiment
from conformance.experiments.base import Apparatus
from conformance.trace import Trace, TraceWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from conformance.checkpoints import Checkpoint
    from conformance.experiments.base import Experiment
    from conformance.implementations.huggingface import HuggingFaceModel
    from conformance.reference import Reference
    from conformance.spec import ModelSpec


class Stored:
    """One experiment's results, as the reference left them.

    Raises:
        TraceError: there are none, they are damaged, or the experiment failed.
    """

    def __init__(self, path: Path) -> None:
        self._trace = Trace(path)
        self.facts: Mapping[str, Any] = self._trace.facts["facts"]
        self._spread: Mapping[str, float] = self._trace.facts["spread"]

    def __iter__(self) -> Any:
        return iter(self._trace)

    def __contains__(self, name: str) -> bool:
        return name in self._trace

    def __getitem__(self, name: str) -> torch.Tensor:
        """A result, mapped from disk: clone before changing it."""
        return self._trace[name]

    def spread(self, name: str) -> float:
        """How far roundoff alone moves it, relative (``rel_max``); infinite if it tells nothing."""
        return self._spread[name]


def where(trace: Path, check: str) -> Path:
    """The directory of a check's experiment, beside its reference's trace."""
    return trace / "experiments" / f"{check}-{code_hashes()[check]}"


def stored(trace: Path, check: str) -> Stored:
    """What the reference computed for a check.

    Raises:
        TraceError: the reference's process could not; the message has its reason.
    """
    path = where(trace, check)
    failed = path.with_suffix(".failed")
    if failed.exists():
        raise TraceError(
            f"the reference's experiment {check!r} failed: {failed.read_text(encoding='utf-8')}",
            "this is the harness's failure: report it with this text",
        )
    return Stored(path)


def ensure(
    model: ModelSpec,
    checkpoint: Checkpoint,
    trace: Path,
    checks: Sequence[str],
    progress: Callable[[str], None],
) -> None:
    """Run the experiments of these checks that are not there yet.

    One that fails leaves its reason behind and does not keep the others from running.
    """
    from filelock import FileLock

    with FileLock(str(trace) + ".experiments.lock"):
        missing: dict[str, Experiment] = {}
        for check in checks:
            found = experiment(check)
            if found is None or (where(trace, check) / "index.json").exists():
                continue
            missing[check] = found
        if not missing:
            return
        home = trace / "experiments"
        home.mkdir(exist_ok=True)
        for check in missing:
            for stale in home.glob(f"{check}-*"):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        _run(model, checkpoint, trace, missing, progress)


def _run(
    model: ModelSpec,
    checkpoint: Checkpoint,
    trace: Path,
    missing: Mapping[str, Experiment],
    progress: Callable[[str], None],
) -> None:
    import torch

    from conformance.reference import Reference, load_model, move_weights

    reference = Reference(trace, checkpoint.path, model.architecture, "float64")
    apparatus = _apparatus(checkpoint, reference)
    writers: dict[str, TraceWriter] = {}
    work: dict[str, Path] = {}
    spreads: dict[str, dict[str, float]] = {}
    facts: dict[str, dict[str, Any]] = {}
    home = trace / "experiments"

    def failed(check: str, error: Exception) -> None:
        reason = "".join(traceback.format_exception(error)).rstrip()
        where(trace, check).with_suffix(".failed").write_text(reason, encoding="utf-8")
        shutil.rmtree(work.pop(check), ignore_errors=True)

    loaded: HuggingFaceModel | None = None
    if any(e.needs_model for e in missing.values()):
        progress("reference: loading in float64 for experiments")
        loaded = load_model(model, checkpoint, torch.float64)
    try:
        for check, what in missing.items():
            progress(f"reference: experiment {check}")
            work[check] = Path(tempfile.mkdtemp(prefix=".partial-", dir=home))
            try:
                on = apparatus(loaded)
                with TraceWriter(work[check]) as writers[check]:
                    for name, value in what.run(on):
                        writers[check].next_run()
                        writers[check].add(name, value)
                    writers[check].finish({})
                facts[check] = what.facts(on)
                spreads[check] = dict.fromkeys(Trace(work[check]), 0.0)
            except Exception as error:
                failed(check, error)
        if loaded is not None:
            move_weights(loaded)
        for check, what in missing.items():
            if check not in work or not what.needs_model:
                continue
            progress(f"reference: experiment {check}, weights moved")
            try:
                truth = Trace(work[check])
                for name, value in what.run(apparatus(loaded)):
                    spreads[check][name] = moved(truth[name], value)
            except Exception as error:
                failed(check, error)
        for check, path in work.items():
            _seal(path, spreads[check], facts[check])
            path.replace(where(trace, check))
    except BaseException:
        for path in work.values():
            shutil.rmtree(path, ignore_errors=True)
        raise


def _seal(path: Path, spread: Mapping[str, float], facts: Mapping[str, Any]) -> None:
    import json

    index = json.loads((path / "index.json").read_text(encoding="utf-8"))
    index["facts"] = {"spread": spread, "facts": facts}
    (path / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _apparatus(
    checkpoint: Checkpoint, reference: Reference
) -> Callable[[HuggingFaceModel | None], Apparatus]:
    from conformance.reference import load_tokenizer

    tokenizer = load_tokenizer(checkpoint)

    def make(model: HuggingFaceModel | None) -> Apparatus:
        import torch

        torch.manual_seed(SEEDS["prompts"])
        prompts = {p.name: p for p in reference.prompts}
        return Apparatus(model, prompts, checkpoint.path, tokenizer)  # type: ignore[arg-type] # see Experiment.needs_model

    return make


def moved(truth: torch.Tensor, value: torch.Tensor) -> float:
    """The spread of one result: relative for real numbers, 0 or infinity for others."""
    import torch

    from conformance.metrics import difference

    if truth.shape != value.shape:
        return math.inf
    if not truth.is_floating_point():
        return 0.0 if torch.equal(truth, value) else math.inf
    if truth.ndim == 0:
        truth, value = truth.reshape(1), value.reshape(1)
    return difference(truth, value).rel_max
