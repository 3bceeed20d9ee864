"""TransformerBridge: compatibility mode leaves the blocks of two stacks as they are.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
import warnings
from importlib.metadata import version
from typing import Any

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

FLAGS = ("fold_value_biases", "refactor_factored_attn_matrices")
TOKENS = torch.arange(3, 11)[None]
CONFIG = transformers.BartConfig(
    **{"vocab_size": 50, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
    **{"d_model": 48, "forced_eos_token_id": 2, "architectures": ["BartForConditionalGeneration"]},
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 80),
)


def untrained() -> Any:
    model = transformers.BartForConditionalGeneration(CONFIG)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def boot(folder: str) -> Any:
    torch.manual_seed(0)
    untrained().save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    return TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)


def values(bridge: Any) -> torch.Tensor:
    """What hook_v shows in every attention, of the encoder and of the decoder."""
    names = [
        *(f"encoder_blocks.{i}.attn.hook_v" for i in range(2)),
        *(
            f"decoder_blocks.{i}.{part}.hook_v"
            for i in range(2)
            for part in ("self_attn", "cross_attn")
        ),
    ]
    _, cache = bridge.run_with_cache(TOKENS)
    return torch.stack([cache[name] for name in names])


def processed(folder: str, flag: str) -> bool:
    """Whether compatibility mode with this flag alone changed anything of attention."""
    bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    off = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    before = {n: p.clone() for n, p in bridge.original_model.named_parameters()}
    shown = values(bridge)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        bridge.enable_compatibility_mode(**{**dict.fromkeys(off, False), flag: True})
    told = [str(w.message) for w in said if flag in str(w.message)]
    after = dict(bridge.original_model.named_parameters())
    names = [n for n in before if "attn" in n and not torch.equal(before[n], after[n])]
    moved = float((values(bridge) - shown).abs().max())
    print(
        f"{flag}: {len(names)} parameters of attention changed, "
        f"hook_v moved by {moved:.1e}, {len(told)} warnings of it"
    )
    return bool(names) or moved > 0 or bool(told)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bridge = boot(folder)
        biases = [p for n, p in bridge.original_model.named_parameters() if "v_proj" in n]
        print(f"{sum(bool((b != 0).any()) for b in biases if b.ndim == 1)} value biases are not 0")
        found = [processed(folder, flag) for flag in FLAGS]
    return 1 if any(found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
