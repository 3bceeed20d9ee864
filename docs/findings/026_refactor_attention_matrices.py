"""TransformerBridge: refactor_factored_attn_matrices works on GPT-2 and few others.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

SIZES = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
CONFIGS = {
    "GPT-2": transformers.GPT2Config(**SIZES, n_embd=48, n_layer=1, n_head=4, n_positions=32),
    "GPT-Neo": transformers.GPTNeoConfig(
        **SIZES,
        hidden_size=48,
        num_layers=1,
        num_heads=4,
        attention_types=[[["global"], 1]],
        max_position_embeddings=32,
    ),
    "OPT": transformers.OPTConfig(
        **SIZES,
        hidden_size=48,
        word_embed_proj_dim=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        ffn_dim=80,
        max_position_embeddings=32,
    ),
    "MPT": transformers.MptConfig(**SIZES, d_model=48, n_layers=1, n_heads=4, max_seq_len=32),
    "BLOOM": transformers.BloomConfig(**SIZES, hidden_size=48, n_layer=1, n_head=4),
}


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


def process(config: transformers.PretrainedConfig, **flags: bool) -> str:
    """The error of weight processing, or that there is none."""
    with tempfile.TemporaryDirectory() as folder:
        save(folder, config)
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        try:
            bridge.enable_compatibility_mode(
                disable_warnings=True, refactor_factored_attn_matrices=True, **flags
            )
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "no error"


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    alone = dict.fromkeys(
        ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False
    )
    found = {}
    for name, config in CONFIGS.items():
        found[name] = process(config, **alone)
        print(f"{name + ':':9}{found[name]}")
        print(f"{'':9}with the default flags: {process(config)}")
    right = found.pop("GPT-2") == "no error"
    return 0 if right and "no error" not in found.values() else 1


if __name__ == "__main__":
    raise SystemExit(main())
