"""Three small defects of HookedTransformer's Bloom: gelu, position embedding, cached ALiBi.

Exit status: 0 all three show, 1 not all do, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import tokenizers
import torch
import transformers

LONG = torch.arange(1024)[None] % 47 + 3
SHORT = LONG[:, :16]
SCORES, PATTERN = "blocks.0.attn.hook_attn_scores", "blocks.0.attn.hook_pattern"


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


def load(folder: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The checkpoint as a HookedTransformer."""
    from transformer_lens import HookedTransformer

    return HookedTransformer.from_pretrained_no_processing(
        "bigscience/bloom-560m",
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        cache_dir=f"{folder}/cache",
        local_files_only=True,
        device="cpu",
        dtype=dtype,
    )


def gelu_differs(folder: str) -> bool:
    """The same MLP input, in float64, to both implementations."""
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    theirs = reference.eval().transformer.h[0].mlp
    hooked = load(folder, torch.float64)
    ours = hooked.blocks[0].mlp
    seen: dict[str, torch.Tensor] = {}
    theirs.dense_h_to_4h.register_forward_pre_hook(lambda _, args: seen.update(input=args[0]))
    theirs.dense_4h_to_h.register_forward_pre_hook(lambda _, args: seen.update(post=args[0]))
    ours.hook_post.register_forward_hook(lambda _, args, out: seen.update(hooked=out))
    reference(SHORT)
    ours(seen["input"])
    as_is = difference(seen["hooked"], seen["post"])
    ours.act_fn = lambda x: x * 0.5 * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))
    ours(seen["input"])
    same = difference(seen["hooked"], seen["post"])
    print(f"mlp.hook_post differs by {as_is:.1e}; by {same:.1e} with HuggingFace's constant")
    return as_is > 1e-12 > same


def position_embedding_is_uninitialised(folder: str) -> bool:
    """Load while torch fills memory that nothing initialises with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        hooked = load(folder)
    finally:
        torch.use_deterministic_algorithms(False)
    parameters = dict(hooked.named_parameters())
    unset = [name for name, value in parameters.items() if value.isnan().any()]
    finite = bool(hooked(SHORT, prepend_bos=False).isfinite().all())
    shapes = {name: tuple(parameters[name].shape) for name in unset}
    print(f"uninitialised: {shapes}; logits are {'finite' if finite else 'not finite'}")
    return unset == ["pos_embed.W_pos"] and finite


def alibi_is_shifted(folder: str) -> bool:
    """A short prompt in a fresh model, and again after a long one."""
    exact = load(folder, torch.float64).run_with_cache(SHORT, prepend_bos=False)[1][PATTERN]
    shows = True
    for dtype in (torch.float32, torch.bfloat16):
        hooked = load(folder, dtype)
        fresh = hooked.run_with_cache(SHORT, prepend_bos=False)[1]
        hooked(LONG, prepend_bos=False)
        later = hooked.run_with_cache(SHORT, prepend_bos=False)[1]
        causal = fresh[SCORES].isfinite()
        shift = float((later[SCORES] - fresh[SCORES])[causal].abs().max())
        before, after = (float((c[PATTERN] - exact).abs().max()) for c in (fresh, later))
        print(f"{dtype}: scores of 16 tokens change by {shift:.0f} after a prompt of 1024;")
        print(f"  error of the pattern: {before:.1e} before, {after:.1e} after")
        shows = shows and shift > 100 and after > 3 * before
    return shows


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    if int(version("transformer-lens").split(".")[0]) > 3:
        print("applies to TransformerLens before 4.0, which has no HookedTransformer")
        return 2
    config = transformers.BloomConfig(
        vocab_size=50, hidden_size=48, n_layer=1, n_head=8, bos_token_id=0, eos_token_id=0
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(folder, config)
        serve(folder, "bigscience/bloom-560m")
        checks = (gelu_differs, position_embedding_is_uninitialised, alibi_is_shifted)
        shows = [check(folder) for check in checks]
    print("gelu, position embedding, ALiBi:", shows)
    return 0 if all(shows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
