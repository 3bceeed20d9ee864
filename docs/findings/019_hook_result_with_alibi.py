"""With ALiBi, use_attn_result is accepted and hook_result never fires.

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


#: What a flag promises: its setter, and a hook that then fires.
FLAGS = {
    "use_attn_result": ("set_use_attn_result", "blocks.0.attn.hook_result"),
    "use_split_qkv_input": ("set_use_split_qkv_input", "blocks.0.hook_q_input"),
    "use_attn_in": ("set_use_attn_in", "blocks.0.hook_attn_in"),
}


def fires(config: transformers.PretrainedConfig) -> dict[str, str]:
    """What comes of each flag."""
    found = {}
    for flag, (setter, hook) in FLAGS.items():
        bridge = boot(config)
        try:
            getattr(bridge, setter)(True)
        except NotImplementedError:
            found[flag] = "refused"
            continue
        with torch.no_grad():
            _, cache = bridge.run_with_cache(TOKENS)
        found[flag] = "fires" if hook in cache else "accepted, never fires"
    return found


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    falcon = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "new_decoder_architecture": False,
        "multi_query": False,
        "parallel_attn": False,
    }
    found = {
        "falcon, alibi": fires(transformers.FalconConfig(**falcon, alibi=True)),
        "falcon, rotary": fires(transformers.FalconConfig(**falcon, alibi=False)),
        "mpt": fires(transformers.MptConfig(vocab_size=50, d_model=32, n_layers=2, n_heads=4)),
        "bloom": fires(
            transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4)
        ),
        "codegen": fires(
            transformers.CodeGenConfig(vocab_size=50, n_embd=32, n_layer=2, n_head=4, rotary_dim=4)
        ),
    }
    for name, flags in found.items():
        for flag, what in flags.items():
            print(f"{name:14} {flag:19} {what}")
    return 0 if "accepted, never fires" in found["falcon, alibi"].values() else 1


if __name__ == "__main__":
    raise SystemExit(main())
