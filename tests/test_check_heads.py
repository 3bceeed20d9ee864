"""``heads`` computes ``detect_head``'s scores, and a circuit, from the reference's own run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import twins

from conformance.experiments.base import Apparatus
from conformance.experiments.heads import OBJECTS, Told, _circuit, _told, detections, patched
from conformance.faults import CATALOGUE
from conformance.faults.detection import FAULTS
from conformance.prompts import Prompt

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.prove.bench import Bench


def test_where_each_kind_of_head_looks() -> None:
    found = detections(torch.tensor([7, 8, 7, 8]))
    assert found["previous_token_head"].nonzero().tolist() == [[1, 0], [2, 1], [3, 2]]
    assert found["duplicate_token_head"].nonzero().tolist() == [[2, 0], [3, 1]]
    assert found["induction_head"].nonzero().tolist() == [[2, 1], [3, 2]]


def test_a_right_port_passes(twin_cache: Path) -> None:
    model = twins.twin_model("gemma2", prompts=("sixteen",))
    record = twins.judge(model, "bridge", twin_cache, checks=("heads",))["heads"]
    assert record["outcome"] == "passed", record["reason"]
    found = record["metrics"]["induction"]
    assert found["correlation"] == pytest.approx(1)
    assert found["reference"] == found["subject"]
    assert "learned" in record["metrics"]["not_applicable"]["facts and indirect objects"]


class _Words:
    """A tokenizer that knows every word."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [4 + sum(map(ord, word)) % 90 for word in text.split()]}


def _told_of(cache: Path) -> tuple[Apparatus, Told]:
    model = twins.huggingface("llama", cache)

    class Large(Apparatus):
        """As if the twin had learned a language."""

        @property
        def scope(self):  # type: ignore[no-untyped-def]
            from dataclasses import replace

            return replace(super().scope, large=True)

    on = Large(model, {}, cache, _Words())
    told = _told(on)
    assert isinstance(told, Told)
    return on, told


def test_a_circuit_of_the_reference(twin_cache: Path) -> None:
    on, told = _told_of(twin_cache)
    found = dict(_circuit(on, told))
    d = on.model.dims
    assert found["curve"].shape == (d.n_layers + 1,)
    logits = on.model.run(Prompt("fact", told.fact), lambda *_: None)
    last = logits[0, -1].log_softmax(-1)[told.answer]
    assert float(found["curve"][-1]) == pytest.approx(float(last), rel=1e-12)
    assert found["attribution"].shape == (d.n_layers, d.n_heads, len(OBJECTS))
    assert found["patched"].shape == (len(on.scope.layers), d.n_heads)


def test_a_head_patched_with_its_own_value_changes_nothing(twin_cache: Path) -> None:
    on, told = _told_of(twin_cache)
    seen: dict[str, torch.Tensor] = {}
    second = Prompt("objects", told.objects[1:2])
    logits = on.model.run(second, lambda name, t: seen.update({name: t.clone()}))[0, -1]
    right, wrong = int(told.right[1]), int(told.wrong[1])
    same = patched(
        lambda prompt, edits: on.model.run(prompt, lambda *_: None, edits=edits),
        told.objects,
        1,
        seen["blocks.1.attn.z"][0],
        (right, wrong),
    )
    assert torch.allclose(same, logits[right] - logits[wrong], rtol=1e-10)


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Bench:
    from conformance.prove.bench import Bench

    return Bench.load(twins.twin_model("llama", prompts=("sixteen",)), "bridge", twin_cache)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_faults_are_caught_and_named(fault: object, bench: Bench) -> None:
    found = CATALOGUE[fault.name]  # type: ignore[attr-defined]
    assert bench.provable(found)
    proof = bench.prove(found)
    assert proof.caught, proof
    assert proof.site_named, proof
    assert proof.checks == ("heads",)
