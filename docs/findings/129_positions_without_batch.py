"""TransformerBridge: hook_pos_embed of Marian, Pegasus, Blenderbot and LED has no batch dimension.

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

TOKENS = torch.arange(3, 19).reshape(2, 8)
SIZES = {
    **{"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    **{"d_model": 48, "max_position_embeddings": 32},
    **{f"{s}_{k}": v for s in ("encoder", "decoder") for k, v in (("layers", 2), ("ffn_dim", 80))},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
}
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "BartForConditionalGeneration": transformers.BartConfig(**SIZES, bos_token_id=0),
    "MarianMTModel": transformers.MarianConfig(**SIZES),
    "PegasusForConditionalGeneration": transformers.PegasusConfig(**SIZES),
    "BlenderbotForConditionalGeneration": transformers.BlenderbotConfig(**SIZES, bos_token_id=0),
}


def boot(name: str, folder: str) -> Any:
    torch.manual_seed(0)
    config = CONFIGS[name]
    config.architectures = [name]
    getattr(transformers, name)(config).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    return TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    shown = []
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            bridge = boot(name, folder)
            _, cache = bridge.run_with_cache(TOKENS)
        shape = tuple(cache["pos_embed.hook_out"].shape)
        print(f"{name:35} tokens {tuple(TOKENS.shape)}: pos_embed.hook_out {shape}")
        shown.append(shape)
    whole = (*TOKENS.shape, 48)
    return 0 if shown[0] == whole and all(s == whole[1:] for s in shown[1:]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
