"""TransformerBridge tells whether OPT has a final norm from the width of its embedding.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

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


def moved(norm_before: bool, width: int) -> str:
    """How far log-probabilities are from HuggingFace's before and after weight processing."""
    config = transformers.OPTConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=80,
        max_position_embeddings=64,
        do_layer_norm_before=norm_before,
        word_embed_proj_dim=width,
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        want = reference(TOKENS).logits.log_softmax(-1)
        try:
            before = float((bridge(TOKENS).log_softmax(-1) - want).abs().max())
        except RuntimeError as error:
            return str(error)
        bridge.enable_compatibility_mode(disable_warnings=True)
        after = float((bridge(TOKENS).log_softmax(-1) - want).abs().max())
        return f"before processing {before:.1e}, after {after:.1e}"


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    found = {}
    for norm_before in (True, False):
        for width in (48, 40):
            found[norm_before, width] = said = moved(norm_before, width)
            print(f"do_layer_norm_before={norm_before!s:<5}, word_embed_proj_dim={width}: {said}")
    right = all("e-06" in found[case] for case in ((True, 48), (False, 40)))
    wrong = "e+00" in found[True, 40] and "not set" in found[False, 48]
    return 0 if right and wrong else 1


if __name__ == "__main__":
    raise SystemExit(main())
