"""Before 4.0, weight processing of ERNIE 4.5 MoE raises: its number of experts is not read.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import Any

import tokenizers
import torch
import transformers


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


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) >= 4:
        print("applies to TransformerLens before 4.0")
        return 2
    config = transformers.Ernie4_5_MoeConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        moe_intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        moe_num_experts=5,
        moe_k=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    bridge = boot(config)
    print(f"moe_num_experts of the checkpoint: 5; cfg.num_experts: {bridge.cfg.num_experts}")
    try:
        bridge.enable_compatibility_mode(disable_warnings=True)
    except AssertionError as error:
        print(f"enable_compatibility_mode(): AssertionError: {error}")
        return 0
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
