"""The bridge does not read the epsilon of Starcoder2's norms.

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


def off(epsilon: float) -> tuple[float, float]:
    """The bridge's epsilon, and how far its log-probabilities are from HuggingFace's."""
    config = transformers.Starcoder2Config(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=40,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        norm_epsilon=epsilon,
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        want = reference(TOKENS).logits.log_softmax(-1)
        moved = bridge(TOKENS).log_softmax(-1) - want
        return float(bridge.cfg.eps), float(moved.abs().max())


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    shows = True
    for epsilon in (1e-5, 0.1):
        taken, moved = off(epsilon)
        print(f"norm_epsilon={epsilon:g}: the bridge takes {taken:g}, off by {moved:.1e}")
        shows &= (moved > 1e-3) == (epsilon > 1e-5)
    return 0 if shows else 1


if __name__ == "__main__":
    raise SystemExit(main())
