"""The router's hook of GraniteMoe shows which experts were chosen, not the router's logits.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import Any

import tokenizers
import torch
import transformers

TOKENS = torch.arange(3, 19)[None]
HOOK = "blocks.0.mlp.gate.hook_out"


def boot(config: transformers.PretrainedConfig) -> Any:
    """A bridge of a seeded random model with a tokenizer of one word."""
    from transformer_lens.model_bridge import TransformerBridge

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>"
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, device="cpu")


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    config = transformers.GraniteMoeConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=5,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    bridge = boot(config)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(TOKENS)
    (weight,) = (p for n, p in bridge.named_parameters() if "layers.0." in n and "router" in n)
    logits = cache["blocks.0.mlp.hook_in"][0] @ weight.T
    shown = cache[HOOK]
    print(f"{HOOK}: {shown.dtype}, {tuple(shown.shape)}")
    print(f"the first token: {shown[0].tolist()}")
    print(f"its router's logits: {[round(x, 3) for x in logits[0].tolist()]}")
    chosen = logits.topk(2).indices
    return 0 if shown.dtype == torch.int64 and torch.equal(shown, chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
