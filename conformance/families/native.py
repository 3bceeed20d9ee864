"""Models of TransformerLens's own format, as :mod:`conformance.native.model` lays them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.families.base import Family
from conformance.native import ARCHITECTURE

if TYPE_CHECKING:
    from collections.abc import Callable


def _native(config: Any) -> Family:
    with_mlp = not config.attn_only
    normed = config.normalization is not None
    mlp: dict[str, Any] = {"mlp": "mlp", "up": "mlp.fc_in", "down": "mlp.fc_out"}
    if config.act_fn == "solu_ln":
        mlp["down_norm"] = "mlp.ln"
    return Family(
        ARCHITECTURE,
        block="layers.{l}",
        embed="tok_embed",
        pos_embed="pos",
        shortformer=config.positions == "shortformer",
        ln1="ln1" if normed else None,
        attn="attn",
        q="attn.q",
        k="attn.k",
        v="attn.v",
        o="attn.o",
        ln2="ln2" if normed and with_mlp else None,
        **(mlp if with_mlp else {}),
        ln_final="ln_out" if normed else None,
        unembed="head",
        rotary=False,
    )


FAMILIES: dict[str, Family | Callable[[Any], Family]] = {ARCHITECTURE: _native}
