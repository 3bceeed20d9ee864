"""TransformerBridge: the norms of Gemma 4 have no hook_scale, and apply_ln_to_stack raises.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import Any

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

TOKENS = torch.arange(3, 11)[None]
SIZES = {"vocab_size": 50, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}
IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "gemma3": transformers.Gemma3TextConfig(
        **SIZES, **HEADS, **IDS, layer_types=["sliding_attention", "full_attention"]
    ),
    "gemma4": transformers.Gemma4TextConfig(
        **SIZES,
        **HEADS,
        **IDS,
        layer_types=["sliding_attention", "full_attention"],
        global_head_dim=10,
        hidden_size_per_layer_input=0,
    ),
}


def boot(model: str, folder: str) -> Any:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(CONFIGS[model]).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    return TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)


def scaled(bridge: Any) -> str:
    """What a norm's frozen scale gives on the stream before the second layer."""
    _, cache = bridge.run_with_cache(TOKENS)
    try:
        stack = cache.apply_ln_to_stack(cache.accumulated_resid(layer=1), layer=1)
    except KeyError as error:
        return f"KeyError: {str(error)[:56]}..."
    return f"a stack of shape {tuple(stack.shape)}"


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    counts, said = {}, {}
    for model in CONFIGS:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            bridge = boot(model, folder)
            counts[model] = sum(name.endswith("hook_scale") for name in bridge.hook_dict)
            said[model] = scaled(bridge)
        print(f"{model}: {counts[model]} hooks hook_scale; apply_ln_to_stack: {said[model]}")
    right = counts["gemma3"] > 0 and said["gemma3"].startswith("a stack")
    return 0 if right and counts["gemma4"] == 0 and said["gemma4"].startswith("KeyError") else 1


if __name__ == "__main__":
    raise SystemExit(main())
