"""TransformerBridge: hook_attn_out and hook_resid_mid of BERT and BART are other tensors.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import Any

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

TOKENS = torch.arange(3, 11)[None]
IDS = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "BertForMaskedLM": transformers.BertConfig(
        **IDS, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4
    ),
    "BartForConditionalGeneration": transformers.BartConfig(
        **IDS,
        d_model=48,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=80,
        decoder_ffn_dim=80,
        decoder_start_token_id=0,
    ),
}


def boot(name: str, folder: str) -> Any:
    """A seeded random model, none of whose parameters is neutral, as a bridge."""
    torch.manual_seed(0)
    config = CONFIGS[name]
    config.architectures = [name]
    made = getattr(transformers, name)(config).eval()
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
    return TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference, relative."""
    return float((first - second).abs().max() / second.abs().max())


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    shown = []
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            cache = boot(name, folder).run_with_cache(TOKENS)[1]
        at = "blocks.0" if name.startswith("Bert") else "encoder_blocks.0"
        attended = cache[f"{at}.attn.o.hook_out"]
        normed = cache[f"{at}.ln1.hook_out"]
        summed = normed + cache[f"{at}.hook_mlp_out"]
        out, mid = cache[f"{at}.hook_attn_out"], cache[f"{at}.hook_resid_mid"]
        off = [apart(out, attended), apart(out, normed), apart(mid, normed), apart(mid, summed)]
        print(f"{name}: hook_attn_out is {off[0]:.1e} from attention's output,", end=" ")
        print(f"{off[1]:.1e} from ln1's")
        print(f"{'':{len(name)}}  hook_resid_mid is {off[2]:.1e} from ln1's output,", end=" ")
        print(f"{off[3]:.1e} from that plus mlp_out")
        shown.append(off[2] > 0.1 and off[3] < 1e-5)
    return 0 if all(shown) else 1


if __name__ == "__main__":
    raise SystemExit(main())
