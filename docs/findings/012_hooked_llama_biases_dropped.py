"""HookedTransformer loads Llama and Qwen3 checkpoints that have biases without them, silently.

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
    "vocab_size": 50,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
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


def copy_biases(reference: torch.nn.Module, hooked: torch.nn.Module) -> None:
    """Put in HuggingFace's biases, but for gate_proj's and up_proj's, which have no place."""
    for layer, block in zip(reference.model.layers, hooked.blocks, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        pairs = [
            (attention.q_proj, block.attn.b_Q),
            (attention.k_proj, block.attn._b_K),
            (attention.v_proj, block.attn._b_V),
            (attention.o_proj, block.attn.b_O),
            (mlp.down_proj, block.mlp.b_out),
        ]
        for linear, bias in pairs:
            if linear.bias is not None:
                bias.copy_(linear.bias.reshape(bias.shape))


def measure(name: str, config: transformers.PretrainedConfig) -> tuple[int, int, float, float]:
    """Biases in the checkpoint and after loading; the logits' difference, as is and repaired."""
    from transformer_lens import HookedTransformer

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        serve(folder, name)
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        hooked = HookedTransformer.from_pretrained_no_processing(
            name,
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            cache_dir=f"{folder}/cache",
            local_files_only=True,
            device="cpu",
        )
        given = sum(key.endswith(".bias") for key, _ in reference.named_parameters())
        biases = [p for key, p in hooked.named_parameters() if ".b_" in key or "._b_" in key]
        loaded = sum(bool(bias.any()) for bias in biases)
        want = reference(TOKENS).logits
        as_is = difference(hooked(TOKENS, prepend_bos=False), want)
        copy_biases(reference, hooked)
        return given, loaded, as_is, difference(hooked(TOKENS, prepend_bos=False), want)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) > 3:
        print("applies to TransformerLens before 4.0, which has no HookedTransformer")
        return 2

    llama, qwen3 = transformers.LlamaConfig, transformers.Qwen3Config
    cases = {
        "Llama, attention_bias": ("01-ai/Yi-6B", llama(**SIZES, attention_bias=True)),
        "Llama, mlp_bias": ("01-ai/Yi-6B", llama(**SIZES, mlp_bias=True)),
        "Qwen3, attention_bias": ("Qwen/Qwen3-0.6B", qwen3(**SIZES, attention_bias=True)),
        "Llama, neither": ("01-ai/Yi-6B", llama(**SIZES)),
    }
    shows = True
    for case, (name, config) in cases.items():
        given, loaded, as_is, repaired = measure(name, config)
        print(
            f"{case}: {loaded} of {given} biases loaded, logits differ by {as_is:.1e}, "
            f"{repaired:.1e} if put in"
        )
        shows = shows and loaded == 0 and (as_is > 1e-2 if given else as_is < 1e-4)
        shows = shows and ("mlp_bias" in case or repaired < 1e-4)
    return 0 if shows else 1


if __name__ == "__main__":
    raise SystemExit(main())
