"""TransformerBridge 3.9: LongT5's decoder keeps nothing in the cache that it is given.

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

TOKENS = torch.arange(3, 19)[None]
DECODED = torch.tensor([[0, 7, 21, 13, 40, 5]])
CONFIG = transformers.LongT5Config(
    **{"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0},
    **{"d_model": 48, "d_kv": 12, "d_ff": 80, "num_heads": 4, "local_radius": 3},
    **{
        "num_layers": 2,
        "num_decoder_layers": 2,
        "architectures": ["LongT5ForConditionalGeneration"],
    },
)


def boot(folder: str) -> Any:
    torch.manual_seed(0)
    transformers.LongT5ForConditionalGeneration(CONFIG).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    return TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)


def stepwise(model: Any, **options: Any) -> tuple[torch.Tensor, int]:
    """Logits of tokens that are decoded one by one, and how many the cache holds at the end."""
    logits, cache = [], None
    for token in DECODED.split(1, dim=1):
        given = {"decoder_input_ids": token, "past_key_values": cache, "use_cache": True}
        found = model(TOKENS, **given, **options)
        logits.append(found[0] if options else found.logits)
        cache = found[1] if options else found.past_key_values
    return torch.cat(logits, dim=1), int(cache.get_seq_length())


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) >= 4:
        print("applies to TransformerLens 3: in 4 the cache is kept")
        return 2
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bridge = boot(folder)
        own = transformers.LongT5ForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        truth = own(TOKENS, decoder_input_ids=DECODED).logits
        ways = {
            "transformers": stepwise(own),
            "the bridge": stepwise(bridge, return_type="logits_and_cache"),
        }
    off = []
    for name, (logits, held) in ways.items():
        off.append(float((logits - truth).abs().max() / truth.abs().max()))
        print(
            f"{name}: {held} tokens in the cache after {DECODED.shape[1]}; "
            f"logits are off by {off[-1]:.1e}"
        )
    return 0 if off[0] < 1e-5 and off[1] > 1e-2 and ways["the bridge"][1] == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
