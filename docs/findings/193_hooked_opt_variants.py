"""HookedTransformer loads of OPT only what its official names are.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import tokenizers
import torch
import transformers

TOKENS = torch.arange(3, 19)[None]
SIZES = {
    **{"vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4},
    **{"ffn_dim": 40, "max_position_embeddings": 64, "word_embed_proj_dim": 48},
    **{"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
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


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference, relative to the largest reference value."""
    return float((got - want).abs().max() / want.abs().max())


def off(**changes: object) -> float | str:
    """How far HookedTransformer's logits are from HuggingFace's, or what it raises."""
    from transformer_lens import HookedTransformer

    name = "facebook/opt-125m"
    config = transformers.OPTConfig(**{**SIZES, **changes})
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        serve(folder, name)
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        try:
            hooked = HookedTransformer.from_pretrained_no_processing(
                name,
                tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
                cache_dir=f"{folder}/cache",
                local_files_only=True,
                device="cpu",
            )
        except (AttributeError, RuntimeError) as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return difference(hooked(TOKENS, prepend_bos=False), reference(TOKENS).logits)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) > 3:
        print("applies to TransformerLens before 4.0, which has no HookedTransformer")
        return 2
    found = {}
    for label, changes in (
        ("as published", {}),
        ("norm after", {"do_layer_norm_before": False}),
        ("no final norm", {"_remove_final_layer_norm": True}),
        ("projected embedding", {"word_embed_proj_dim": 40}),
        ("no biases", {"enable_bias": False}),
        ("norms without weights", {"layer_norm_elementwise_affine": False}),
    ):
        found[label] = off(**changes)
        said = found[label] if isinstance(found[label], str) else f"{found[label]:.1e}"
        print(f"{label:<21} {said}")
    own, *others = found.values()
    return 0 if not isinstance(own, str) and own < 1e-4 and all(map(_wrong, others)) else 1


def _wrong(found: float | str) -> bool:
    return isinstance(found, str) or found > 1e-2


if __name__ == "__main__":
    raise SystemExit(main())
