"""TransformerBridge: the sweeps of activation patching raise for an encoder and a decoder.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import tokenizers
import torch
import transformers
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge

if TYPE_CHECKING:
    from collections.abc import Callable

CLEAN, CORRUPTED = torch.arange(3, 11)[None], torch.arange(13, 21)[None]
SIZES = {
    **{"vocab_size": 50, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    **{"d_model": 48, "max_position_embeddings": 40, "decoder_start_token_id": 2},
    **{"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 80},
    **{"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 80},
}
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "BartForConditionalGeneration": transformers.BartConfig(**SIZES),
    "PegasusForConditionalGeneration": transformers.PegasusConfig(**SIZES),
}
SWEEPS = ("get_act_patch_resid_pre", "get_act_patch_attn_head_out_all_pos")
#: Direct paths came with 4.
DIRECT = "get_act_patch_direct_path"


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


def metric(logits: torch.Tensor) -> torch.Tensor:
    return logits[0, -1, 0]


def what_comes(sweep: Callable[..., Any], *given: Any) -> str:
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            return f"shape {tuple(sweep(*given).shape)}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    shown = []
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            bridge = boot(name, folder)
            caches = [bridge.run_with_cache(tokens)[1] for tokens in (CLEAN, CORRUPTED)]
            kept = "encoder_blocks.0.hook_resid_pre" in caches[0]
            print(f"{name}: the cache has encoder_blocks.0.hook_resid_pre: {kept}")
            for sweep in SWEEPS:
                said = what_comes(getattr(patching, sweep), bridge, CORRUPTED, caches[0], metric)
                print(f"  {sweep}: {said}")
                shown.append(kept and said.startswith("KeyError"))
            if hasattr(patching, DIRECT):
                direct = getattr(patching, DIRECT)
                said = what_comes(direct, bridge, CORRUPTED, *caches, metric, 0, 0)
                print(f"  {DIRECT}: {said}")
                shown.append(said.startswith("AttributeError"))
    return 0 if all(shown) else 1


if __name__ == "__main__":
    raise SystemExit(main())
