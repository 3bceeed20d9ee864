"""TransformerBridge: GPT (OpenAIGPTLMHeadModel) sees later tokens where a mask is given.

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
ONES = torch.ones_like(TOKENS)


def boot(folder: str) -> tuple[Any, Any]:
    """A seeded random model, none of whose parameters is neutral: HuggingFace's and the bridge."""
    torch.manual_seed(0)
    config = transformers.OpenAIGPTConfig(
        vocab_size=50, n_embd=48, n_layer=2, n_head=4, n_positions=32
    )
    config.architectures = ["OpenAIGPTLMHeadModel"]
    made = transformers.OpenAIGPTLMHeadModel(config).eval()
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
    return made, TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference, relative."""
    return float((first - second).abs().max() / second.abs().max())


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    fired: list[str] = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        reference, bridge = boot(folder)
        truth = reference(TOKENS).logits
        without = apart(bridge(TOKENS), truth)
        masked = bridge(TOKENS, attention_mask=ONES)
        ones = apart(masked, reference(TOKENS, attention_mask=ONES).logits)
        other = torch.cat([TOKENS[:, :-1], torch.tensor([[20]])], dim=1)
        leaked = apart(masked[:, :1], bridge(other, attention_mask=ONES)[:, :1])
        post = [("blocks.0.hook_resid_post", lambda _, hook: fired.append(hook.name))]
        bridge.run_with_hooks(TOKENS, fwd_hooks=post)
    print(f"off HuggingFace's logits: {without:.1e} without a mask, {ones:.1e} with a mask of ones")
    print(f"another last token moves the first logits by {leaked:.1e}")
    print(f"blocks.0.hook_resid_post fires {len(fired)} times")
    return 0 if without < 1e-4 < 0.1 < min(ones, leaked) and not fired else 1


if __name__ == "__main__":
    raise SystemExit(main())
