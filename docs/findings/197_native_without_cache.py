"""A native model keeps no keys and values: each new token costs a pass over all of them.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge


def main() -> int:
    print("transformer-lens", version("transformer-lens"))
    if not hasattr(TransformerBridge, "boot_native"):
        print("the bridge has no models of its own")
        return 2
    config = TransformerBridgeConfig(
        d_model=24, n_layers=1, n_heads=3, d_head=8, n_ctx=16, d_vocab=13, d_mlp=40, act_fn="gelu"
    )
    bridge = TransformerBridge.boot_native(config)
    seen: list[int] = []

    def note(tensor: torch.Tensor, hook: Any) -> None:
        seen.append(tensor.shape[1])

    with bridge.hooks(fwd_hooks=[("hook_embed", note)]):
        bridge.generate(
            torch.arange(4)[None],
            max_new_tokens=4,
            do_sample=False,
            use_past_kv_cache=True,
            stop_at_eos=False,
            return_type="tokens",
            verbose=False,
        )
    print("tokens that each step embeds, with use_past_kv_cache=True:", seen)
    return 0 if seen[-1] > 1 else 1


if __name__ == "__main__":
    raise SystemExit(main())
