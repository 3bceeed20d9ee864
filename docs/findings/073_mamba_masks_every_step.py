"""TransformerBridge: generate() with an attention mask breaks Mamba after the first token.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import Any

import tokenizers
import torch
import transformers

TOKENS = torch.arange(3, 11)[None]
SIZES = {"vocab_size": 50, "hidden_size": 48, "state_size": 8, "num_hidden_layers": 2}
IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "mamba": transformers.MambaConfig(**SIZES, **IDS),
    "falcon_mamba": transformers.FalconMambaConfig(**SIZES, **IDS),
}


def boot(model: str, folder: str) -> tuple[Any, Any]:
    """A seeded random model, none of whose parameters is neutral: HuggingFace's and the bridge."""
    from transformer_lens.model_bridge import TransformerBridge

    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(CONFIGS[model]).eval()
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
    return made, TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)


def shows(name: str, reference: Any, bridge: Any) -> bool:
    """Whether padding on the left changes the bridge's logits, and not HuggingFace's."""
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), TOKENS], dim=1)
    mask = (torch.arange(padded.shape[1]) >= 3).long()[None]
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    bridged: dict[str, Any] = {"stop_at_eos": False, "output_logits": True, "verbose": False}
    alone = bridge.generate(TOKENS, return_type="tokens", **options, **bridged).logits
    batch = bridge.generate(
        padded, attention_mask=mask, return_type="tokens", **options, **bridged
    ).logits
    own: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
    theirs = [
        reference.generate(t, attention_mask=m, eos_token_id=None, **options, **own).logits
        for t, m in ((TOKENS, torch.ones_like(TOKENS)), (padded, mask))
    ]
    off = [apart(*pair) for pair in zip(alone, batch, strict=True)]
    right = max(apart(*pair) for pair in zip(*theirs, strict=True))
    steps = "  ".join(f"{x:.1e}" for x in off)
    print(f"{name + ':':14}padded against alone, by step: {steps}   HuggingFace: {right:.1e}")
    return off[0] < 1e-4 and min(off[1:]) > 1e-2 and right < 1e-4


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference, relative."""
    return float((first - second).abs().max() / first.abs().max())


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    shown = []
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            shown.append(shows(name, *boot(name, folder)))
    return 0 if all(shown) else 1


if __name__ == "__main__":
    raise SystemExit(main())
