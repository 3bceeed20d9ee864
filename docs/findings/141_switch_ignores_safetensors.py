"""TransformerBridge: a Switch Transformers checkpoint in safetensors does not load.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

NAME = "SwitchTransformersForConditionalGeneration"
CONFIG = transformers.SwitchTransformersConfig(
    **{"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0},
    **{"d_model": 48, "d_kv": 12, "d_ff": 80, "num_heads": 4, "num_experts": 3},
    **{"num_layers": 2, "num_decoder_layers": 2},
    **{"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    CONFIG.architectures = [NAME]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        getattr(transformers, NAME)(CONFIG).save_pretrained(folder)
        words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
        names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<s>")
        transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(
            folder
        )
        print("the folder holds", *sorted(path.name for path in Path(folder).glob("model*")))
        transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
        print("transformers loads it")
        try:
            TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
        except OSError as error:
            print("TransformerBridge: OSError:", str(error).replace(folder, "FOLDER"))
            return 0
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
