"""TransformerBridge: generate(output_logits=True) of Mamba models without a cache returns tokens.

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
    """Whether logits are returned with a cache, and without one are not."""
    made = {
        cached: bridge.generate(
            TOKENS,
            max_new_tokens=4,
            do_sample=False,
            stop_at_eos=False,
            use_past_kv_cache=cached,
            return_type="tokens",
            output_logits=True,
            verbose=False,
        )
        for cached in (True, False)
    }
    with_cache, without = (type(made[cached]).__name__ for cached in (True, False))
    print(f"{name + ':':14}with a cache {with_cache}, without {without}")
    return hasattr(made[True], "logits") and not hasattr(made[False], "logits")


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
