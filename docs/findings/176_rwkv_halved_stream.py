"""TransformerBridge: RWKV halves its stream between blocks; what the lens decodes is not halved.

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
NAME = "RwkvForCausalLM"


def boot(folder: str, rescale_every: int) -> Any:
    """A small model whose stream is of the size of its embedding, as early layers' are."""
    config = transformers.RwkvConfig(
        **{"vocab_size": 50, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4},
        **{"bos_token_id": 0, "eos_token_id": 0, "rescale_every": rescale_every},
    )
    config.architectures = [NAME]
    torch.manual_seed(0)
    model = getattr(transformers, NAME)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    return TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float64)


def measured(rescale_every: int) -> tuple[float, float, float]:
    """What the stream is multiplied by after block 1, after block 3, and how far the last stream
    of the lens is from the logits."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bridge = boot(folder, rescale_every)
        logits, cache = bridge.run_with_cache(TOKENS)
        between = cache["blocks.2.hook_resid_pre"] / cache["blocks.1.hook_resid_post"]
        last = cache["ln_final.hook_in"] / cache["blocks.3.hook_resid_post"]
        lens = bridge.unembed(cache.accumulated_resid(apply_ln=True)[-1])
        off = (lens - logits).abs().max() / logits.abs().max()
        return float(between.mean()), float(last.mean()), float(off)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    shown = {}
    for every in (2, 0):
        between, last, shown[every] = measured(every)
        print(
            f"rescale_every {every}: the stream is multiplied by {between:.1f} after block 1, "
            f"by {last:.1f} after block 3; the lens of the last stream is off by {shown[every]:.1e}"
        )
    return 0 if shown[2] > 1e-7 and shown[0] < 1e-7 else 1


if __name__ == "__main__":
    raise SystemExit(main())
