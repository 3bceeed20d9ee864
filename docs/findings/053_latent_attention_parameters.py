"""Weights of a model with latent attention cannot be read before its first forward pass.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import tokenizers
import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Callable


def boot(config: transformers.PretrainedConfig) -> Any:
    """A bridge of a seeded random model with a tokenizer of one word."""
    from transformer_lens.model_bridge import TransformerBridge

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>"
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, device="cpu")


def tried(what: str, read: Callable[[], Any]) -> bool:
    """Whether a weight can be read."""
    try:
        read()
    except ValueError as error:
        print(f"{what}: {type(error).__name__}: {str(error).split(':')[0]}")
        return False
    print(f"{what}: read")
    return True


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    config = transformers.DeepseekV3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        first_k_dense_replace=2,
        q_lora_rank=12,
        kv_lora_rank=14,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=9,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    bridge = boot(config)

    def both() -> list[bool]:
        return [
            tried("blocks[0].attn.W_O", lambda: bridge.blocks[0].attn.W_O),
            tried("tl_parameters()", bridge.tl_parameters),
        ]

    before = both()
    with torch.no_grad():
        bridge(torch.arange(3, 9)[None])
    print("after a forward pass")
    after = both()
    return 0 if not any(before) and all(after) else 1


if __name__ == "__main__":
    raise SystemExit(main())
