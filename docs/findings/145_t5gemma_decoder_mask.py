"""transformers: T5Gemma's decoder masks padding without a cache and not with one.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

from importlib.metadata import version

import torch
import transformers

PART = {
    **{"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 1},
    **{"hidden_size": 48, "intermediate_size": 80, "head_dim": 12, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}


def main() -> int:
    transformers.logging.set_verbosity_error()
    print("transformers", version("transformers"))
    torch.manual_seed(0)
    config = transformers.T5GemmaConfig(encoder=PART, decoder=PART)
    model = transformers.T5GemmaForConditionalGeneration(config).eval()
    tokens = torch.tensor([[1, 0, 0, 0, 7, 8, 9, 10]])
    inputs = {"input_ids": tokens, "decoder_input_ids": tokens}
    ones = torch.ones_like(tokens)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        off = []
        for more in ({}, {"decoder_attention_mask": ones}):
            kept, fresh = (model(**inputs, **more, use_cache=use).logits for use in (True, False))
            off.append(float((kept - fresh).abs().max() / fresh.abs().max()))
    print(f"use_cache moves the logits by {off[0]:.1e}; by {off[1]:.1e} with a decoder mask given")
    return 0 if off[0] > 1e-3 > off[1] else 1


if __name__ == "__main__":
    raise SystemExit(main())
