"""The bridge of NanoChat takes the norm after the embedding for the final one, which it is too.

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
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    times: dict[str, int] = {}
    off: dict[str, float] = {}
    for name, config in (
        ("llama", transformers.LlamaConfig(**sizes)),
        ("nanochat", transformers.NanoChatConfig(**sizes)),
    ):
        bridge = boot(config)
        fired: list[object] = []

        def seen(tensor: torch.Tensor, hook: object, fired: list[object] = fired) -> None:
            fired.append(hook)

        with torch.no_grad():
            bridge.run_with_hooks(TOKENS, fwd_hooks=[("ln_final.hook_out", seen)])
            _, cache = bridge.run_with_cache(TOKENS)
            end = cache["blocks.1.hook_resid_post"]
            parts = cache.decompose_resid(-1).sum(0)
        times[name] = len(fired)
        off[name] = float((parts - end).abs().max() / end.abs().max())
        print(f"{name:8} ln_final.hook_out fires {times[name]} times in a forward pass;")
        print(f"{name:8} the sum of decompose_resid is off by {off[name]:.1e} of the last stream")
    shows = times == {"llama": 1, "nanochat": 2} and off["llama"] < 1e-5
    return 0 if shows and off["nanochat"] > 1e-2 else 1


if __name__ == "__main__":
    raise SystemExit(main())
