"""GPT-Neo, GPT-J and OPT: the bridge's hook_attn_scores shows probabilities, and edits are lost.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
import warnings
from importlib.metadata import version

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

TOKENS = torch.arange(3, 19)[None]
SMALL = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
GPT = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}
MODELS = {
    "gpt_neo": {
        "hidden_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 64,
    },
    "gptj": {**GPT, "rotary_dim": 6},
    "opt": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 80,
        "word_embed_proj_dim": 48,
        "max_position_embeddings": 64,
    },
    "gpt2": GPT,
}


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


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference, relative to the largest reference value."""
    return float((got - want).abs().max() / want.abs().max())


def attend_to_the_first(tensor: torch.Tensor, hook: object) -> torch.Tensor:
    """An edit of the last query's scores or probabilities."""
    tensor = tensor.clone()
    tensor[:, :, -1, 0] += 3.0
    return tensor


def measure(model_type: str) -> tuple[bool, list[float]]:
    """Whether the scores are the pattern; and how far an edit of each moves the logits."""
    config = transformers.AutoConfig.for_model(model_type, **SMALL, **MODELS[model_type])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 4.3.0 warns that the edit is discarded
        save(folder, config)
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        logits, cache = bridge.run_with_cache(TOKENS)
        hooks = ["blocks.0.attn.hook_attn_scores", "blocks.0.attn.hook_pattern"]
        moved = [
            difference(
                bridge.run_with_hooks(TOKENS, fwd_hooks=[(hook, attend_to_the_first)]), logits
            )
            for hook in hooks
        ]
        return torch.equal(cache[hooks[0]], cache[hooks[1]]), moved


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    shows = True
    for model_type in MODELS:
        same, (scores, pattern) = measure(model_type)
        print(
            f"{model_type:8s} scores are the pattern: {same!s:5s}  "
            f"an edit moves the logits by {scores:.1e} (scores), {pattern:.1e} (pattern)"
        )
        if model_type == "gpt2":  # as it should be
            shows &= not same and min(scores, pattern) > 1e-3
        else:
            shows &= same
    return 0 if shows else 1


if __name__ == "__main__":
    raise SystemExit(main())
