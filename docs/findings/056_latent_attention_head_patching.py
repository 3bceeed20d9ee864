"""Head patching of a model with latent attention patches positions instead of heads.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import Any

import tokenizers
import torch
import transformers

CLEAN = torch.arange(3, 9)[None]
CORRUPTED = torch.tensor([[3, 4, 20, 6, 7, 8]])


def boot(config: transformers.PretrainedConfig) -> Any:
    """A bridge of a seeded random model with a tokenizer of one word."""
    from transformer_lens.model_bridge import TransformerBridge

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>"
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, device="cpu")


def by_hand(bridge: Any, clean: Any, head: int, measure: Any) -> float:
    """What patching one head's values of the first layer, at all positions, makes of it."""

    def patch(values: torch.Tensor, hook: Any) -> torch.Tensor:
        values = values.clone()
        values[:, head] = clean[hook.name][:, head]
        return values

    return float(
        measure(bridge.run_with_hooks(CORRUPTED, fwd_hooks=[("blocks.0.attn.hook_v", patch)]))
    )


def main() -> int:
    from transformer_lens import patching

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    config = transformers.DeepseekV3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        first_k_dense_replace=2,
        q_lora_rank=12,
        kv_lora_rank=14,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=9,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    bridge = boot(config)

    def measure(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, 10] - logits[0, -1, 11]

    with torch.no_grad():
        _, clean = bridge.run_with_cache(CLEAN)
        swept = patching.get_act_patch_attn_head_v_all_pos(bridge, CORRUPTED, clean, measure)
        patched = [by_hand(bridge, clean, head, measure) for head in range(4)]
        plain = float(measure(bridge(CORRUPTED)))
    found = swept[0].tolist()
    print(f"hook_v, [batch, head, pos, size]: {tuple(clean['blocks.0.attn.hook_v'].shape)}")
    print(f"corrupted run:            {plain:.4f}")
    print(f"each head's v, by hand:   {', '.join(f'{x:.4f}' for x in patched)}")
    print(f"get_act_patch_..._v:      {', '.join(f'{x:.4f}' for x in found)}")
    untouched = [abs(x - plain) < 1e-6 for x in found]
    # Of the first four positions only 2 differs between the runs: positions were patched.
    return 0 if untouched == [True, True, False, True] and patched != found else 1


if __name__ == "__main__":
    raise SystemExit(main())
