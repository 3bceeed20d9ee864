"""HookedTransformer runs Gemma 1 with the exact gelu, not with its tanh approximation.

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
#: TransformerLens hard-codes Gemma's sizes: those of the tiny model replace them, nothing else.
SIZES = {
    "d_model": 48,
    "d_head": 12,
    "n_heads": 4,
    "n_key_value_heads": 1,
    "d_mlp": 80,
    "n_layers": 2,
    "n_ctx": 64,
    "d_vocab": 50,
    "rotary_dim": 12,
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


def load(folder: str, name: str) -> torch.nn.Module:
    """The checkpoint as a HookedTransformer, loaded under an official name."""
    from transformer_lens import HookedTransformer, loading_from_pretrained

    convert = loading_from_pretrained.convert_hf_model_config

    def resized(model_name: str, **kwargs: Any) -> dict[str, Any]:
        return convert(model_name, **kwargs) | SIZES

    loading_from_pretrained.convert_hf_model_config = resized
    try:
        return HookedTransformer.from_pretrained_no_processing(
            name,
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            cache_dir=f"{folder}/cache",
            local_files_only=True,
            device="cpu",
        )
    finally:
        loading_from_pretrained.convert_hf_model_config = convert


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) > 3:
        print("applies to TransformerLens before 4.0, which has no HookedTransformer")
        return 2

    config = transformers.GemmaConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=12,
        intermediate_size=80,
        max_position_embeddings=64,
        hidden_act="gelu",  # as the published configs spell it
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    print("HuggingFace: hidden_act 'gelu' is read as", repr(config.hidden_act))
    shows = True
    for name in ("google/gemma-2b", "google/gemma-7b"):
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            save(folder, config)
            serve(folder, name)
            reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
            hooked = load(folder, name)
            got = hooked(TOKENS, prepend_bos=False)
            as_is = difference(got, reference(TOKENS).logits)
            for layer in reference.model.layers:
                layer.mlp.act_fn = torch.nn.GELU()
            exact = difference(got, reference(TOKENS).logits)
        print(f"{name}: act_fn {hooked.cfg.act_fn!r}, logits differ by {as_is:.1e};")
        print(f"  by {exact:.1e} once HuggingFace's model has the exact gelu too")
        shows = shows and as_is > 1e-5 and exact < 1e-5
    return 0 if shows else 1


if __name__ == "__main__":
    raise SystemExit(main())
