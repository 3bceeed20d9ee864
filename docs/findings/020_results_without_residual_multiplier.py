"""Before 4.x, results of heads and neurons lack Granite's residual multiplier.

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
    if tuple(map(int, version("transformer-lens").split(".")[:2])) >= (4, 3):
        print("applies to TransformerLens before 4.3")
        return 2
    config = transformers.GraniteConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        residual_multiplier=0.22,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    bridge = boot(config)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(TOKENS)
        heads = cache.stack_head_results(layer=1).sum(0) / cache["attn_out", 0]
        neurons = cache.get_neuron_results(0).sum(-2) / cache["mlp_out", 0]
    found = [1 / float(t.median()) for t in (heads, neurons)]
    print(f"attn_out is {found[0]:.4f} of the sum of stack_head_results")
    print(f"mlp_out is {found[1]:.4f} of the sum of get_neuron_results")
    return 0 if all(abs(f - 0.22) < 1e-4 for f in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
