"""In bfloat16, weight processing leaves a bias in float32, and the forward pass raises.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

CONFIG = transformers.GPTJConfig(
    n_embd=24, n_layer=1, n_head=3, rotary_dim=4, n_positions=32, vocab_size=13
)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) >= 4:
        print("mended in 4.0 or later")
        return 2
    torch.manual_seed(0)
    raised = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = transformers.GPTJForCausalLM(CONFIG)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            bridge = TransformerBridge.boot_transformers(folder, dtype=dtype, device="cpu")
            bridge.enable_compatibility_mode(disable_warnings=True)
            wide = [n for n, p in bridge.named_parameters() if p.dtype != dtype]
            print(dtype, "parameters of another dtype:", len(wide), *sorted(wide)[:1])
            try:
                bridge(torch.arange(10)[None])
                print("   the forward pass works")
            except RuntimeError as error:
                raised[dtype] = str(error)
                print("   RuntimeError:", error)
    return 0 if torch.bfloat16 in raised and torch.float32 not in raised else 1


if __name__ == "__main__":
    raise SystemExit(main())
