"""Value biases are folded although OLMo clips queries, keys and values.

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


def moved(model_type: str, clip: float | None, *, bias: bool, fold: bool) -> tuple[float, float]:
    """How far log-probabilities are from HuggingFace's, before and after weight processing."""
    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=40,
        num_experts=4,
        num_experts_per_tok=2,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        attention_bias=bias,
        clip_qkv=clip,
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        want = reference(TOKENS).logits.log_softmax(-1)
        before = bridge(TOKENS).log_softmax(-1)
        bridge.enable_compatibility_mode(fold_value_biases=fold, disable_warnings=True)
        after = bridge(TOKENS).log_softmax(-1)
        return float((before - want).abs().max()), float((after - want).abs().max())


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    shows = True
    for model_type in ("olmo", "olmoe"):
        for clip, bias, fold in (
            (None, True, True),
            (1.5, False, True),
            (1.5, True, False),
            (1.5, True, True),
        ):
            before, after = moved(model_type, clip, bias=bias, fold=fold)
            said = f"{model_type:<5} clip_qkv={clip!s:<4} biases={bias!s:<5} folded={fold!s:<5}"
            print(f"{said} before processing {before:.1e}, after {after:.1e}")
            wrong = clip is not None and bias and fold
            shows &= before < 1e-4 and (after > 1e-2) == wrong
    return 0 if shows else 1


if __name__ == "__main__":
    raise SystemExit(main())
