"""HookedTransformer: run_with_cache(remove_batch_dim=True) raises with q/k norms or experts.

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


def tried(name: str, config: transformers.PretrainedConfig) -> str:
    """What run_with_cache(remove_batch_dim=True) does with such a model under an official name."""
    from transformer_lens import HookedTransformer

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        serve(folder, name)
        hooked = HookedTransformer.from_pretrained_no_processing(
            name,
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            cache_dir=f"{folder}/cache",
            local_files_only=True,
            device="cpu",
        )
        hooked.run_with_cache(TOKENS)
        try:
            hooked.run_with_cache(TOKENS, remove_batch_dim=True)
        except IndexError as error:
            return f"IndexError: {error}"
    return "no error"


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) > 3:
        print("applies to TransformerLens before 4.0, which has no HookedTransformer")
        return 2
    sizes: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    found = {
        "Mistral": tried("mistralai/Mistral-7B-v0.1", transformers.MistralConfig(**sizes)),
        "Mixtral": tried(
            "mistralai/Mixtral-8x7B-v0.1", transformers.MixtralConfig(**sizes, **experts)
        ),
    }
    for name, what in found.items():
        print(f"{name}: {what}")
    return 0 if found["Mistral"] == "no error" != found["Mixtral"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
