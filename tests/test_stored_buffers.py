"""Buffers that a checkpoint stores are weights: they are read, listed and compared as such."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import twins

from conformance.implementations.base import stored_buffers

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.prove.bench import Bench

BIAS = "model.layers.{}.mlp.e_score_correction_bias"


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Bench:
    from conformance.prove.bench import Bench

    return Bench.load(
        twins.twin_model("minimax-m2", prompts=("two",)), "bridge", twin_cache, prompts=("two",)
    )


def test_only_numbers_that_are_stored_are_listed() -> None:
    module = torch.nn.Module()
    module.register_buffer("stored", torch.zeros(3))
    module.register_buffer("table", torch.zeros(3), persistent=False)
    module.register_buffer("mask", torch.zeros(3, dtype=torch.bool))
    outer = torch.nn.Module()
    outer.add_module("inner", module)
    assert list(stored_buffers(outer)) == ["inner.stored"]


def test_the_reference_lists_them_and_they_are_drawn(twin_cache: Path) -> None:
    parameters = twins.huggingface("minimax-m2", twin_cache).parameters()
    for layer in range(3):
        assert bool((parameters[BIAS.format(layer)] != 0).all())


def test_one_that_differs_is_found(bench: Bench) -> None:
    name, buffer = list(bench.exact.raw_buffers().items())[1]
    assert name == BIAS.format(1)
    kept = buffer.clone()
    buffer[2] += 1e-3
    try:
        running, _ = bench._begin("float64")
        (check,) = (c for c in running.checks if c.name == "weights")
        found = check.comparisons
        assert [c.site for c in found if not c.ok] == [name]
    finally:
        buffer.copy_(kept)
