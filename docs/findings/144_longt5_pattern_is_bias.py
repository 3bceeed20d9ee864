"""TransformerBridge 3.9: hook_pattern of LongT5's decoder shows the position bias.

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
NAME = "LongT5ForConditionalGeneration"
CONFIG = transformers.LongT5Config(
    **{"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0},
    **{"d_model": 48, "d_kv": 12, "d_ff": 80, "num_heads": 4, "local_radius": 3},
    **{"num_layers": 2, "num_decoder_layers": 2},
)


def boot(folder: str) -> Any:
    torch.manual_seed(0)
    CONFIG.architectures = [NAME]
    getattr(transformers, NAME)(CONFIG).save_pretrained(folder)
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
        print("applies to TransformerLens 3: in 4 the hook shows the pattern")
        return 2
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        _, cache = boot(folder).run_with_cache(TOKENS)
    pattern = cache["decoder_blocks.0.self_attn.hook_pattern"]
    sums = pattern.sum(-1)
    print(f"a batch of {len(TOKENS)}: hook_pattern has shape {tuple(pattern.shape)}")
    print(f"its rows sum to {float(sums.min()):.2e} at least, {float(sums.max()):.2e} at most")
    return 0 if pattern.shape[0] == 1 and float((sums - 1).abs().max()) > 0.1 else 1


if __name__ == "__main__":
    raise SystemExit(main())
