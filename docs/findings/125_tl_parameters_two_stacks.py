"""TransformerBridge: tl_parameters raises for an encoder and a decoder.

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

SIZES = {
    **{"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0},
    **{"d_model": 48, "d_kv": 12, "d_ff": 80, "num_heads": 4},
    **{"num_layers": 2, "num_decoder_layers": 2},
}
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "T5ForConditionalGeneration": transformers.T5Config(**SIZES),
    "BartForConditionalGeneration": transformers.BartConfig(
        **{"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 0, "d_model": 48},
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 80),
    ),
}


def boot(name: str, folder: str) -> Any:
    torch.manual_seed(0)
    config = CONFIGS[name]
    config.architectures = [name]
    getattr(transformers, name)(config).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    return TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    shown = []
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            bridge = boot(name, folder)
        try:
            said = f"{len(bridge.tl_parameters())} parameters"
        except AttributeError as error:
            said = f"AttributeError: {error}"
        print(f"{name}: {said}")
        shown.append(said.startswith("AttributeError"))
    return 0 if all(shown) else 1


if __name__ == "__main__":
    raise SystemExit(main())
