"""An edit inside a norm of Nemotron multiplies by the stored weight, which is the weight less one.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
import warnings
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


def moved(config: transformers.PretrainedConfig) -> float:
    """How far a hook that returns a copy of what it is given moves the logits."""
    bridge = boot(config)

    def copy(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        return tensor.clone()

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = bridge(TOKENS)
        after = bridge.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.ln1.hook_normalized", copy)])
        return float((after - before).abs().max() / before.abs().max())


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if not version("transformer-lens").startswith("3."):
        print("applies to TransformerLens 3.9; 4.3 adds the one")
        return 2
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
    found = {
        "llama": moved(transformers.LlamaConfig(**sizes)),
        "nemotron": moved(transformers.NemotronConfig(**sizes, head_dim=8)),
    }
    for name, off in found.items():
        print(f"{name:9} a copy at ln1.hook_normalized moves the logits by {off:.1e}")
    return 0 if found["llama"] < 1e-4 and found["nemotron"] > 1e-2 else 1


if __name__ == "__main__":
    raise SystemExit(main())
