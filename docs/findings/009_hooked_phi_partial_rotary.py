"""HookedTransformer cannot load Phi: it reads an attribute that transformers 5 has moved.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import tokenizers
import torch
import transformers


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


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) > 3:
        print("applies to TransformerLens before 4.0, which has no HookedTransformer")
        return 2
    from transformer_lens import HookedTransformer

    config = transformers.PhiConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    name = "microsoft/phi-2"
    with tempfile.TemporaryDirectory() as folder:
        save(folder, config)
        # As in the published config.json, where transformers 5 would have written rope_parameters.
        path = Path(folder, "config.json")
        published = json.loads(path.read_text())
        published.pop("rope_parameters", None)
        path.write_text(
            json.dumps(published | {"partial_rotary_factor": 0.4, "rope_theta": 10000.0})
        )
        print("rope_parameters:", transformers.AutoConfig.from_pretrained(folder).rope_parameters)
        serve(folder, name)
        try:
            HookedTransformer.from_pretrained_no_processing(
                name,
                tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
                cache_dir=f"{folder}/cache",
                local_files_only=True,
                device="cpu",
            )
        except AttributeError as error:
            print(f"{type(error).__name__}: {error}")
            return 0 if "partial_rotary_factor" in str(error) else 1
    print("loaded")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
