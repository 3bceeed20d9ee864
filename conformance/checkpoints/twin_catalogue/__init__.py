"""The twins: a real architecture each, shrunk; plain data, no torch.

Sizes are chosen so that a transposition shows (no two dimensions of a matrix equal where the
architecture allows it), grouped heads come in threes (so that tiling and repeating differ), a
sliding window is a fraction of the context, and flags that change the mathematics are on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checkpoints.shrink import N_CTX, WINDOW
from conformance.checkpoints.twin_catalogue import (
    classic,
    dense,
    encoders,
    experts,
    gemma,
    latent,
    llama,
    multimodal,
    native,
    recurrent,
    senses,
    seq2seq,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conformance.checkpoints.twin import Twin

__all__ = ["N_CTX", "TWINS", "WINDOW"]

TWINS: Mapping[str, Twin] = {
    **classic.TWINS,
    **llama.TWINS,
    **gemma.TWINS,
    **dense.TWINS,
    **experts.TWINS,
    **latent.TWINS,
    **recurrent.TWINS,
    **encoders.TWINS,
    **multimodal.TWINS,
    **seq2seq.TWINS,
    **senses.TWINS,
    **native.TWINS,
}
