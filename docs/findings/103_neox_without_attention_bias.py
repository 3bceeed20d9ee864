"""TransformerBridge does not load a GPT-NeoX whose attention has no biases.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

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


def bridged(bias: bool) -> str:
    """How far a bridge's logits are from HuggingFace's, relative, or what loading raises."""
    config = transformers.GPTNeoXConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=64,
        attention_bias=bias,
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        want = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(TOKENS).logits
        try:
            bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        except AssertionError:
            return "AssertionError"
        return f"off by {float((bridge(TOKENS) - want).abs().max() / want.abs().max()):.1e}"


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    print("attention_bias=True: ", right := bridged(True))
    print("attention_bias=False:", wrong := bridged(False))
    return 0 if right.startswith("off by") and wrong == "AssertionError" else 1


if __name__ == "__main__":
    raise SystemExit(main())
