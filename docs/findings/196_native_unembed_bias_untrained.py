"""The unembedding's bias of a native model is a buffer, also where the checkpoint has one.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

from importlib.metadata import version

import torch
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge


def main() -> int:
    print("transformer-lens", version("transformer-lens"))
    if not hasattr(TransformerBridge, "boot_tl_legacy"):
        print("the bridge does not load TransformerLens's own format")
        return 2
    config = TransformerBridgeConfig(
        d_model=24, n_layers=1, n_heads=3, d_head=8, n_ctx=16, d_vocab=13, d_mlp=40, act_fn="gelu"
    )
    bridge = TransformerBridge.boot_native(config)
    state = bridge.state_dict()
    state["unembed.bias"] = torch.randn(13)  # as boot_tl_legacy loads it
    bridge.load_state_dict(state)
    bridge(torch.arange(10)[None], return_type="loss").backward()
    names = {name for name, _ in bridge.named_parameters()}
    bias = bridge.unembed.bias
    print("b_U as loaded:", torch.equal(bias, state["unembed.bias"]))
    print("a parameter:", any("head" in name and "bias" in name for name in names))
    print("its gradient:", None if bias.grad is None else "there is one")
    return 0 if bias.grad is None else 1


if __name__ == "__main__":
    raise SystemExit(main())
