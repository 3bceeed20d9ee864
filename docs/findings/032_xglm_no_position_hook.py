"""The bridge of XGLM shows no position embeddings: what adds up to the stream lacks them.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import Any

import tokenizers
import torch
import transformers

TOKENS = torch.arange(3, 19)[None]


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


def boot(config: transformers.PretrainedConfig) -> Any:
    """A bridge of such a model."""
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        save(folder, config)
        return TransformerBridge.boot_transformers(folder, device="cpu")


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    common: dict[str, Any] = {
        "vocab_size": 50,
        "max_position_embeddings": 64,
        "ffn_dim": 128,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    models = {
        "opt": transformers.OPTConfig(
            **common,
            hidden_size=32,
            word_embed_proj_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
        ),
        "xglm": transformers.XGLMConfig(**common, d_model=32, num_layers=2, attention_heads=4),
    }
    off: dict[str, float] = {}
    for name, config in models.items():
        bridge = boot(config)
        with torch.no_grad():
            _, cache = bridge.run_with_cache(TOKENS)
            stack, labels = cache.decompose_resid(return_labels=True)
            end = cache["blocks.1.hook_resid_post"]
            off[name] = float((stack.sum(0) - end).abs().max() / end.abs().max())
        shown = "hook_pos_embed" in bridge.hook_dict
        print(f"{name:5} hook_pos_embed {'exists' if shown else 'does not exist'}; {labels[:2]}")
        print(f"{name:5} the sum of decompose_resid is off by {off[name]:.1e} of the last stream")
    return 0 if off["opt"] < 1e-5 and off["xglm"] > 1e-2 else 1


if __name__ == "__main__":
    raise SystemExit(main())
