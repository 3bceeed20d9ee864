"""The bridge's hook_resid_mid: a returned edit reaches the MLP, not the residual stream.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
import warnings
from functools import partial
from importlib.metadata import version

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

TOKENS = torch.arange(3, 19)[None]
SMALL = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
MODELS = {
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": LLAMA,
    "olmo2": LLAMA,
}
MID, OUT, POST = (f"blocks.1.hook_{name}" for name in ("resid_mid", "mlp_out", "resid_post"))


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


#: What resid_mid is set to, at every position.
VALUE = torch.linspace(-1.0, 1.0, 48)


def returned(tensor: torch.Tensor, hook: object) -> torch.Tensor:
    return VALUE.expand_as(tensor).clone()


def in_place(tensor: torch.Tensor, hook: object) -> torch.Tensor:
    return tensor.copy_(VALUE)


def error(bridge: TransformerBridge, edit: object) -> float:
    """How far resid_post is from VALUE + mlp_out when resid_mid is set to VALUE."""
    seen: dict[str, torch.Tensor] = {}

    def keep(tensor: torch.Tensor, hook: object, name: str) -> None:
        seen[name] = tensor.clone()

    hooks = [(MID, edit)]
    hooks += [(name, partial(keep, name=name)) for name in (OUT, POST)]
    bridge.run_with_hooks(TOKENS, fwd_hooks=hooks)
    return float((seen[POST] - seen[OUT] - VALUE).abs().max() / seen[POST].abs().max())


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    shows = True
    for model_type, sizes in MODELS.items():
        config = transformers.AutoConfig.for_model(model_type, **SMALL, **sizes)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(folder, config)
            bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        with torch.no_grad():
            lost, kept = error(bridge, returned), error(bridge, in_place)
        print(
            f"{model_type:6s} resid_post is off (edited resid_mid + mlp_out) by "
            f"{lost:.1e} (edit returned)  {kept:.1e} (edit in place)"
        )
        shows &= lost > 1e-2 and kept < 1e-5
    return 0 if shows else 1


if __name__ == "__main__":
    raise SystemExit(main())
