"""OPT's bridge shows what its second norm does without a batch axis: [batch * pos, d_model].

Exit status: 0 the defect shows, 1 it does not.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version

import tokenizers
import torch
import transformers


def save(folder: str, config: transformers.PretrainedConfig) -> None:
    """A seeded random model and a tokenizer of one word."""
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>"
    ).save_pretrained(folder)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    from transformer_lens.model_bridge import TransformerBridge

    config = transformers.OPTConfig(
        vocab_size=50,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    with tempfile.TemporaryDirectory() as folder:
        save(folder, config)
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.arange(1, 13).reshape(2, 6))
    shapes = {}
    for norm in ("ln1", "ln2"):
        for hook in ("hook_in", "hook_scale", "hook_normalized", "hook_out"):
            name = f"blocks.0.{norm}.{hook}"
            shapes[name] = tuple(cache[name].shape) if name in cache else None
            print(f"{name:31} {shapes[name]}")
    return 0 if shapes["blocks.0.ln2.hook_normalized"] == (12, 32) else 1


if __name__ == "__main__":
    raise SystemExit(main())
