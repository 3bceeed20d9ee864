"""TransformerBridge: a hook inside a norm of T5 that returns a copy changes the model.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
import warnings
from importlib.metadata import version
from typing import Any

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

TOKENS = torch.arange(3, 11)[None]
SIZES = {
    **{"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0},
    **{"d_model": 48, "d_kv": 12, "d_ff": 80, "num_heads": 4},
    **{"num_layers": 2, "num_decoder_layers": 2},
}
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "T5ForConditionalGeneration": transformers.T5Config(**SIZES),
    "MT5ForConditionalGeneration": transformers.MT5Config(**SIZES),
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
    warnings.simplefilter("ignore")  # of numerics at rounding scale
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) < 4:
        print("applies to TransformerLens 4: 3.9's T5 does not run with this transformers")
        return 2
    shown = []
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            bridge = boot(name, folder)
            plain = bridge(TOKENS, return_type="logits")
            said = []
            for hook in ("encoder_blocks.0.ln1.hook_normalized", "decoder_blocks.1.ln1.hook_scale"):
                copied = bridge.run_with_hooks(
                    TOKENS,
                    return_type="logits",
                    fwd_hooks=[(hook, lambda value, hook: value.clone())],
                )
                moved = float((plain - copied).abs().max() / plain.abs().max())
                said.append(f"{hook} copied: {moved:.1e}")
                shown.append(moved > 1e-3)
        print(f"{name}: {'  '.join(said)}")
    print("cfg.normalization_type:", bridge.cfg.normalization_type)
    return 0 if all(shown) else 1


if __name__ == "__main__":
    raise SystemExit(main())
