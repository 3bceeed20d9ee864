"""TransformerBridge: center_writing_weights leaves RWKV's stream uncentred, and says nothing.

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
from transformer_lens.model_bridge import TransformerBridge

TOKENS = torch.arange(3, 11)[None]
SIZES = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
CONFIGS = {
    "gpt2": transformers.GPT2Config(**SIZES, n_embd=48, n_layer=2, n_head=4),
    "rwkv": transformers.RwkvConfig(
        **SIZES, hidden_size=48, intermediate_size=80, num_hidden_layers=2
    ),
}


def boot(model: str, folder: str) -> Any:
    config = CONFIGS[model]
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    return TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float64)


def mean(model: str) -> tuple[float, bool]:
    """The largest mean of the last stream over its largest entry; whether anything was said."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bridge = boot(model, folder)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            bridge.enable_compatibility_mode(
                fold_ln=False, center_unembed=False, fold_value_biases=False
            )
        stream = bridge.run_with_cache(TOKENS)[1]["blocks.1.hook_resid_post"]
    told = any("center_writing_weights" in str(warning.message) for warning in said)
    return float(stream.mean(-1).abs().max() / stream.abs().max()), told


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    found = {model: mean(model) for model in CONFIGS}
    for model, (left, told) in found.items():
        print(f"{model}: mean of the last stream {left:.0e} of its largest entry, warned: {told}")
    right = found["gpt2"][0] < 1e-6
    return 0 if right and found["rwkv"][0] > 1e-3 and not found["rwkv"][1] else 1


if __name__ == "__main__":
    raise SystemExit(main())
