"""``decompose_resid`` lists positions that a shortformer model never adds to the stream.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version

import torch


def main() -> int:
    print("transformer-lens", version("transformer-lens"))
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        print("there is no HookedTransformer")
        return 2
    warnings.simplefilter("ignore")
    worst = {}
    for positions in ("standard", "shortformer"):
        config = HookedTransformerConfig(
            n_layers=2,
            d_model=24,
            n_heads=3,
            d_head=8,
            n_ctx=16,
            d_vocab=13,
            attn_only=True,
            positional_embedding_type=positions,
            seed=0,
        )
        model = HookedTransformer(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        with torch.no_grad():
            _, cache = model.run_with_cache(torch.arange(10)[None])
        parts, labels = cache.decompose_resid(return_labels=True)
        off = (parts.sum(0) - cache["blocks.1.hook_resid_post"]).abs().max().item()
        worst[positions] = off
        print(f"{positions:11} {labels}  sum is {off:.0e} from the stream")
    return 0 if worst["standard"] < 1e-5 < worst["shortformer"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
