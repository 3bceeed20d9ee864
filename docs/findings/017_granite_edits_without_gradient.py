"""Granite's hook_attn_out and hook_mlp_out: an edit that changes no value has no gradient.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
import warnings
from importlib.metadata import version

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

TOKENS = torch.arange(3, 19)[None]
SMALL = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
MODELS = {
    "granite": {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "residual_multiplier": 0.22,
    },
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64},
}


def save(folder: str, config: transformers.PretrainedConfig) -> None:
    """A seeded random model, none of whose parameters is neutral, and a tokenizer of one word."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(0.25 * noise)
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>"
    ).save_pretrained(folder)


def gradient(bridge: TransformerBridge, hook_name: str, start: float) -> float:
    """The size of the gradient of a steering vector whose entries are all ``start``."""
    vector = torch.full((48,), start, requires_grad=True)

    def steer(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        return tensor + vector

    logits = bridge.run_with_hooks(TOKENS, fwd_hooks=[(hook_name, steer)])
    (found,) = torch.autograd.grad(logits.square().sum(), vector, allow_unused=True)
    return 0.0 if found is None else float(found.abs().max())


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if tuple(map(int, version("transformer-lens").split(".")[:2])) >= (4, 3):
        print("applies to TransformerLens before 4.3, which keeps the gradient")
        return 2
    shows = True
    for model_type, sizes in MODELS.items():
        config = transformers.AutoConfig.for_model(model_type, **SMALL, **sizes)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(folder, config)
            bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        for site in ("hook_attn_out", "hook_mlp_out"):
            zero, one = (gradient(bridge, f"blocks.0.{site}", start) for start in (0.0, 1e-3))
            print(
                f"{model_type:8s} gradient of a vector added at {site}: "
                f"{zero:.1e} (from zero)  {one:.1e} (from 0.001)"
            )
            shows &= one > 1e-2 and (zero == 0.0) == (model_type == "granite")
    return 0 if shows else 1


if __name__ == "__main__":
    raise SystemExit(main())
