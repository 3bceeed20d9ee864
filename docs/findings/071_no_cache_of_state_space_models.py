"""TransformerBridge: 'logits_and_cache' returns None for the cache of Mamba models.

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
    "mamba2": transformers.Mamba2Config(
        **SIZES, **IDS, num_heads=8, head_dim=12, n_groups=2, chunk_size=8
    ),
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
    """Whether no cache comes back where HuggingFace's forward pass returns one."""
    theirs = reference(TOKENS[:, :-1], use_cache=True).cache_params
    whole = bridge(TOKENS, return_type="logits")[:, -1]
    options: dict[str, Any] = {"return_type": "logits_and_cache", "use_past_kv_cache": True}
    _, cache = bridge(TOKENS[:, :-1], **options)
    last, _ = bridge(TOKENS[:, -1:], past_key_values=cache, **options)
    off = float((last[:, -1] - whole).abs().max() / whole.abs().max())
    print(
        f"{name + ':':14}HuggingFace returns a {type(theirs).__name__}, the bridge {cache}; "
        f"the last token's logits after it are off by {off:.1e}"
    )
    return cache is None and theirs is not None and off > 1e-2


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
