"""A SoLU model whose norms were folded does not load into the bridge of native models.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import re
from importlib.metadata import version

import torch
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge


def main() -> int:
    print("transformer-lens", version("transformer-lens"))
    if not hasattr(TransformerBridge, "boot_tl_legacy"):
        print("the bridge does not load TransformerLens's own format")
        return 2
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    config = TransformerBridgeConfig(
        d_model=24,
        n_layers=1,
        n_heads=3,
        d_head=8,
        n_ctx=16,
        d_vocab=13,
        d_mlp=40,
        act_fn="solu_ln",
        normalization_type="LNPre",
    )
    # What HookedTransformer.state_dict() has of such a model: LNPre norms have no weights.
    published = {
        "embed.W_E": torch.randn(13, 24),
        "pos_embed.W_pos": torch.randn(16, 24),
        **{f"blocks.0.attn.W_{n}": torch.randn(3, 24, 8) for n in "QKV"},
        **{f"blocks.0.attn.b_{n}": torch.randn(3, 8) for n in "QKV"},
        "blocks.0.attn.W_O": torch.randn(3, 8, 24),
        "blocks.0.attn.b_O": torch.randn(24),
        "blocks.0.mlp.W_in": torch.randn(24, 40),
        "blocks.0.mlp.b_in": torch.randn(40),
        "blocks.0.mlp.W_out": torch.randn(40, 24),
        "blocks.0.mlp.b_out": torch.randn(24),
        "unembed.W_U": torch.randn(24, 13),
        "unembed.b_U": torch.randn(13),
    }
    bridge = TransformerBridge.boot_native(config)
    try:
        bridge.load_state_dict(convert_tl_checkpoint(published, config), strict=True)
    except RuntimeError as error:
        missing = sorted(set(re.findall(r"mlp\.ln\.\w+?\.(weight|bias)", str(error))))
        print("RuntimeError: missing of mlp.ln:", missing)
        return 0 if missing else 1
    print("it loads")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
