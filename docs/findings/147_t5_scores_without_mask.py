"""TransformerBridge: hook_attn_scores of T5 shows scores that no mask was added to.

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
    **{"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0},
    **{"d_model": 48, "d_kv": 12, "d_ff": 80, "num_heads": 4},
    **{"num_layers": 2, "num_decoder_layers": 2},
}
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "T5ForConditionalGeneration": transformers.T5Config(**SIZES),
    "MT5ForConditionalGeneration": transformers.MT5Config(**SIZES),
    "LongT5ForConditionalGeneration": transformers.LongT5Config(**SIZES, local_radius=3),
}
ATTENTION = "decoder_blocks.0.self_attn"


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
    if int(version("transformer-lens").split(".")[0]) < 4:
        print("applies to TransformerLens 4: 3.9 does not show T5's scores at all")
        return 2
    shown = []
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            _, cache = boot(name, folder).run_with_cache(TOKENS)
        scores, pattern = (
            cache[f"{ATTENTION}.{hook}"] for hook in ("hook_attn_scores", "hook_pattern")
        )
        later = torch.ones(8, 8).triu(1).bool()
        largest = float(scores[..., later].max())
        apart = float((scores.softmax(-1) - pattern).abs().max())
        masked = scores.masked_fill(later, -torch.inf).softmax(-1)
        near = float((masked - pattern).abs().max())
        print(f"{name}: the largest score of a later token is {largest:.2f}")
        print(f"  softmax(scores) is off the pattern by {apart:.2f}, by {near:.0e} once masked")
        shown.append(largest > -1e3 and apart > 0.1 and near < 1e-5)
    return 0 if all(shown) else 1


if __name__ == "__main__":
    raise SystemExit(main())
