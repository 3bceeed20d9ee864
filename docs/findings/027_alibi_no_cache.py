"""TransformerBridge 3.9, ALiBi attention: generate() with its cache forgets all but one token.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version

import tokenizers
import torch
import transformers

TOKENS = torch.arange(3, 11)[None]
SIZES = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
CONFIGS = {
    "MPT": transformers.MptConfig(**SIZES, d_model=48, n_layers=2, n_heads=4, max_seq_len=64),
    "Falcon-RW": transformers.FalconConfig(
        **SIZES,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        alibi=True,
        multi_query=False,
        parallel_attn=False,
        new_decoder_architecture=False,
        bias=True,
    ),
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


def difference(config: transformers.PretrainedConfig) -> float:
    """Largest difference of the second step's logits, with the cache against without, relative."""
    from transformer_lens.model_bridge import TransformerBridge

    logits = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
        for cached in (True, False):
            made = bridge.generate(
                TOKENS,
                max_new_tokens=2,
                do_sample=False,
                stop_at_eos=False,
                use_past_kv_cache=cached,
                output_logits=True,
                verbose=False,
            )
            logits.append(made.logits[1])
    return float((logits[0] - logits[1]).abs().max() / logits[1].abs().max())


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) >= 4:
        print("applies to TransformerLens 3.9; 4.3 keeps keys and values")
        return 2
    found = {name: difference(config) for name, config in CONFIGS.items()}
    for name, off in found.items():
        print(f"{name + ':':11}logits of the second step, with a cache against without: {off:.1e}")
    return 0 if min(found.values()) > 1e-2 else 1


if __name__ == "__main__":
    raise SystemExit(main())
