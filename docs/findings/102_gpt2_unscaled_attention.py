"""TransformerBridge scales GPT-2's attention although scale_attn_weights is false.

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


def off(**flags: bool) -> float:
    """How far a bridge's logits are from HuggingFace's, relative."""
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=48, n_layer=2, n_head=4, n_positions=64, **flags
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager"
        ).eval()
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        want, got = reference(TOKENS).logits, bridge(TOKENS)
        return float((got - want).abs().max() / want.abs().max())


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    print(f"as published                          off by {(right := off()):.1e}")
    by_layer = off(scale_attn_by_inverse_layer_idx=True)
    print(f"scale_attn_by_inverse_layer_idx=True  off by {by_layer:.1e}")
    wrong = off(scale_attn_weights=False)
    print(f"scale_attn_weights=False              off by {wrong:.1e}")
    return 0 if max(right, by_layer) < 1e-4 < 1e-2 < wrong else 1


if __name__ == "__main__":
    raise SystemExit(main())
