"""TransformerBridge: hook_mlp_in of RecurrentGemma exists and never fires.

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
NAME = "RecurrentGemmaForCausalLM"
CONFIG = transformers.RecurrentGemmaConfig(
    **{"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 1},
    **{"hidden_size": 48, "lru_width": 48, "intermediate_size": 80, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 1},
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
    fired: dict[str, int] = dict.fromkeys(("blocks.0.hook_in", "blocks.0.hook_mlp_in"), 0)

    def count(value: torch.Tensor, hook: Any) -> None:
        fired[hook.name] += 1

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bridge = boot(folder)
        known = all(name in bridge.hook_dict for name in fired)
        bridge.set_use_hook_mlp_in(True)
        bridge.run_with_hooks(TOKENS, fwd_hooks=[(name, count) for name in fired])
    for name, times in fired.items():
        print(f"{name} fires {times} times")
    return 0 if known and list(fired.values()) == [1, 0] else 1


if __name__ == "__main__":
    raise SystemExit(main())
