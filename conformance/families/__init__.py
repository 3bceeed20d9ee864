"""Where each site and each weight of a HuggingFace architecture lives.

This is data, written from the HuggingFace modelling files and independent of TransformerLens's
own mapping (its mapping is what is under test). ``family(architecture, config)`` gives the
description of one checkpoint; ``{l}`` stands for the layer. Nothing here imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.errors import FamilyError
from conformance.families import (
    decoders,
    dense,
    encoders,
    experts,
    latent,
    multimodal,
    native,
    per_layer,
    recurrent,
    senses,
    seq2seq,
)
from conformance.families.base import Family
from conformance.families.sizes import Dims, dims

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Dims", "Family", "architectures", "dims", "family"]

_FAMILIES: Mapping[str, Family | Callable[[Any], Family]] = {
    **decoders.FAMILIES,
    **dense.FAMILIES,
    **encoders.FAMILIES,
    **experts.FAMILIES,
    **latent.FAMILIES,
    **per_layer.FAMILIES,
    **recurrent.FAMILIES,
    **multimodal.FAMILIES,
    **seq2seq.FAMILIES,
    **senses.FAMILIES,
    **native.FAMILIES,
}


def architectures() -> tuple[str, ...]:
    """Every architecture this file describes, sorted."""
    return tuple(sorted(_FAMILIES))


def family(architecture: str, config: Any) -> Family:
    """The description of one checkpoint.

    Args:
        architecture: the HuggingFace class name, as in ``models.toml``.
        config: the checkpoint's HuggingFace config.

    Raises:
        FamilyError: nothing is known about this architecture.
    """
    entry = _FAMILIES.get(architecture)
    if entry is None:
        raise FamilyError(
            f"architecture {architecture!r} is not described in conformance/families/",
            f"add an entry there and a twin; described: {', '.join(architectures())}",
        )
    return entry(config) if callable(entry) else entry
