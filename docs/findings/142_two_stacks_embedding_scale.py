"""TransformerBridge: embedding hooks of four architectures show it before its multiplier.

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

TOKENS = torch.arange(3, 11)[None]
WIDTH = 48
IDS = {"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 0}
BART = {
    **{**IDS, "d_model": WIDTH, "decoder_start_token_id": 0},
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 80),
}
GEMMA = {
    **{**IDS, "bos_token_id": 1, "hidden_size": WIDTH, "intermediate_size": 80, "head_dim": 12},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2},
}
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "BlenderbotForConditionalGeneration": transformers.BlenderbotConfig(
        **BART, scale_embedding=True
    ),
    "MarianMTModel": transformers.MarianConfig(**BART, scale_embedding=True, decoder_vocab_size=50),
    "PegasusForConditionalGeneration": transformers.PegasusConfig(**BART, scale_embedding=True),
    "T5GemmaForConditionalGeneration": transformers.T5GemmaConfig(
        encoder=GEMMA, decoder=GEMMA, decoder_start_token_id=1
    ),
    "RecurrentGemmaForCausalLM": transformers.RecurrentGemmaConfig(
        **{**IDS, "bos_token_id": 1, "hidden_size": WIDTH, "lru_width": WIDTH},
        **{"num_attention_heads": 4, "num_key_value_heads": 1, "num_hidden_layers": 3},
        intermediate_size=80,
    ),
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
            _, cache = boot(name, folder).run_with_cache(TOKENS)
        embed = next(n for n in ("embed.hook_out", "encoder_embed.hook_out") if n in cache)
        stream = cache[
            next(n for n in ("encoder_blocks.0.hook_in", "blocks.0.hook_in") if n in cache)
        ]
        added = [n for n in ("pos_embed.hook_out",) if n in cache]
        position = sum((cache[n] for n in added), torch.zeros(()))
        off = [
            float((cache[embed] * factor + position - stream).abs().max() / stream.abs().max())
            for factor in (1.0, WIDTH**0.5)
        ]
        print(
            f"{name}: {embed} (+ positions) is off the stream by {off[0]:.1e}, "
            f"by {off[1]:.1e} once multiplied"
        )
        shown.append(off[0] > 0.01 > off[1])
    return 0 if shown == [False, True, True, True, True] else 1


if __name__ == "__main__":
    raise SystemExit(main())
