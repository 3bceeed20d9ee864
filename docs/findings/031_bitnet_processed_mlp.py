"""The bridge's processed weights leave out the norm inside BitNet's MLP.

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


def moved(config: transformers.PretrainedConfig, **flags: bool) -> float:
    """How far weight processing moves the log-probabilities."""
    bridge = boot(config)
    with torch.no_grad():
        before = bridge(TOKENS).log_softmax(-1)
        bridge.enable_compatibility_mode(disable_warnings=True, **flags)
        return float((bridge(TOKENS).log_softmax(-1) - before).abs().max())


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
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    bitnet, llama = transformers.BitNetConfig(**sizes), transformers.LlamaConfig(**sizes)
    found = {
        "llama": moved(llama),
        "bitnet": moved(bitnet),
        "bitnet, no_processing": moved(bitnet, no_processing=True),
    }
    for name, off in found.items():
        print(f"{name:22} log-probabilities move by {off:.1e}")
    return 0 if found["llama"] < 1e-3 and found["bitnet"] > 0.1 else 1


if __name__ == "__main__":
    raise SystemExit(main())
