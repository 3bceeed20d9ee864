"""Cohere before TransformerLens 4.2: the bridge pairs rotated dimensions as Llama does.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version

import tokenizers
import torch
import transformers

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


def measure(model_type: str, **more: object) -> tuple[float, float]:
    """How far the bridge's logits are from HuggingFace's at position 0, and at any."""
    from transformer_lens.model_bridge import TransformerBridge

    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=80,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **more,
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager"
        ).eval()
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        want, got = reference(TOKENS).logits, bridge(TOKENS)
    return difference(got[:, :1], want[:, :1]), difference(got, want)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if tuple(int(n) for n in version("transformer-lens").split(".")[:2]) >= (4, 2):
        print("applies to TransformerLens before 4.2, which rotates Cohere's adjacent pairs")
        return 2
    shows = True
    for model_type, more in (
        ("cohere", {}),
        ("cohere2", {"layer_types": ["sliding_attention"] * 2, "sliding_window": 8}),
    ):
        first, anywhere = measure(model_type, **more)
        print(f"{model_type}: logits differ by {first:.1e} at position 0, {anywhere:.1e} at any")
        shows &= first < 1e-4 and anywhere > 1e-2
    return 0 if shows else 1


if __name__ == "__main__":
    raise SystemExit(main())
