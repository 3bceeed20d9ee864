"""Twins of models of TransformerLens's own format; plain data, no torch.

The defaults of :class:`conformance.native.config.NativeConfig` are a twin's sizes already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.checkpoints.twin import Twin
from conformance.native import ARCHITECTURE

if TYPE_CHECKING:
    from collections.abc import Mapping


#: Without norms the stream grows from layer to layer, until each head sees one token alone.
_SMALLER = {
    **{f".attn.{part}.weight": 0.4 for part in "qk"},
    **{".attn.o.weight": 0.4, ".fc_out.weight": 0.4},
}


def _twin(*, reads_text: bool = True, **config: Any) -> Twin:
    gains = {} if config.get("normalization", "LN") else _SMALLER
    return Twin(ARCHITECTURE, "transformer_lens_native", config, gains, reads_text)


_OLD: dict[str, Any] = {"act_fn": "solu_ln", "layout": "neel-solu-old"}

TWINS: Mapping[str, Twin] = {
    # NeelNanda/Attn_Only_*
    "attn-only": _twin(attn_only=True, act_fn="solu_ln"),
    # NeelNanda/Attn-Only-2L512W-Shortformer-6B-big-lr: no norms at all
    "attn-only-shortformer": _twin(
        attn_only=True, act_fn="solu_ln", positions="shortformer", normalization=None
    ),
    # ArthurConmy/redwood_attn_2l
    "attn-only-shortformer-ln": _twin(attn_only=True, act_fn="gelu_new", positions="shortformer"),
    # Models compiled or trained for a demonstration (Tracr, grokking) have no norms.
    "norm-free": _twin(act_fn="relu", normalization=None),
    # NeelNanda/GELU_*
    "neel-gelu": _twin(act_fn="gelu"),
    # NeelNanda/SoLU_*
    "solu": _twin(act_fn="solu_ln"),
    # NeelNanda/SoLU_*_old, most of them and the others; up to six layers all is transposed
    "solu-old": _twin(**_OLD, normalization="LNPre"),
    "solu-old-ln": _twin(**_OLD),
    # Seven layers: the positions alone are transposed.
    "solu-old-seven-layers": _twin(**_OLD, normalization="LNPre", n_layers=7),
    # Nine layers: nothing is.
    "solu-old-nine-layers": _twin(**_OLD, n_layers=9),
    # Baidicoot/Othello-GPT-Transformer-Lens
    "othello": _twin(
        act_fn="gelu",
        layout="mingpt",
        vocab_size=61,
        n_ctx=59,
        unembed_bias=False,
        reads_text=False,  # it reads moves
    ),
}
