"""Without a tokenizer, HookedTransformer.generate with a cache takes the wrong position embeddings.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

TOKENS = torch.arange(3, 11)[None]
STEPS = 6


def model(positions: str) -> Any:
    """A seeded random model without a tokenizer, none of whose parameters is neutral."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=2,
        d_model=32,
        n_heads=4,
        d_head=8,
        d_vocab=50,
        n_ctx=64,
        act_fn="gelu",
        positional_embedding_type=positions,
        rotary_dim=8 if positions == "rotary" else None,
    )
    made = HookedTransformer(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return made.eval()


def apart(made: Any) -> float:
    """Largest difference of the logits that greedy generation with a cache, and one without it,
    take their second token from, relative."""
    logits = [
        made.generate(
            TOKENS,
            max_new_tokens=STEPS,
            do_sample=False,
            stop_at_eos=False,
            use_past_kv_cache=cached,
            return_type="tokens",
            output_logits=True,
            verbose=False,
        ).logits[1]
        for cached in (True, False)
    ]
    return float((logits[0] - logits[1]).abs().max() / logits[1].abs().max())


def main() -> int:
    print("transformer-lens", version("transformer-lens"))
    if int(version("transformer-lens").split(".")[0]) >= 4:
        print("HookedTransformer left in 4.0")
        return 2
    found = {}
    for positions in ("standard", "rotary"):
        found[positions] = apart(model(positions))
        print(
            f"{positions:9} logits of the second token, cache against none: {found[positions]:.1e}"
        )
    return int(not found["standard"] > 1e-3 > found["rotary"])


if __name__ == "__main__":
    raise SystemExit(main())
