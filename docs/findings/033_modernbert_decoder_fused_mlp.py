"""The bridge of ModernBertDecoder shows both halves of its gated MLP as one.

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


def boot(config: transformers.PretrainedConfig) -> Any:
    """A bridge of such a model."""
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        save(folder, config)
        return TransformerBridge.boot_transformers(folder, device="cpu")


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    sizes: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    widths: dict[str, int] = {}
    for name, config in (
        ("phi3", transformers.Phi3Config(**sizes)),
        ("modernbert-decoder", transformers.ModernBertDecoderConfig(**sizes, sliding_window=8)),
    ):
        bridge = boot(config)
        with torch.no_grad():
            _, cache = bridge.run_with_cache(TOKENS)
        widths[name] = cache["blocks.0.mlp.hook_pre"].shape[-1]
        print(
            f"{name:18} d_mlp {bridge.cfg.d_mlp}, hook_pre is {widths[name]} wide, "
            f"W_in {tuple(bridge.blocks[0].mlp.W_in.shape)}, "
            f"hook_pre_linear {'exists' if 'blocks.0.mlp.hook_pre_linear' in cache else 'does not'}"
        )
    return 0 if widths == {"phi3": 48, "modernbert-decoder": 96} else 1


if __name__ == "__main__":
    raise SystemExit(main())
