"""The bridge of Hunyuan in TransformerLens 3.9 normalises queries and keys before their rotation.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version

import tokenizers
import torch
import transformers

TOKENS = torch.arange(3, 19)[None]
HEAD = 8


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


def logits(
    config: transformers.PretrainedConfig, *, norms_first: bool = False
) -> list[torch.Tensor]:
    """Of HuggingFace (with norms before the rotation if asked) and of a bridge."""
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager"
        ).eval()
        if norms_first:
            for layer in reference.model.layers:
                swap(layer.self_attn)
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        return [reference(TOKENS).logits, bridge(TOKENS)]


def swap(attention: torch.nn.Module) -> None:
    """Normalise queries and keys as they come from their projections."""
    for part in ("query", "key"):
        norm = getattr(attention, f"{part}_layernorm")
        projection = getattr(attention, f"{part[0]}_proj")
        setattr(attention, f"{part}_layernorm", torch.nn.Identity())
        projection.register_forward_hook(
            lambda _, __, out, norm=norm: norm(out.unflatten(-1, (-1, HEAD))).flatten(-2)
        )


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if not version("transformer-lens").startswith("3."):
        print("applies to TransformerLens 3.9; 4.3 normalises after the rotation")
        return 2
    config = transformers.HunYuanDenseV1Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        eod_token_id=0,
    )
    off = {}
    for what, first in (("as it is", False), ("with its norms before the rotation", True)):
        want, got = logits(config, norms_first=first)
        off[first] = float((got - want).abs().max() / want.abs().max())
        print(f"logits differ from HuggingFace's, {what}, by {off[first]:.1e}")
    return 0 if off[False] > 1e-2 and off[True] < 1e-5 else 1


if __name__ == "__main__":
    raise SystemExit(main())
