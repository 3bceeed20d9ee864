"""TransformerBridge: generate(output_logits=True) of two stacks gives processed scores.

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
CONFIG = transformers.BartConfig(
    **{"vocab_size": 50, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
    **{"d_model": 48, "forced_eos_token_id": 2, "architectures": ["BartForConditionalGeneration"]},
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 80),
)


def boot(folder: str) -> Any:
    torch.manual_seed(0)
    transformers.BartForConditionalGeneration(CONFIG).save_pretrained(folder)
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
        own = transformers.BartForConditionalGeneration.from_pretrained(folder).eval()
    for model in (own, bridge.original_model):
        model.generation_config.no_repeat_ngram_size = 1
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True}
    found = bridge.generate(TOKENS, **options, eos_token_id=2, return_type="tokens", verbose=False)
    truth = own.generate(TOKENS, **options, num_beams=1, return_dict_in_generate=True)
    shown = {}
    for name, made in (("transformers", truth), ("the bridge", found)):
        shown[name] = [int(step.isinf().sum()) for step in made.logits]
        print(f"{name}: tokens {made.sequences.tolist()[0]}, infinite logits by step {shown[name]}")
    return 0 if not any(shown["transformers"]) and all(shown["the bridge"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
