"""What a script shows: the checkpoint, the port, the case."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Sites inside HuggingFace's attention function, which no module shows.
INSIDE = ("attn.rot_q", "attn.rot_k", "attn.scores", "attn.pattern")


@dataclass(frozen=True)
class Source:
    """Where the script's checkpoint comes from.

    Attributes:
        architecture, model_type: HuggingFace's names.
        config: arguments of the config class, for a checkpoint made in the script.
        seed, gains: how its weights are drawn (see ``checkpoints/twins.py``).
        checkpoint: hub id or directory to load instead; None to make one.
        keep: which layers of it to keep; None for all.
        changes: config entries to set where layers are left out.
    """

    architecture: str
    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    gains: Mapping[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    revision: str | None = None
    keep: tuple[int, ...] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Port:
    """How the script loads the port.

    Attributes:
        kind: ``bridge``, ``hooked`` or ``declared``.
        hooks: site kind (``{l}`` for the layer) -> hook name, or ``module:`` and a path.
        transposed: kinds that the hook shows as [batch, head, pos, d_head].
        loader: ``package.module:function`` of a declared subject.
        official: the name under which HookedTransformer loads it.
        sizes: what to set in HookedTransformer's configuration.
        flags: weight-processing flags to switch on; None for no processing.
    """

    kind: Literal["bridge", "hooked", "declared"]
    hooks: Mapping[str, str]
    transposed: frozenset[str] = frozenset()
    loader: str | None = None
    official: str | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, bool] | None = None


@dataclass(frozen=True)
class Case:
    """What is to be shown.

    Attributes:
        title: first line of the script: what differs.
        site: the site at which it was seen; the script reads inside attention only if it is there.
        tokens, mask: the prompt.
        layers: how many layers the checkpoint has.
        exact: compare in promoted float64 rather than in float32.
        dtype: for a loss of precision, the dtype in which both sides are compared with float64.
        allowed: the relative difference that counts as none.
        crashes: the port is expected to raise.
    """

    title: str
    site: str
    tokens: tuple[tuple[int, ...], ...]
    mask: tuple[tuple[int, ...], ...] | None
    layers: int
    exact: bool
    allowed: float
    dtype: str | None = None
    crashes: bool = False
