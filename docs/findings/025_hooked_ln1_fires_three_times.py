"""HookedTransformer: the hooks of ln1 fire three times in a forward pass.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

TOKENS = torch.arange(3, 19)[None]
SIZES = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


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


def serve(folder: str, name: str) -> None:
    """Lay a saved checkpoint out as the hub's cache would be had it been downloaded."""
    source, commit = Path(folder), "0" * 40
    repository = source / "cache" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for file in source.iterdir():
        if file.is_file():
            (snapshot / file.name).write_bytes(file.read_bytes())


def load(config: transformers.PretrainedConfig, name: str) -> Any:
    """A seeded random checkpoint of this kind, as a HookedTransformer."""
    from transformer_lens import HookedTransformer

    with tempfile.TemporaryDirectory() as folder:
        save(folder, config)
        serve(folder, name)
        return HookedTransformer.from_pretrained_no_processing(
            name,
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            cache_dir=f"{folder}/cache",
            local_files_only=True,
            device="cpu",
        )


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) >= 4:
        print("applies to TransformerLens before 4.0, which has HookedTransformer")
        return 2
    config = transformers.GPT2Config(
        **SIZES, n_embd=32, n_layer=2, n_head=4, n_positions=64, n_ctx=64
    )
    model = load(config, "gpt2")
    counts = {f"blocks.0.{part}.hook_normalized": 0 for part in ("ln1", "ln2")}

    def count(tensor: torch.Tensor, hook: Any) -> None:
        counts[hook.name] += 1

    with torch.no_grad():
        model.run_with_hooks(TOKENS, fwd_hooks=[(name, count) for name in counts])
    for name, times in counts.items():
        print(f"{name} fires {times} times")
    return 0 if list(counts.values()) == [3, 1] else 1


if __name__ == "__main__":
    raise SystemExit(main())
