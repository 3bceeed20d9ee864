"""The prompts of a model: lengths, masks, determinism, and what is left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.errors import ImplementationError
from conformance.families import Dims
from conformance.prompts import MEDIA, PROMPTS, TEXTS, Prompt, build, long_length

DIMS = Dims(
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    d_model=8,
    d_head=4,
    d_vocab=50,
    n_ctx=96,
    n_experts=0,
    windows=(None, 12),
    d_head_v=4,
)


def characters(text: str) -> dict[str, list[int]]:
    """A tokenizer with one id per character."""
    return {"input_ids": [ord(c) % 50 for c in text]}


def built(dims: Dims = DIMS, tokenizer: object = characters) -> dict[str, Prompt]:
    prompts, _ = build(dims, tokenizer)
    return {p.name: p for p in prompts}


def test_every_set_is_built_in_order() -> None:
    assert tuple(built()) == PROMPTS[:-1]  # without an image or a sound


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("one", (1, 1)),
        ("two", (1, 2)),
        ("sixteen", (1, 16)),
        ("long", (1, 96)),
        ("text", (1, 64)),
        ("code", (1, 64)),
        ("padded_left", (3, 14)),
        ("padded_right", (3, 14)),
    ],
)
def test_shapes(name: str, shape: tuple[int, int]) -> None:
    prompt = built()[name]
    assert prompt.tokens.shape == shape
    assert prompt.tokens.dtype == torch.int64
    assert (prompt.mask is not None) == name.startswith("padded")
    if prompt.mask is None:
        assert bool(prompt.valid.all())


@given(
    n_ctx=st.integers(16, 5000),
    windows=st.lists(st.one_of(st.none(), st.integers(1, 4096)), min_size=1, max_size=4),
)
def test_the_long_prompt_is_past_every_window_and_at_least_512(
    n_ctx: int, windows: list[int | None]
) -> None:
    length = long_length(replace(DIMS, n_ctx=n_ctx, windows=tuple(windows)))
    assert length <= n_ctx
    assert length >= min(512, n_ctx)
    for window in windows:
        if window is not None and window < n_ctx:
            assert length > window


@given(n_ctx=st.integers(16, 2000), d_vocab=st.integers(2, 70))
@settings(max_examples=40, deadline=None)
def test_ids_are_in_the_vocabulary_and_prompts_in_the_context(n_ctx: int, d_vocab: int) -> None:
    for prompt in built(replace(DIMS, n_ctx=n_ctx, d_vocab=d_vocab), None).values():
        assert prompt.tokens.shape[1] <= n_ctx
        assert 0 <= int(prompt.tokens.min()) <= int(prompt.tokens.max()) < d_vocab


def test_the_same_prompts_every_time() -> None:
    state = torch.get_rng_state()
    first, torch_state = built(), torch.manual_seed(5)
    again = built()
    assert torch_state.initial_seed() == 5
    torch.set_rng_state(state)
    for name, prompt in first.items():
        assert torch.equal(prompt.tokens, again[name].tokens), name


def test_building_leaves_the_global_seed_alone() -> None:
    before = torch.get_rng_state()
    built()
    assert torch.equal(before, torch.get_rng_state())


def test_prompts_differ_from_each_other_and_are_not_constant() -> None:
    prompts = built()
    for name in ("sixteen", "long", "padded_left", "padded_right"):
        assert prompts[name].tokens.unique().numel() > 8
    assert not torch.equal(prompts["sixteen"].tokens[:, :16], prompts["long"].tokens[:, :16])


def test_special_ids_are_not_drawn() -> None:
    for name, prompt in built(tokenizer=None).items():
        assert int(prompt.tokens[prompt.valid].min()) >= 4, name


@pytest.mark.parametrize(
    ("name", "side"), [("padded_right", slice(0, 5)), ("padded_left", slice(9, 14))]
)
def test_padding(name: str, side: slice) -> None:
    prompt = built()[name]
    assert prompt.mask is not None
    assert prompt.mask.sum(1).tolist() == [5, 9, 14]
    assert bool(prompt.valid[0, side].all())
    assert torch.equal(prompt.valid, prompt.mask.bool())
    assert int(prompt.tokens[~prompt.valid].abs().sum()) == 0
    # One run of real tokens in each row.
    assert (prompt.mask.diff(dim=1) != 0).sum(1).tolist() == [1, 1, 0]


def test_without_a_tokenizer_text_is_left_out_with_the_reason() -> None:
    prompts, left_out = build(DIMS, None)
    assert set(left_out) == set(TEXTS)
    assert all("no tokenizer" in reason for reason in left_out.values())
    assert {p.name for p in prompts} == set(PROMPTS) - set(TEXTS) - {MEDIA}
    _, nothing = build(DIMS, characters)
    assert nothing == {}


def test_text_is_cut_to_the_context() -> None:
    short = built(replace(DIMS, n_ctx=16))
    assert short["text"].tokens.shape == (1, 16)
    assert short["text"].tokens[0].tolist() == characters(TEXTS["text"])["input_ids"][:16]


def test_texts_span_scripts_code_and_digits() -> None:
    text = TEXTS["text"]
    for low, high in (("a", "z"), ("\u0430", "\u044f"), ("\u03b1", "\u03c9"), ("\u4e00", "\u9fff")):
        assert any(low <= c <= high for c in text)
    assert any(c.isdigit() for c in TEXTS["code"])
    assert "\n" in TEXTS["code"]


def test_some_names_only() -> None:
    prompts, _ = build(DIMS, None, ("two", "one"))
    assert [p.name for p in prompts] == ["two", "one"]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ImplementationError, match="'fifteen'") as caught:
        build(DIMS, None, ("one", "fifteen"))
    assert "sixteen" in caught.value.hint


@pytest.mark.parametrize(("twin", "pad"), [("roberta", 1), ("m2m100", 0), ("gpt2", 0)])
def test_batches_are_filled_with_what_positions_are_counted_by(twin: str, pad: int) -> None:
    from conformance.checkpoints.shrink import shrink
    from conformance.checkpoints.twin_catalogue import TWINS
    from conformance.experiments.batching import padded
    from conformance.families import dims

    config = shrink(TWINS[twin].model_type, TWINS[twin].config)
    sizes = dims(config)
    assert sizes.pad == pad
    assert twin == "gpt2" or sizes.pad == config.pad_token_id
    for prompt in (
        built(sizes)["padded_left"],
        padded([torch.ones(3), torch.ones(5)], "left", pad),
    ):
        assert prompt.mask is not None
        assert set(prompt.tokens[prompt.mask == 0].tolist()) == {pad}
