"""TransformerBridge installs torchvision when it loads a model that sees or hears.

pip is not run: the call is recorded, and refused.
Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from importlib.metadata import version
from typing import Any

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

TEXT = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 12,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}


def save(folder: str) -> None:
    """A tiny random LLaVA, without the files of a processor, and a tokenizer of one word."""
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "clip_vision_model", **VISION},
        image_token_index=49,
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>"
    ).save_pretrained(folder)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if importlib.util.find_spec("torchvision") is not None:
        print("torchvision is installed here: nothing to install")
        return 2
    wanted: list[str] = []

    def refuse(args: Any, *_: Any, **__: Any) -> int:
        wanted.append(" ".join(map(str, args[1:] if "pip" in args[1:] else args)))
        raise subprocess.CalledProcessError(1, args)

    kept, subprocess.check_call = subprocess.check_call, refuse  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            save(folder)
            TransformerBridge.boot_transformers(folder, device="cpu")
    finally:
        subprocess.check_call = kept
    print("boot_transformers ran:", "; ".join(wanted) or "nothing")
    return 0 if any("install" in command for command in wanted) else 1


if __name__ == "__main__":
    raise SystemExit(main())
