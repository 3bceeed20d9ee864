"""TransformerBridge 3.9: Gemma 3 sees another image, for its vision norms multiply by 1 + weight.

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

IMAGE = 49
TOKENS = torch.tensor([[3, 4, IMAGE, IMAGE, IMAGE, IMAGE, 5, 6]])


def refuse(args: Any, *_: Any, **__: Any) -> int:
    """No package is installed for this script: docs/findings/121-boot-installs-torchvision.md."""
    raise subprocess.CalledProcessError(1, args)


def boot(folder: str) -> tuple[Any, Any]:
    """A seeded random model, none of whose parameters is neutral: HuggingFace's and the bridge."""
    torch.manual_seed(0)
    config = transformers.Gemma3Config(
        text_config={
            **{"vocab_size": 50, "hidden_size": 48, "intermediate_size": 80, "head_dim": 12},
            **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4},
        },
        vision_config={
            **{"hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "image_size": 28, "patch_size": 7},
            "vision_use_head": False,
        },
        mm_tokens_per_image=4,
        **{"image_token_index": IMAGE, "boi_token_index": 47, "eoi_token_index": 48},
    )
    config.architectures = ["Gemma3ForConditionalGeneration"]
    made = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(0.25 * noise)
    made.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    kept, subprocess.check_call = subprocess.check_call, refuse
    try:
        bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    finally:
        subprocess.check_call = kept
    return made, bridge


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference, relative."""
    return float((first - second).abs().max() / second.abs().max())


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) >= 4:
        print("applies to TransformerLens 3.9; 4.3 is right")
        return 2
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        reference, bridge = boot(folder)
        image = torch.randn(1, 3, 28, 28)
        text = apart(bridge(TOKENS[:, :2]), reference(TOKENS[:, :2]).logits)
        seen = apart(
            bridge(TOKENS, pixel_values=image), reference(TOKENS, pixel_values=image).logits
        )
    print(f"logits are off by {text:.1e} on text, by {seen:.1e} with an image")
    return 0 if text < 1e-4 < 1e-2 < seen else 1


if __name__ == "__main__":
    raise SystemExit(main())
