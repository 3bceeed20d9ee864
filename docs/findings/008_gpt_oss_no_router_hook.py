"""GPT-OSS in TransformerLens 3.9: the router has no hook, and hooking it is silently ignored.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version

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


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) > 3:
        print("applies to TransformerLens before 4.0, which hooks GPT-OSS's router")
        return 2
    from transformer_lens.model_bridge import TransformerBridge

    config = transformers.GptOssConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        intermediate_size=40,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0,
    )
    fired: list[str] = []

    def ablate(logits: torch.Tensor, hook: object) -> torch.Tensor:
        fired.append("router")
        return torch.zeros_like(logits)

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        name = "blocks.0.mlp.router.hook_out"
        try:
            bridge.run_with_hooks(TOKENS, fwd_hooks=[(name, ablate)])
            said = "no error"
        except KeyError as error:
            said = str(error)
    hooks = sorted(h for h in bridge.hook_dict if h.startswith("blocks.0.mlp."))
    print("hooks of the MLP:", ", ".join(h.removeprefix("blocks.0.mlp.") for h in hooks))
    print(f"run_with_hooks on {name}: {said}, fired {len(fired)} times")
    return 0 if name not in hooks and said == "no error" and not fired else 1


if __name__ == "__main__":
    raise SystemExit(main())
