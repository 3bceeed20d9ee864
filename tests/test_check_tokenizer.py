"""Text becomes the reference's tokens; what does not is found, and named."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
import twins

from conformance.experiments.tokenizer import TEXTS, long_text
from conformance.faults import text

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.prove.bench import Bench


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Bench:
    from conformance.prove.bench import Bench

    model = twins.twin_model("llama", prompts=("sixteen",))
    return Bench.load(model, "bridge", twin_cache, prompts=("sixteen",))


@pytest.mark.parametrize("fault", text.FAULTS, ids=lambda fault: fault.name)
def test_faults_are_caught_and_named(fault: text.Fault, bench: Bench) -> None:
    assert fault.applies(bench.exact)
    proof = bench.prove(fault)
    assert proof.caught
    assert proof.named in proof.site_true


def _judged(model: Any, subject: str, cache: Path) -> dict[str, Any]:
    return twins.judge(model, subject, cache, checks=("tokenizer",))["tokenizer"]


def test_a_checkpoint_without_a_tokenizer_says_so(twin_cache: Path, tmp_path: Path) -> None:
    import shutil

    source = twins.checkpoint("gpt2", twin_cache).path
    bare = tmp_path / "bare"
    shutil.copytree(source, bare, ignore=shutil.ignore_patterns("*token*"))
    model = twins.twin_model("gpt2", id="no-tokenizer", source={"path": str(bare)})
    record = _judged(model.model_copy(update={"prompts": ("sixteen",)}), "bridge", twin_cache)
    assert record["outcome"] == "not_applicable"
    assert record["reason"] == "tokenizer: the checkpoint has no tokenizer"


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_lens.HookedTransformer") is None,
    reason="TransformerLens 4 has no HookedTransformer",
)
def test_hooked_transformer_tokenises_as_the_reference_does(twin_cache: Path) -> None:
    record = _judged(twins.twin_model("llama", prompts=("sixteen",)), "hooked", twin_cache)
    assert record["outcome"] == "passed"


def test_texts_are_difficult() -> None:
    joined = "".join(TEXTS.values())
    for mark in ("\u0301", "\U0001f600", "\u200d", "\t", "\r\n", "    return", "\u05e9"):
        assert mark in joined
    assert len(long_text(96)) > 96
