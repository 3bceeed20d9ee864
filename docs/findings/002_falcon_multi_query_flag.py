"""Falcon-40B and 180B set multi_query beside new_decoder_architecture: the bridge does not load.

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


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    config = transformers.FalconConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_kv_heads=2,
        new_decoder_architecture=True,
        multi_query=True,  # HuggingFace's default; "ignored when new_decoder_architecture"
    )
    with tempfile.TemporaryDirectory() as folder:
        save(folder, config)
        try:
            bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        except RuntimeError as error:
            print(f"{type(error).__name__}: {error}")
            return 0 if "split_with_sizes" in str(error) else 1
    print(f"loaded, with {bridge.cfg.n_key_value_heads} key/value heads")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
