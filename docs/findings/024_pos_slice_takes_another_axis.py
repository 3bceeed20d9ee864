"""run_with_cache(pos_slice=...) slices heads (before 4.0) or experts instead of positions.

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
SIZES = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


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


def sliced(config: transformers.PretrainedConfig, name: str, position: int) -> str:
    """Shape of the part of a cached tensor that pos_slice takes, or what it raises."""
    bridge = boot(config)
    try:
        with torch.no_grad():
            _, whole = bridge.run_with_cache(TOKENS, names_filter=[name])
            _, part = bridge.run_with_cache(TOKENS, names_filter=[name], pos_slice=position)
    except IndexError as error:
        return f"IndexError: {error}"
    return f"{tuple(whole[name].shape)} becomes {tuple(part[name].shape)}"


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    llama = transformers.LlamaConfig(**SIZES, **sizes)
    mixtral = transformers.MixtralConfig(**SIZES, **sizes, num_local_experts=4)
    found = {}
    for model, config, hook in (
        ("llama", llama, "blocks.0.attn.hook_q"),
        ("llama", llama, "blocks.0.attn.hook_rot_q"),
        ("mixtral", mixtral, "blocks.0.mlp.gate.hook_out"),
    ):
        for position in (1, 8):
            found[hook, position] = sliced(config, hook, position)
            print(f"{model:8} {hook:27} position {position}: {found[hook, position]}")
    return 0 if "IndexError" in found["blocks.0.mlp.gate.hook_out", 8] else 1


if __name__ == "__main__":
    raise SystemExit(main())
