"""TransformerBridge: CodeGen raises in bfloat16 and float16, whose checkpoints are float16.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

TOKENS = torch.arange(3, 11)[None]


def save(folder: str) -> None:
    torch.manual_seed(0)
    config = transformers.CodeGenConfig(
        vocab_size=50,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=4,
        rotary_dim=4,
        architectures=["CodeGenForCausalLM"],
    )
    transformers.CodeGenForCausalLM(config).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    raised = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            right = transformers.CodeGenForCausalLM.from_pretrained(folder, dtype=dtype)(TOKENS)
            bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=dtype)
            try:
                said = f"logits in {bridge(TOKENS).dtype}"
            except RuntimeError as error:
                said = raised[dtype] = f"{type(error).__name__}: {error}"
            print(f"{dtype}: HuggingFace: logits in {right.logits.dtype}; bridge: {said}")
    return 0 if set(raised) == {torch.bfloat16, torch.float16} else 1


if __name__ == "__main__":
    sys.exit(main())
