"""An encoder and a decoder generate, and are processed, as the reference says; faults are named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import twins

from conformance.checks.decoders import decoder_of
from conformance.experiments.base import Scope
from conformance.experiments.generation import (
    SHARED,
    begun,
    configured,
    keeping_heads,
    ruled,
    steered,
    steps,
)
from conformance.faults import CATALOGUE, decoding
from conformance.implementations.base import EVERYWHERE, asked, decoded, starts_with
from conformance.prompts import Prompt

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.prove.bench import Bench

TOKENS = torch.tensor([[5, 9, 31, 7, 12, 40, 22, 6]])
DECODED = torch.tensor([[2, 17, 8, 33]])


def _judged(twin: str, check: str, cache: Path) -> dict[str, Any]:
    model = twins.twin_model(twin, prompts=("sixteen",))
    return twins.judge(model, "bridge", cache, checks=(check,))[check]


def _not_applicable(record: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = record["metrics"]["not_applicable"]
    return found


def test_a_right_decoder_passes(twin_cache: Path) -> None:
    record = _judged("m2m100", "generation", twin_cache)
    assert record["outcome"] == "passed", record["worst"]
    assert "not_applicable" not in record["metrics"]
    # Tokens alone, in a batch, with two edits, as configured, sampled; logits and caches of each.
    assert record["verdict"]["exact"]["compared"] == 13
    assert record["verdict"]["same_function"]["compared"] == 21


def test_what_a_generation_config_asks_for_is_judged_apart(twin_cache: Path) -> None:
    """Findings 154 and 155: all else of BART's generation is right."""
    record = _judged("bart", "generation", twin_cache)
    assert record["outcome"] == "failed"
    assert {c["site"] for c in record["worst"] if not c["ok"]} == {"logits.configured"}


def test_a_token_that_sees_all_is_judged_apart(twin_cache: Path) -> None:
    """Finding 156."""
    record = _judged("led", "generation", twin_cache)
    assert {c["site"] for c in record["worst"] if not c["ok"]} == {"logits.seen_by_all"}


def test_flags_that_are_declined_and_flags_that_are_forgotten(twin_cache: Path) -> None:
    """Finding 157; the residual stream is that of finding 122."""
    record = _judged("bart", "processing", twin_cache)
    assert record["outcome"] == "failed"
    assert set(_not_applicable(record)) == {"fold_ln", "center_writing_weights"}
    failing = {c["site"].split(".", 2)[2] for c in record["worst"] if not c["ok"]}
    assert failing <= {"attn.b_V", "cross_attn.b_V", "resid_mid"}
    assert {"attn.b_V", "cross_attn.b_V"} <= failing


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Bench:
    from conformance.prove.bench import Bench

    model = twins.twin_model("m2m100", prompts=("sixteen",))
    return Bench.load(model, "bridge", twin_cache, prompts=("sixteen",))


@pytest.mark.parametrize(
    "name",
    [
        *(fault.name for fault in decoding.TWO_STACKS),
        "generation_drops_hooks",
        "generation_hooks_prompt_only",
        "generation_sees_padding",
        "generation_not_seeded",
        "center_unembed_skipped",
        "processed_queries_wrong",
        "processed_mlp_wrong",
        "processed_head_wrong",
    ],
)
def test_faults_are_caught_and_named(name: str, bench: Bench) -> None:
    fault = CATALOGUE[name]
    assert bench.provable(fault)
    proof = bench.prove(fault)
    assert proof.caught
    assert proof.named in proof.site_true


@pytest.mark.parametrize(
    "name",
    [
        "cache_corrupted",
        "cache_stale",
        "decode_position_late",
        "fold_ln_skipped",
        "center_writing_weights_skipped",
        "fold_value_biases_skipped",
        "processed_attention_bias_wrong",
        "processed_bias_lost",
    ],
)
def test_faults_of_what_the_library_does_not_do_here_say_so(name: str, bench: Bench) -> None:
    assert not CATALOGUE[name].fits(bench.exact)


@pytest.mark.parametrize("twin", ["bart", "led"])
def test_a_decoder_is_given_tokens_of_its_own(twin: str, twin_cache: Path) -> None:
    """Fewer than its encoder's: sites of either stack have their own lengths."""
    model = twins.huggingface(twin, twin_cache)
    extra = {EVERYWHERE: torch.zeros_like(TOKENS)} if model.family.windowed else {}
    shapes: dict[str, tuple[int, ...]] = {}
    logits = model.run(
        Prompt("given", TOKENS, extra=extra, decoder=DECODED),
        lambda name, value: shapes.update({name: tuple(value.shape)}),
    )
    with model.session():
        truth = model.model(input_ids=TOKENS, decoder_input_ids=DECODED, use_cache=False).logits
    torch.testing.assert_close(logits, truth, rtol=0, atol=1e-12)
    first = model.family.encoder
    assert shapes["blocks.0.resid_post"][:2] == (1, TOKENS.shape[1])
    assert shapes[f"blocks.{first}.resid_post"][:2] == (1, DECODED.shape[1])
    assert shapes[f"blocks.{first}.cross_attn.k"][:2] == (1, TOKENS.shape[1])


def test_both_sides_are_given_the_same_tokens(bench: Bench, twin_cache: Path) -> None:
    model = twins.huggingface("m2m100", twin_cache)
    prompt = Prompt("given", TOKENS, decoder=DECODED)
    found = bench.exact.run(prompt, lambda *_: None)
    torch.testing.assert_close(found, model.run(prompt, lambda *_: None), rtol=0, atol=1e-12)


def test_a_prompt_says_itself_which_tokens_see_all(twin_cache: Path) -> None:
    fam, _ = twins.described("led", twin_cache)
    assert asked(fam, Prompt("a", TOKENS))[EVERYWHERE].tolist() == [[1, *[0] * 7]]
    assert asked(fam, Prompt("a", TOKENS, extra={EVERYWHERE: torch.zeros_like(TOKENS)})) == {}


def test_a_decoder_begins_with_its_own_token(twin_cache: Path) -> None:
    model = twins.huggingface("bart", twin_cache)
    config = model.model.config
    assert starts_with(config) == config.decoder_start_token_id == 2
    assert decoded(Prompt("a", TOKENS), config).tolist() == [[2, *TOKENS[0, :-1].tolist()]]
    assert decoded(Prompt("a", TOKENS, decoder=DECODED), config) is DECODED
    assert begun(model.family, config, TOKENS[0]).tolist() == [2]
    fam, _ = twins.described("gpt2", twin_cache)
    assert begun(fam, None, TOKENS[0]).equal(TOKENS[0])


def test_each_stack_is_steered_and_the_decoder_alone_keeps_a_cache(twin_cache: Path) -> None:
    fam, dims = twins.described("t5", twin_cache)
    scope = Scope.of(dims)
    assert steered(fam, dims) == {
        "steered": "blocks.4.resid_post",
        "steered_encoder": "blocks.1.resid_post",
    }
    assert keeping_heads(fam, scope) == [3, 4]
    assert steps(fam, dims, scope) == SHARED
    fam, dims = twins.described("gpt2", twin_cache)
    assert list(steered(fam, dims)) == ["steered"]


def test_rules_of_generation_are_put_back() -> None:
    class Model:
        generation_config: Any = "own"

    model = Model()
    with configured(model, "other"):
        assert model.generation_config == "other"
    assert model.generation_config == "own"


def test_rules_are_added_to_a_config_and_leave_it_as_it_was() -> None:
    from types import SimpleNamespace

    own = SimpleNamespace(min_length=0, eos_token_id=2)
    changed = ruled(own)
    assert (changed.min_length, changed.eos_token_id, own.min_length) == (6, 2, 0)


def test_a_cache_that_holds_nothing_is_told(bench: Bench) -> None:
    """Finding 153, where the keys of each layer are None."""

    class Layer:
        keys = values = None

    class Cache:
        self_attention_cache = cross_attention_cache = type("Part", (), {"layers": [Layer()]})()

    decoder = decoder_of(bench.exact, TOKENS)
    decoder._cache = Cache()  # type: ignore[attr-defined]
    first = bench.exact.family.encoder
    assert decoder.held(first) is None
    assert decoder.crossed(first) is None
    assert decoder.held(first + 1) is None
