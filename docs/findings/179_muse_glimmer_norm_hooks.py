"""TransformerBridge: Muse Glimmer's norms have no hook_scale, and attributions to logits raise.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import subprocess
import tempfile
from importlib.metadata import version
from typing import Any

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

TOKENS = torch.arange(3, 11)[None]
NAME = "MuseGlimmerForConditionalGeneration"
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONFIG: dict[str, Any] = {
    "text_config": {
        **{"vocab_size": 50, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2},
        **{"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, **IDS},
    },
    "vision_config": {
        **{"hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 1},
        **{"num_attention_heads": 4, "pos_emb_height": 4, "pos_emb_width": 4},
    },
    **{"image_token_id": 49, "video_token_id": 48},
    **{"out_hidden_size": 128, "projector_hidden_size": 40},
}


def refused(*args: Any, **kwargs: Any) -> int:
    """No package is installed for this script: docs/findings/121-boot-installs-torchvision.md."""
    raise RuntimeError("nothing is installed here")


def boot(folder: str) -> Any:
    torch.manual_seed(0)
    config = transformers.MuseGlimmerConfig(**CONFIG)
    config.architectures = [NAME]
    getattr(transformers, NAME)(config).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    subprocess.check_call = refused
    return TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        try:
            bridge = boot(folder)
        except ValueError as error:
            print(f"no such adapter: {str(error).split('.')[0]}")
            return 2
        norms = ("ln_final", "blocks.0.ln1", "blocks.0.ln2")
        there = [f"{norm}.hook_scale" in bridge.hook_dict for norm in norms]
        print("hook_scale of", dict(zip(norms, there, strict=True)))
        cache = bridge.run_with_cache(TOKENS)[1]
        parts = cache.decompose_resid()
        raised = ""
        try:
            cache.logit_attrs(parts, tokens=5, incorrect_tokens=6)
        except (IndexError, KeyError) as error:
            raised = f"{type(error).__name__}: {error}"
    print("logit_attrs:", raised or "no error")
    return 0 if raised and not any(there) else 1


if __name__ == "__main__":
    raise SystemExit(main())
