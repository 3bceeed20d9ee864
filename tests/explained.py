"""Ports of twins, loaded once a session, for the tests of localisation and explanation."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from conformance.checkpoints import resolve
from conformance.checkpoints.twin_catalogue import TWINS
from conformance.engine import load, quiet_libraries
from conformance.jobs import Job
from conformance.reference import Reference, ensure
from conformance.spec import ModelSpec, TwinSource

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.implementations.lens_model import LensModel

torch.set_num_threads(1)


@dataclass
class Ported:
    """A twin's reference, and its bridge in promoted float64."""

    model: ModelSpec
    cache: Path
    reference: Reference
    checkpoint: Path
    exact: LensModel

    def load(self, dtype: torch.dtype) -> LensModel:
        """The port afresh."""
        return _load(self.model, self.cache, self.reference, dtype)


def twin_spec(twin: str) -> ModelSpec:
    """What ``models.toml`` would say of it; only ``sixteen`` and what needs length or padding."""
    return ModelSpec.model_validate(
        {
            "id": f"{twin}-twin",
            "architecture": TWINS[twin].architecture,
            "source": TwinSource(twin=twin),
            "prompts": ["sixteen", "padded_left", "long"],
        }
    )


def _load(model: ModelSpec, cache: Path, reference: Reference, dtype: torch.dtype) -> LensModel:
    job = Job("subject", model, str(cache), "bridge")
    return load(job, resolve(model, cache), reference, dtype, lambda _: None)


@functools.cache
def ported(twin: str, cache: Path) -> Ported:
    """Shared: a fault that goes in must come out."""
    quiet_libraries()
    model = twin_spec(twin)
    checkpoint = resolve(model, cache)
    path = ensure(model, checkpoint, cache, lambda _: None)
    reference = Reference(path, checkpoint.path, model.architecture)
    exact = _load(model, cache, reference, torch.float64)
    return Ported(model, cache, reference, checkpoint.path, exact)
