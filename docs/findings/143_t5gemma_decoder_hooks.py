"""TransformerBridge: T5Gemma's decoder blocks have no hook_attn_out and no hook_mlp_out.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import Any

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

NAME = "T5GemmaForConditionalGeneration"
PART = {
    **{"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 1},
    **{"hidden_size": 48, "intermediate_size": 80, "head_dim": 12, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}
HOOKS = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")


def boot(folder: str) -> Any:
    torch.manual_seed(0)
    config = transformers.T5GemmaConfig(encoder=PART, decoder=PART)
    config.architectures = [NAME]
    getattr(transformers, NAME)(config).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    return TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        hooks = boot(folder).hook_dict
    missing = {
        stack: [name for name in HOOKS if f"{stack}.0.{name}" not in hooks]
        for stack in ("encoder_blocks", "decoder_blocks")
    }
    for stack, names in missing.items():
        print(f"{stack}.0 has no", ", ".join(names) or "hook missing of those five")
    return 0 if missing["decoder_blocks"] == ["hook_attn_out", "hook_mlp_out"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
