"""Twins, built once per session, and what HuggingFace computes of them."""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from conformance.checkpoints import Checkpoint, resolve
from conformance.checkpoints.twin_catalogue import TWINS
from conformance.checks.names import CHECKS
from conformance.engine import run_job
from conformance.implementations.huggingface import HuggingFaceModel
from conformance.jobs import Job
from conformance.reference import prompts_for
from conformance.spec import ModelSpec, TwinSource

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.families import Dims, Family
    from conformance.prompts import Prompt

#: Waking a second thread costs more than a twin's largest product.
torch.set_num_threads(1)


def twin_model(twin: str, **fields: Any) -> ModelSpec:
    """An entry of ``models.toml`` for a twin.

    A trace replaces others of the same id, and tests that run at the same time share a cache: what
    asks for other prompts has an id of its own.
    """
    return ModelSpec.model_validate(
        {
            "id": "-".join([twin, *fields.get("prompts", ()), "test"]).replace("_", "-"),
            "architecture": TWINS[twin].architecture,
            "source": TwinSource(twin=twin),
            **fields,
        }
    )


@functools.cache
def checkpoint(twin: str, cache: Path) -> Checkpoint:
    return resolve(twin_model(twin), cache)


@functools.cache
def huggingface(twin: str, cache: Path) -> HuggingFaceModel:
    """The twin in promoted float64. Shared: put back what you change."""
    return HuggingFaceModel(checkpoint(twin, cache).path, TWINS[twin].architecture, torch.float64)


@dataclass
class Run:
    """One forward pass of the reference: every value that fired at a site."""

    prompt: Prompt
    sites: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def __getitem__(self, site: str) -> torch.Tensor:
        (value,) = self.sites[site]
        return value


def run(model: HuggingFaceModel, prompt: Prompt) -> Run:
    found = Run(prompt)
    # Some models go on to change what they showed in place (Olmo clamps, Falcon adds).
    found.logits = model.run(prompt, lambda name, value: found.sites[name].append(value.clone()))
    return found


@functools.cache
def ran(twin: str, cache: Path, prompt: str = "sixteen") -> Run:
    model = huggingface(twin, cache)
    (built,), _ = prompts_for(model, None, (prompt,))
    return run(model, built)


def reads(twin: str, cache: Path, prompt: str) -> bool:
    """Whether the twin is given this prompt; prompts of text are, and need a tokenizer."""
    model = huggingface(twin, cache)
    return bool(prompts_for(model, None, (prompt,))[0])


def described(twin: str, cache: Path) -> tuple[Family, Dims]:
    model = huggingface(twin, cache)
    return model.family, model.dims


def judge(
    model: ModelSpec,
    subject: str,
    cache: Path,
    *,
    loader: str | None = None,
    checks: tuple[str, ...] = CHECKS,
) -> dict[str, dict[str, Any]]:
    """Judge a subject as a run does, in this process: check -> record."""
    records: dict[str, dict[str, Any]] = {}

    def emit(event: Any) -> None:
        if event["event"] == "verdict":
            records[event["record"]["check"]] = event["record"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a port's warnings are its own
        run_job(Job("reference", model, str(cache), checks=checks), emit)
        run_job(Job("subject", model, str(cache), subject, loader, checks), emit)
    return records
