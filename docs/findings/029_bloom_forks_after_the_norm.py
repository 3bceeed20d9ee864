"""Bloom: the bridge's hook_q_input shows what comes after ln1, and its hook_mlp_in nothing.

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


def apart(model: Any) -> float:
    """Largest difference between hook_q_input and hook_resid_pre, of block 1, relative."""
    model.set_use_split_qkv_input(True)
    _, cache = model.run_with_cache(TOKENS)
    stream = cache["blocks.1.hook_resid_pre"]
    read = cache["blocks.1.attn.hook_q_input"]
    return float((read - stream[:, :, None]).abs().max() / stream.abs().max())


def fires(model: Any) -> int:
    """How often hook_mlp_in of block 1 fires in a forward pass."""
    model.set_use_hook_mlp_in(True)
    seen: list[torch.Size] = []
    model.run_with_hooks(
        TOKENS, fwd_hooks=[("blocks.1.hook_mlp_in", lambda value, hook: seen.append(value.shape))]
    )
    return len(seen)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    bloom = transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4)
    gpt2 = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    wrong, right = boot(bloom), boot(gpt2)
    found = {}
    for name, model in (("bloom", wrong), ("gpt2", right), ("bloom, hooks put there", wrong)):
        if "put there" in name:
            for block in model.blocks:
                block._maybe_wire_capture_hooks()
        found[name] = (apart(model), fires(model))
        print(f"{name:23} hook_q_input less the stream {found[name][0]:.1e}", end="; ")
        print(f"hook_mlp_in fires {found[name][1]} times")
    return int(not (found["bloom"][0] > 1e-3 > found["gpt2"][0] and found["bloom"][1] == 0))


if __name__ == "__main__":
    raise SystemExit(main())
