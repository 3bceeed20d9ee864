"""TransformerBridge 3.9: generate does not follow forced_eos_token_id.

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
    **{"vocab_size": 50, "pad_token_id": 1, "eos_token_id": 4, "decoder_start_token_id": 2},
    **{"d_model": 48, "forced_eos_token_id": 4, "architectures": ["BartForConditionalGeneration"]},
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
    if int(version("transformer-lens").split(".")[0]) >= 4:
        print("applies to TransformerLens 3: 4 forces the last token")
        return 2
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bridge = boot(folder)
        own = transformers.BartForConditionalGeneration.from_pretrained(folder).eval()
    options = {"max_new_tokens": 6, "do_sample": False}
    found = bridge.generate(TOKENS, **options, eos_token_id=4, return_type="tokens", verbose=False)
    truth = own.generate(TOKENS, **options, num_beams=1)
    print("generation config:", "forced_eos_token_id", own.generation_config.forced_eos_token_id)
    print("transformers", truth.tolist()[0])
    print("the bridge  ", found.tolist()[0])
    same = torch.equal(found[:, :-1], truth[:, :-1])
    return 0 if same and truth[0, -1] == 4 != found[0, -1] else 1


if __name__ == "__main__":
    raise SystemExit(main())
