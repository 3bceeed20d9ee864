"""TransformerBridge: tl_parameters() gives zeros for an MLP that it does not find.

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
    "nemotron_h": transformers.NemotronHConfig(
        **{**SIZES, "num_hidden_layers": None},
        **HEADS,
        **IDS,
        head_dim=10,
        mamba_num_heads=8,
        mamba_head_dim=12,
        n_groups=2,
        ssm_state_size=8,
        chunk_size=8,
        layers_block_type=["linear_attention", "mlp", "full_attention", "mlp"],
    ),
    "granitemoehybrid": transformers.GraniteMoeHybridConfig(
        **SIZES,
        **HEADS,
        **IDS,
        shared_intermediate_size=36,
        num_local_experts=0,
        num_experts_per_tok=0,
        position_embedding_type="nope",
        layer_types=["linear_attention", "full_attention"] * 2,
        mamba_n_heads=8,
        mamba_d_head=12,
        mamba_n_groups=2,
        mamba_d_state=8,
        mamba_chunk_size=8,
    ),
    "rwkv": transformers.RwkvConfig(**{**SIZES, "bos_token_id": 0, "eos_token_id": 0}),
}
#: A projection that the forward pass uses, by HuggingFace's name.
INSIDE = {
    "nemotron_h": "model.layers.1.mixer.up_proj",
    "granitemoehybrid": "model.layers.1.shared_mlp.input_linear",
    "rwkv": "rwkv.blocks.1.feed_forward.key",
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
    """Whether W_in of a block with an MLP is all zero, and the model's own weight is not."""
    shown = bridge.tl_parameters()["blocks.1.mlp.W_in"]
    own = reference.get_parameter(f"{INSIDE[name]}.weight")
    print(
        f"{name + ':':18}{INSIDE[name]} {tuple(own.shape)}, "
        f"up to {float(own.detach().abs().max()):.1f}; "
        f"W_in {tuple(shown.shape)}, up to {float(shown.abs().max()):.1f}"
    )
    return not bool(shown.any()) and bool(own.any())


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
