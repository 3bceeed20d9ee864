"""TransformerBridge 3.9: stacked weights and circuits raise for an encoder and a decoder.

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

NAME = "BartForConditionalGeneration"
CONFIG = transformers.BartConfig(
    **{"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 0, "d_model": 48},
    **{"decoder_start_token_id": 0},
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 80),
)


def boot(folder: str) -> Any:
    torch.manual_seed(0)
    CONFIG.architectures = [NAME]
    getattr(transformers, NAME)(CONFIG).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    return TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) >= 4:
        print("applies to TransformerLens 3: 4 stacks the layers of both")
        return 2
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bridge = boot(folder)
    shown = []
    for name in ("W_Q", "W_O", "W_in", "QK", "OV"):
        try:
            getattr(bridge, name)
            said = "is there"
        except AttributeError as error:
            said = f"AttributeError: {error}"
        print(f"model.{name}: {said}")
        shown.append(said != "is there")
    print(f"a block's own W_Q: {tuple(bridge.encoder_blocks[0].attn.W_Q.shape)}")
    return 0 if all(shown) else 1


if __name__ == "__main__":
    raise SystemExit(main())
