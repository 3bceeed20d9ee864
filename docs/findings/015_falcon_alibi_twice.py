"""Falcon with alibi under eager attention adds the alibi bias twice; sdpa adds it once.

Exit status: 0 the defect shows, 1 it does not.
"""

from __future__ import annotations

import copy
from importlib.metadata import version

import torch
import transformers
from transformers.models.falcon import modeling_falcon


def main() -> int:
    transformers.logging.set_verbosity_error()
    print("transformers", version("transformers"))
    config = transformers.FalconConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        alibi=True,
        new_decoder_architecture=False,
        multi_query=False,
        parallel_attn=False,
        bias=True,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )
    torch.manual_seed(0)
    models = {
        name: transformers.FalconForCausalLM._from_config(
            copy.deepcopy(config), attn_implementation=name
        )
        .double()
        .eval()
        for name in ("eager", "sdpa")
    }
    with torch.no_grad():
        for parameter in models["eager"].parameters():
            parameter.copy_(0.25 * torch.randn_like(parameter))
    models["sdpa"].load_state_dict(models["eager"].state_dict())
    tokens = torch.arange(1, 13)[None]
    with torch.no_grad():
        eager, sdpa = (models[name](tokens).logits for name in ("eager", "sdpa"))
        right = modeling_falcon.build_alibi_tensor
        # Once in the mask and once in the scores: half of it in both places is all of it.
        modeling_falcon.build_alibi_tensor = lambda *args, **kwargs: right(*args, **kwargs) / 2
        halved = models["eager"](tokens).logits
    apart = float((eager - sdpa).abs().max())
    print(f"eager against sdpa, largest difference of the logits: {apart:.2g}")
    print(f"eager with half the bias against sdpa: {float((halved - sdpa).abs().max()):.2g}")
    return 0 if apart > 1e-3 else 1


if __name__ == "__main__":
    raise SystemExit(main())
