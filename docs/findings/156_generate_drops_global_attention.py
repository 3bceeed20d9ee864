"""TransformerBridge: generate takes LED's global_attention_mask and does not use it.

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

TOKENS = torch.arange(3, 27)[None]
CONFIG = transformers.LEDConfig(
    **{"vocab_size": 50, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
    **{"d_model": 48, "attention_window": [4, 4], "init_std": 0.5},
    **{"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 80),
    architectures=["LEDForConditionalGeneration"],
)


def boot(folder: str) -> Any:
    torch.manual_seed(0)
    transformers.LEDForConditionalGeneration(CONFIG).save_pretrained(folder)
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
        bridge = boot(folder)
        own = transformers.LEDForConditionalGeneration.from_pretrained(folder).eval()
    first = torch.zeros_like(TOKENS)
    first[:, 0] = 1
    moved = {}
    for name, model, more in (
        ("transformers", own, {"num_beams": 1, "return_dict_in_generate": True}),
        ("the bridge", bridge, {"stop_at_eos": False, "return_type": "tokens", "verbose": False}),
    ):
        options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, **more}
        without, given = (
            model.generate(TOKENS, **options, **mask).logits[0]
            for mask in ({}, {"global_attention_mask": first})
        )
        moved[name] = float((given - without).abs().max() / without.abs().max())
        print(f"{name}: global_attention_mask moves the first logits by {moved[name]:.1e}")
    return 0 if moved["transformers"] > 1e-3 and moved["the bridge"] == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
