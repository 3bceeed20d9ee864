"""hook_embed of AFMoE shows the embedding before muP's scale: the parts do not make the stream.

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
    config = transformers.AfmoeConfig(
        vocab_size=50,
        hidden_size=36,
        intermediate_size=40,
        moe_intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=5,
        num_experts_per_tok=2,
        sliding_window=8,
        mup_enabled=True,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    bridge = boot(config)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(TOKENS)
        parts, names = cache.decompose_resid(layer=1, mode="full", return_labels=True)
    embed, stream = cache["hook_embed"], cache["blocks.0.hook_resid_pre"]
    ratio = float((stream / embed).median())
    missing = float((parts.sum(0) - cache["blocks.1.hook_resid_pre"]).abs().max())
    print(f"hook_resid_pre of the first block is {ratio:.4f} x hook_embed")
    print(f"{' + '.join(names)} misses the stream by up to {missing:.2f}")
    return 0 if abs(ratio - 36**0.5) < 1e-4 and missing > 0.1 else 1


if __name__ == "__main__":
    raise SystemExit(main())
