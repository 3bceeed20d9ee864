"""TransformerBridge: hooks of Falcon H1 show tensors before their multipliers.

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
    "falcon_h1": transformers.FalconH1Config(
        **SIZES,
        **HEADS,
        **IDS,
        mamba_d_ssm=96,
        mamba_n_heads=8,
        mamba_d_head=12,
        mamba_n_groups=2,
        mamba_d_state=8,
        mamba_chunk_size=8,
        embedding_multiplier=5.5,
        attention_out_multiplier=0.9375,
        ssm_out_multiplier=0.25,
        mlp_multipliers=[0.875, 0.5625],
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
    """Whether what the hooks show does not add up to the residual stream, unless multiplied."""
    config = reference.config
    _, cache = bridge.run_with_cache(TOKENS)
    pre, mid = cache["blocks.0.hook_resid_pre"], cache["blocks.0.hook_resid_mid"]
    attn, mixer = cache["blocks.0.hook_attn_out"], cache["blocks.0.mamba.hook_out"]
    scaled = attn * config.attention_out_multiplier + mixer * config.ssm_out_multiplier
    embed = cache["hook_embed"]
    parts, labels = cache.decompose_resid(return_labels=True)
    neurons = cache.get_neuron_results(3).sum(-2)
    off = {
        "hook_embed": apart(pre, embed),
        "hook_embed, multiplied": apart(pre, embed * config.embedding_multiplier),
        "resid_pre + hook_attn_out + mixer": apart(mid, pre + attn + mixer),
        "resid_pre + both, multiplied": apart(mid, pre + scaled),
        "decompose_resid, summed": apart(cache["blocks.3.hook_resid_post"], parts.sum(0)),
        "neuron results, summed": apart(cache["blocks.3.hook_mlp_out"], neurons),
    }
    for what, x in off.items():
        print(f"{what + ':':36}off by {x:.1e}")
    print("decompose_resid:", " ".join(labels[:3]), "...")
    return all((x < 1e-4) == ("multiplied" in what) for what, x in off.items())


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference, relative to the first."""
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
