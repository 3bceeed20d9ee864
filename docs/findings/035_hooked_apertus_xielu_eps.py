"""HookedTransformer's Apertus: the checkpoint's eps of xIELU is not read.

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
NAME = "swiss-ai/Apertus-8B-2509"


def save(folder: str, config: transformers.PretrainedConfig, eps: float) -> None:
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
        for layer in model.model.layers:
            layer.mlp.act_fn.eps.fill_(eps)
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


def load(folder: str) -> torch.nn.Module:
    """The checkpoint as a HookedTransformer, loaded under an official name."""
    from transformer_lens import HookedTransformer

    return HookedTransformer.from_pretrained_no_processing(
        NAME,
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        cache_dir=f"{folder}/cache",
        local_files_only=True,
        device="cpu",
    )


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) > 3:
        print("applies to TransformerLens before 4.0, which has no HookedTransformer")
        return 2

    config = transformers.ApertusConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=80,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    found = {}
    for eps in (-1e-6, -0.25):
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            save(folder, config, eps)
            serve(folder, NAME)
            reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
            hooked = load(folder)
            got = hooked(TOKENS, prepend_bos=False)
            found[eps] = difference(got, reference(TOKENS).logits)
            there = float(reference.model.layers[0].mlp.act_fn.eps)
            here = float(hooked.blocks[0].mlp.act_fn.eps)
        print(f"eps {there:.3g} in HuggingFace, {here:.3g} here: logits differ by {found[eps]:.1e}")
    return 0 if found[-1e-6] < 1e-4 and found[-0.25] > 1e-2 else 1


if __name__ == "__main__":
    raise SystemExit(main())
