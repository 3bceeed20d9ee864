"""set_use_hook_mlp_in is accepted, and hook_mlp_in never fires, in blocks without ln2 and Bloom.

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


def fires(config: transformers.PretrainedConfig) -> str:
    """What comes of asking for the MLP's input."""
    bridge = boot(config)
    bridge.set_use_hook_mlp_in(True)
    times: list[int] = []
    with torch.no_grad():
        bridge.run_with_hooks(
            TOKENS, fwd_hooks=[("blocks.0.hook_mlp_in", lambda tensor, hook: times.append(1))]
        )
    return f"fires {len(times)} times"


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    found = {
        "gpt-neox": fires(
            transformers.GPTNeoXConfig(
                **SIZES,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
            )
        ),
        "gpt-j": fires(
            transformers.GPTJConfig(**SIZES, n_embd=32, n_layer=2, n_head=4, rotary_dim=4)
        ),
        "phi": fires(
            transformers.PhiConfig(
                **SIZES,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
            )
        ),
    }
    for name, what in found.items():
        print(f"{name:9} {what}")
    right = found.pop("gpt-neox") == "fires 1 times"
    return 0 if right and set(found.values()) == {"fires 0 times"} else 1


if __name__ == "__main__":
    raise SystemExit(main())
