"""The weights of a ViT's bridge cannot be read by their names, and cannot be processed.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = transformers.ViTConfig(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    image_size=16,
    patch_size=4,
    num_labels=7,
)


def outcome(call: Callable[[], object]) -> str:
    """What a call raises, or that it returned."""
    try:
        call()
    except (AttributeError, KeyError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).strip(chr(34)).split('. Available')[0]}"
    return "returned"


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 16, 16)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        transformers.ViTForImageClassification(CONFIG).save_pretrained(folder)
        reference = transformers.ViTForImageClassification.from_pretrained(folder).eval()
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        off = (bridge(pixels) - reference(pixel_values=pixels).logits).abs().max()
        print(f"logits are {off:.0e} from HuggingFace's")
        print("the adapter says supports_fold_ln =", bridge.adapter.supports_fold_ln)
        print("cfg.d_vocab =", bridge.cfg.d_vocab)
        said = {
            "tl_parameters()": outcome(bridge.tl_parameters),
            "W_U": outcome(lambda: bridge.W_U),
            "enable_compatibility_mode()": outcome(
                lambda: bridge.enable_compatibility_mode(disable_warnings=True)
            ),
        }
    for name, text in said.items():
        print(f"{name}: {text}")
    return 0 if off < 1e-4 and "returned" not in said.values() else 1


if __name__ == "__main__":
    raise SystemExit(main())
