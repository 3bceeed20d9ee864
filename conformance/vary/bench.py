"""Judges configurations of one twin, each in processes of its own: a crash is an outcome."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.checks.names import CHECKS
from conformance.errors import CheckpointError, FamilyError
from conformance.isolation import Isolation
from conformance.jobs import Job
from conformance.vary.judging import PROMPTS, VaryJob
from conformance.vary.records import Difference, Judged, judged_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from conformance.isolation import Outcome
    from conformance.spec import ModelSpec
    from conformance.vary.space import Space

ENGINE = "conformance.vary.judging:run_job"

#: Longest time for one side of one configuration, in seconds.
TIMEOUT_S = 300.0


def model_of(space: Space, config: Mapping[str, Any], seed: int = 0) -> ModelSpec:
    """The entry that ``models.toml`` would have for a configuration."""
    from conformance.spec import ModelSpec, TwinSource

    return ModelSpec(
        id=f"{space.twin}-variant",
        architecture=space.architecture,
        source=TwinSource(twin=space.twin, seed=seed, config=dict(config) or None),
        dtype="float64",
        prompts=PROMPTS,
    )


class Bench:
    """Judges configurations of one twin on one subject. Close it, or use it in a ``with``.

    Args:
        loader: ``package.module:function`` of a subject that the user declared.
        seed: of the twin's weights.
        say: told what is being done.
    """

    def __init__(
        self,
        space: Space,
        subject: str,
        *,
        loader: str | None = None,
        seed: int = 0,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.space, self.subject, self.loader, self.seed = space, subject, loader, seed
        self._say = say
        self._isolation = Isolation(ENGINE)
        self._folder = Path(tempfile.mkdtemp(prefix="conformance-vary-"))
        self._twin: Path | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes and remove what they wrote."""
        self._isolation.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def judge(self, config: Mapping[str, Any]) -> Judged:
        """One configuration, given as the arguments of the config class that it changes."""
        since = time.perf_counter()
        if config and self._twin is None:
            self._judge({})  # its logits say what has an effect
        judged = self._judge(config)
        return replace(judged, duration_s=round(time.perf_counter() - since, 3))

    def _judge(self, config: Mapping[str, Any]) -> Judged:
        model = model_of(self.space, config, self.seed)
        if not config:  # whose trace is kept
            return self._both(model, Path(tempfile.mkdtemp(dir=self._folder)), True)
        with self.cache() as cache:
            return self._both(model, cache, False)

    def _both(self, model: ModelSpec, cache: Path, own: bool) -> Judged:
        first = self._run(Job("reference", model, str(cache)))
        if first.status != "ok":
            return self._logits_alone(model, cache, _reason(first))
        if own:
            self._twin = next(p for p in (cache / "traces").iterdir() if p.is_dir())
        twin = None if own or self._twin is None else str(self._twin)
        found = self._run(self._job(model, cache, twin=twin))
        if found.is_a(FamilyError):
            return self._logits_alone(model, cache, _reason(found))
        return self._judged(found)

    def _logits_alone(self, model: ModelSpec, cache: Path, why: str) -> Judged:
        """Where our description does not fit, unless transformers takes no such config itself."""
        alone = self._run(VaryJob("reference", model, str(cache), bare=True))
        if alone.status != "ok":
            return Judged("refused", "transformers", _reason(alone))
        judged = self._judged(self._run(self._job(model, cache, bare=True)))
        return judged if judged.reason else replace(judged, reason=why)

    def _job(
        self, model: ModelSpec, cache: Path, *, twin: str | None = None, bare: bool = False
    ) -> VaryJob:
        return VaryJob(
            "subject",
            model,
            str(cache),
            self.subject,
            self.loader,
            CHECKS,
            twin=twin,
            bare=bare,
        )

    def _judged(self, found: Outcome) -> Judged:
        if found.status == "ok" and found.records:
            return judged_from(found.records[0])
        if found.status == "raised":
            return Judged("error", "", found.details())
        said = {"timeout": "timed out", "oom": "ran out of memory"}.get(found.status, "crashed")
        return Judged(
            "failed", differences=(Difference("run", None, found.status, note=f"it {said}"),)
        )

    def _run(self, job: Job) -> Outcome:
        return self.run(job, TIMEOUT_S)

    @contextlib.contextmanager
    def cache(self) -> Iterator[Path]:
        """A cache directory that is removed afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def run(self, job: Job, timeout: float) -> Outcome:
        """Any other job of the same engine: an explanation."""
        return self._isolation.run((job,), timeout=timeout, progress=self._say)


def _reason(outcome: Outcome) -> str:
    """One line: what the library said, without the harness's own words about it."""
    text = outcome.message.split("\n  hint: ")[0].strip() or outcome.cause
    if outcome.is_a(CheckpointError):
        text = text.rsplit("preparing the checkpoint failed: ", 1)[-1]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines)[:300]
