"""TransformerBridge: what a cache can do asks for layers that two stacks do not have.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import tokenizers
import torch
import transformers
from transformer_lens.head_detector import detect_head
from transformer_lens.model_bridge import TransformerBridge

if TYPE_CHECKING:
    from collections.abc import Callable

TOKENS = torch.arange(3, 11)[None]
NAME = "BartForConditionalGeneration"
CONFIG = transformers.BartConfig(
    **{"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 0, "d_model": 48},
    **{"decoder_start_token_id": 0},
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 80),
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
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bridge = boot(folder)
        cache = bridge.run_with_cache(TOKENS)[1]
        rows = bridge.run_with_cache(TOKENS, remove_batch_dim=True)[1]
    object.__setattr__(bridge, "to_tokens", lambda *_, **__: TOKENS)
    calls: dict[str, Callable[[], Any]] = {
        "cache.accumulated_resid()": cache.accumulated_resid,
        "cache.decompose_resid()": cache.decompose_resid,
        "cache.stack_activation('resid_post')": lambda: cache.stack_activation("resid_post"),
        "cache.stack_head_results()": cache.stack_head_results,
        "cache.get_neuron_results(0)": lambda: cache.get_neuron_results(0),
        "cache['pattern', 0]": lambda: cache["pattern", 0],
        "detect_head(...)": lambda: detect_head(bridge, "text", "previous_token_head", cache=rows),
    }
    shown = []
    for what, call in calls.items():
        try:
            call()
            said = "does not raise"
        except KeyError as error:
            said = f"KeyError: {error}"
        print(f"{what}: {said}")
        shown.append("KeyError: 'blocks.0." in said)
    return 0 if all(shown) else 1


if __name__ == "__main__":
    raise SystemExit(main())
