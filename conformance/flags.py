"""The flags of TransformerLens's weight processing, and where it leaves them off."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from conformance.implementations.lens_model import LensModel

#: The library's own flags, in the order in which it applies them.
STANDARD: tuple[str, ...] = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
)
#: Off in the library's standard processing.
OPTIONAL = "refactor_factored_attn_matrices"
FLAGS: tuple[str, ...] = (*STANDARD, OPTIONAL)


_SHORTFORMER = "the library leaves it off for shortformer models, with a warning"


def centres(subject: LensModel) -> bool:
    """Whether the port's norms subtract the mean; without it, centring changes the function."""
    kind = str(getattr(subject.model.cfg, "normalization_type", "LN"))
    return "RMS" not in kind and not getattr(subject.model.cfg, "uses_rms_norm", False)


def refused(subject: LensModel) -> str | None:
    """Why the library processes no weights of this architecture at all, or None."""
    adapter = getattr(subject.model, "adapter", None)
    if getattr(subject.model.cfg, "is_audio_model", False):
        return "it processes no weights of encoders of sound"  # and raises if asked to
    if getattr(adapter, "supports_compatibility_mode", True):
        return None
    return f"{type(adapter).__name__} does not support compatibility mode"


def declined(subject: LensModel, flag: str) -> str | None:
    """Why the library leaves this flag off for this architecture, or None."""
    cfg = subject.model.cfg
    adapter = getattr(subject.model, "adapter", None)
    if flag == "fold_ln":
        if not getattr(adapter, "supports_fold_ln", True):
            return f"{type(adapter).__name__} does not support it"
        if subject.family.ln1 is None and subject.family.ln2 is None:
            return "norms stand after what they would be folded into"
        if subject.family.shortformer:
            return "positions are added after the norm"
    elif flag == "center_writing_weights":
        if subject.family.shortformer:
            return _SHORTFORMER
        if subject.family.ln_final is None and subject.family.ln1 is None:
            return "no norm subtracts the mean"
        if not centres(subject):
            return "the norms do not subtract the mean, so centring would change the function"
        if not getattr(adapter, "supports_center_writing_weights", True):
            return f"{type(adapter).__name__} does not support it"
    elif flag == "center_unembed":
        if subject.family.shortformer:
            return _SHORTFORMER
        if (getattr(cfg, "output_logits_soft_cap", None) or 0) > 0:
            return "a soft cap of the logits does not commute with a shift of them"
    elif flag == "fold_value_biases" and not _has_value_bias(subject):
        return "values have no bias"
    elif flag == OPTIONAL and subject.family.rotary:
        return "queries and keys are rotated between the factors"
    elif flag == OPTIONAL and subject.dims.group != 1:
        return "heads that share keys and values share their factors"
    return None


def folds_neurons(subject: LensModel) -> bool:
    """Whether ``fold_ln`` folds a norm of the neurons, too: SoLU's, and no other's (BitNet)."""
    return str(getattr(subject.model.cfg, "act_fn", "")).endswith("_ln")


def _has_value_bias(subject: LensModel) -> bool:
    if not any(own.q or own.qkv for own in subject.family.every):
        return False
    return any(bool((b != 0).any()) for b in value_biases(subject.used_weights()).values())


def value_biases(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of a port's weights that are biases of values."""
    ends = (".attn.b_V", ".attn._b_V", ".cross_attn.b_V")
    return {n: t for n, t in weights.items() if n.endswith(ends)}
