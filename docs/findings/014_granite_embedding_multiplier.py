"""Granite in TransformerLens before 4.3: hook_embed shows the embedding without its multiplier.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version

import tokenizers
import torch
import transformers

TOKENS = torch.arange(3, 19)[None]
MULTIPLIER = 12.0


def save(folder: str, config: transformers.PretrainedConfig) -> None:
    """A seeded random model, none of whose parameters is neutral, and a tokenizer of one word."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(0.25 * noise)
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>"
    ).save_pretrained(folder)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if tuple(map(int, version("transformer-lens").split(".")[:2])) >= (4, 3):
        print("applies to TransformerLens before 4.3, which shows the scaled embedding")
        return 2
    from transformer_lens.model_bridge import TransformerBridge

    config = transformers.GraniteConfig(
        vocab_size=50,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        embedding_multiplier=MULTIPLIER,
        residual_multiplier=0.22,
        attention_multiplier=0.2,
        logits_scaling=8.0,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
        _, cache = bridge.run_with_cache(TOKENS)
    shown, stream = cache["hook_embed"], cache["blocks.0.hook_resid_pre"]
    off = float((stream - shown).abs().max() / stream.abs().max())
    scaled = float((stream - MULTIPLIER * shown).abs().max() / stream.abs().max())
    print(f"hook_embed differs from blocks.0.hook_resid_pre by {off:.1e},")
    print(f"{MULTIPLIER:g} times hook_embed by {scaled:.1e}")
    return 0 if off > 0.1 and scaled < 1e-6 else 1


if __name__ == "__main__":
    raise SystemExit(main())
