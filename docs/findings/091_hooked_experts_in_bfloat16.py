"""HookedTransformer's experts and their router are float32 whatever dtype it is asked for.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

import torch

try:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
except ImportError:
    print(f"transformer-lens {version('transformer-lens')} has no HookedTransformer")
    sys.exit(2)

TOKENS = torch.arange(8)[None]


def model(dtype: torch.dtype, experts: int | None) -> HookedTransformer:
    """One block of a Mixtral, or of a dense model of the same kind."""
    torch.manual_seed(0)
    mixture = {"num_experts": experts, "experts_per_token": 2} if experts else {}
    config = HookedTransformerConfig(
        n_layers=1,
        d_model=16,
        n_ctx=8,
        d_head=4,
        n_heads=4,
        d_mlp=24,
        d_vocab=31,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=4,
        device="cpu",
        dtype=dtype,
        **mixture,
    )
    return HookedTransformer(config)


def outcome(dtype: torch.dtype, experts: int | None) -> str:
    try:
        return f"logits in {model(dtype, experts)(TOKENS).dtype}"
    except RuntimeError as error:
        return f"RuntimeError: {error}"


def main() -> int:
    print(f"transformer-lens {version('transformer-lens')}, torch {version('torch')}")
    shows = True
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        dense, mixture = outcome(dtype, None), outcome(dtype, 4)
        print(f"{dtype}: dense: {dense}; four experts: {mixture}")
        shows &= dense.startswith("logits")
        shows &= mixture.startswith("RuntimeError") == (dtype != torch.float32)
    every = dict(model(torch.bfloat16, 4).named_parameters())
    found = [name for name, p in every.items() if p.dtype != torch.bfloat16]
    print(
        f"asked for bfloat16: {len(found)} of {len(every)} parameters are float32, {found[-1]} last"
    )
    return 0 if shows and found else 1


if __name__ == "__main__":
    sys.exit(main())
