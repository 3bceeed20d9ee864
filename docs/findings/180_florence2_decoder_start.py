"""TransformerBridge: Florence-2's decoder is started with the wrong token.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import subprocess
import tempfile
from importlib.metadata import version
from typing import Any

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

TOKENS = torch.arange(3, 11)[None]
NAME = "Florence2ForConditionalGeneration"
START = 2
CONFIG: dict[str, Any] = {
    "text_config": {
        **{"model_type": "bart", "vocab_size": 50, "d_model": 48, "max_position_embeddings": 64},
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 80),
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        "decoder_start_token_id": START,
    },
    "vision_config": {
        **{"depths": [1, 1], "patch_size": [3, 3], "patch_stride": [2, 2], "window_size": 4},
        **{"patch_padding": [1, 1], "patch_prenorm": [False, True], "embed_dim": [16, 24]},
        **{"num_heads": [2, 3], "num_groups": [2, 3], "projection_dim": 48},
    },
    "image_token_id": 49,
}


def refused(args: Any, *_: Any, **__: Any) -> int:
    """No package is installed for this script: docs/findings/121-boot-installs-torchvision.md."""
    raise subprocess.CalledProcessError(1, args)


def boot(folder: str) -> tuple[Any, Any]:
    """A seeded random model: HuggingFace's and the bridge."""
    torch.manual_seed(0)
    config = transformers.Florence2Config(**CONFIG)
    config.architectures = [NAME]
    made = getattr(transformers, NAME)(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    kept, subprocess.check_call = subprocess.check_call, refused
    try:
        bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    finally:
        subprocess.check_call = kept
    return made, bridge


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    given: list[torch.Tensor] = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        made, bridge = boot(folder)
        bridge.original_model.register_forward_pre_hook(
            lambda _, __, kwargs: given.append(kwargs["decoder_input_ids"]), with_kwargs=True
        )
        found = bridge(TOKENS)
        shifted = torch.cat([torch.full((1, 1), START), TOKENS[:, :-1]], dim=1)
        truth = made(TOKENS, decoder_input_ids=shifted).logits
        theirs = made.generate(TOKENS, max_new_tokens=1, do_sample=False)
        ours = bridge.generate(TOKENS, max_new_tokens=1, do_sample=False, return_type="tokens")
    off = float((found - truth).abs().max() / truth.abs().max())
    print("a forward pass gives the decoder", given[0][0, :4].tolist(), f"logits off by {off:.1e}")
    print("generate starts with", int(ours[0, 0]), "and HuggingFace's with", int(theirs[0, 0]))
    return 0 if int(given[0][0, 0]) != START and int(ours[0, 0]) != START else 1


if __name__ == "__main__":
    raise SystemExit(main())
