"""Folding the norms of a BLOOM whose residual stream is taken after them changes its function.

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


def moved(after_norm: bool, **flags: bool) -> float:
    """How far log-probabilities are from HuggingFace's after weight processing."""
    config = transformers.BloomConfig(
        vocab_size=50,
        hidden_size=48,
        n_layer=2,
        n_head=4,
        apply_residual_connection_post_layernorm=after_norm,
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        bridge.enable_compatibility_mode(disable_warnings=True, **flags)
        want = reference(TOKENS).logits.log_softmax(-1)
        return float((bridge(TOKENS).log_softmax(-1) - want).abs().max())


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    off = {}
    for after_norm in (False, True):
        for fold in (False, True):
            flags = {
                "fold_ln": fold,
                "center_writing_weights": False,
                "center_unembed": True,
                "fold_value_biases": False,
            }
            off[after_norm, fold] = by = moved(after_norm, **flags)
            said = f"residual after the norm: {after_norm!s:<5}, fold_ln={fold!s:<5}"
            print(f"{said} off by {by:.1e}")
    wrong = off.pop((True, True))
    return 0 if wrong > 1e-1 and max(off.values()) < 1e-3 else 1


if __name__ == "__main__":
    raise SystemExit(main())
