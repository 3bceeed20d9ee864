"""OLMo: an edit at a norm's hook_normalized or hook_scale raises AttributeError.

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


def edited(config: transformers.PretrainedConfig, name: str) -> str:
    """What comes of returning a copy of what a hook shows."""
    bridge = boot(config)
    try:
        with torch.no_grad():
            bridge.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda tensor, hook: tensor.clone())])
    except AttributeError as error:
        return f"AttributeError: {error}"
    return "works"


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
    found = {}
    for name, config in (
        ("llama", transformers.LlamaConfig(**SIZES, **sizes)),
        ("olmo", transformers.OlmoConfig(**SIZES, **sizes)),
    ):
        for hook in ("blocks.0.ln1.hook_normalized", "ln_final.hook_scale"):
            found[name, hook] = edited(config, hook)
            print(f"{name:6} {hook:29} {found[name, hook]}")
    right = all(what == "works" for (name, _), what in found.items() if name == "llama")
    wrong = all(what != "works" for (name, _), what in found.items() if name == "olmo")
    return 0 if right and wrong else 1


if __name__ == "__main__":
    raise SystemExit(main())
