"""Falcon with grouped key/value heads: the bridge splits the fused projection at wrong rows.

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


def measure(kv_heads: int) -> tuple[float, float]:
    """How far the bridge's first layer's queries, and its logits, are from HuggingFace's."""
    config = transformers.FalconConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_kv_heads=kv_heads,
        new_decoder_architecture=True,
        multi_query=False,
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager"
        ).eval()
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        want = reference(TOKENS).logits
        got, cache = bridge.run_with_cache(TOKENS)
        layer = reference.transformer.h[0]
        fused = layer.self_attention.query_key_value(
            layer.ln_attn(reference.transformer.word_embeddings(TOKENS))
        )
        queries = layer.self_attention._split_heads(fused)[0]
    return difference(cache["blocks.0.attn.hook_q"], queries), difference(got, want)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    grouped, one = measure(kv_heads=2), measure(kv_heads=1)
    print(f"2 key/value heads: queries differ by {grouped[0]:.1e}, logits by {grouped[1]:.1e}")
    print(f"1 key/value head:  queries differ by {one[0]:.1e}, logits by {one[1]:.1e}")
    return 0 if min(grouped) > 1e-2 and max(one) < 1e-4 else 1


if __name__ == "__main__":
    raise SystemExit(main())
