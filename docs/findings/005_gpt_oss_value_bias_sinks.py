"""GPT-OSS: weight processing folds value biases as if attention summed to 1; sinks take a share.

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


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference, relative to the largest reference value."""
    return float((got - want).abs().max() / want.abs().max())


def centred(logits: torch.Tensor) -> torch.Tensor:
    """What weight processing leaves unchanged: logits up to a constant per position."""
    return logits - logits.mean(-1, keepdim=True)


def measure(no_sinks: bool = False, **flags: bool) -> float:
    """How far compatibility mode moves the centred logits away from HuggingFace's."""
    config = transformers.GptOssConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        intermediate_size=40,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0,
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager"
        ).eval()
        if no_sinks:
            for layer in reference.model.layers:
                layer.self_attn.sinks.fill_(-1e4)
            reference.save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        bridge.enable_compatibility_mode(disable_warnings=True, **flags)
        return difference(centred(bridge(TOKENS)), centred(reference(TOKENS).logits))


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    default = measure()
    unfolded = measure(fold_value_biases=False)
    no_sinks = measure(no_sinks=True)
    print(f"enable_compatibility_mode():                        logits differ by {default:.1e}")
    print(f"enable_compatibility_mode(fold_value_biases=False): logits differ by {unfolded:.1e}")
    print(f"enable_compatibility_mode(), sinks at -10000:       logits differ by {no_sinks:.1e}")
    return 0 if default > 1e-2 and max(unfolded, no_sinks) < 1e-4 else 1


if __name__ == "__main__":
    raise SystemExit(main())
