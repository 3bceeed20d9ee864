"""Grouped heads with a value bias: enable_compatibility_mode(fold_ln=False) crashes.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge


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


def process(kv_heads: int, **flags: bool) -> str:
    """The error of weight processing, or that there is none."""
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        intermediate_size=40,
        attention_bias=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        save(folder, config)
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        try:
            bridge.enable_compatibility_mode(disable_warnings=True, **flags)
        except RuntimeError as error:
            return f"{type(error).__name__}: {error}"
        return "no error"


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    grouped = process(2, fold_ln=False)
    print("2 of 4 key/value heads, fold_ln=False:", grouped)
    print("2 of 4 key/value heads, default:      ", default := process(2))
    print("4 of 4 key/value heads, fold_ln=False:", whole := process(4, fold_ln=False))
    shows = "is invalid for input of size" in grouped and default == whole == "no error"
    return 0 if shows else 1


if __name__ == "__main__":
    raise SystemExit(main())
