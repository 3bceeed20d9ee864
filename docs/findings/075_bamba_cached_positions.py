"""Bamba: decoding after a cache without position_ids restarts positions at 0.

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
SIZES = {"vocab_size": 50, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}
IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "bamba": transformers.BambaConfig(
        **SIZES,
        **HEADS,
        **IDS,
        attn_layer_indices=[1, 3],
        mamba_n_heads=8,
        mamba_d_head=12,
        mamba_n_groups=2,
        mamba_d_state=8,
        mamba_chunk_size=8,
    ),
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
    """Whether the cache changes logits: HuggingFace's, without and with positions; the bridge's."""
    whole = reference(TOKENS, use_cache=False).logits[:, -1]
    last = torch.tensor([[TOKENS.shape[1] - 1]])
    found = []
    for options in ({}, {"position_ids": last}):
        cache = reference(TOKENS[:, :-1], use_cache=True).past_key_values
        after = reference(TOKENS[:, -1:], past_key_values=cache, use_cache=True, **options)
        found.append(apart(whole, after.logits[:, -1]))
    made = bridge.generate(
        TOKENS,
        max_new_tokens=4,
        do_sample=False,
        stop_at_eos=False,
        return_type="tokens",
        output_logits=True,
        verbose=False,
    )
    full = reference(made.sequences, use_cache=False).logits[:, TOKENS.shape[1] - 1 : -1]
    steps = [apart(full[:, i], logits) for i, logits in enumerate(made.logits)]
    print(
        f"HuggingFace, one token after a cache: off by {found[0]:.1e}; with position_ids "
        f"{found[1]:.1e}\nbridge.generate(), off from a full forward pass by step: "
        + "  ".join(f"{x:.1e}" for x in steps)
    )
    return found[0] > 1e-2 and found[1] < 1e-4 and steps[0] < 1e-4 and min(steps[1:]) > 1e-2


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
