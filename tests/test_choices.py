"""Discrete choices: seen, replayed, and held against the margin of the truth's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from twins import described, huggingface

from conformance.choices import Choice, chooses, doubled, error, flips, watched
from conformance.prompts import build

if TYPE_CHECKING:
    from pathlib import Path

VALID = torch.ones(1, 3, dtype=torch.bool)
SCORES = torch.tensor(
    [[0.5, 0.3, 0.2], [0.1, 0.5, 0.4], [0.3, 0.3001, 0.3999]], dtype=torch.float64
)


def choice(scores: torch.Tensor, k: int = 2) -> Choice:
    return Choice(scores, scores.topk(k).indices)


def test_the_same_choice_in_another_order_is_no_flip() -> None:
    truth = choice(SCORES)
    assert flips(truth, truth, VALID) is None
    turned = Choice(SCORES, truth.indices.flip(-1))
    assert flips(truth, turned, VALID) is None


def test_a_flip_is_measured_by_the_truth_s_margin() -> None:
    other = SCORES.clone()
    other[2, 0] = 0.3002  # from third to second, of scores at most 0.3999
    found = flips(choice(SCORES), choice(other), VALID)
    assert found is not None
    assert (found.tokens, found.of) == (1, 3)
    assert found.margin == pytest.approx(0.0001 / 0.3999)


def test_the_largest_margin_counts() -> None:
    other = SCORES[:, [2, 1, 0]]
    found = flips(choice(SCORES, 1), choice(other, 1), VALID)
    assert found is not None
    assert found.tokens == 2  # the second token's first choice stays
    assert found.margin == pytest.approx(0.3 / 0.5)


def test_what_padding_chooses_does_not_count() -> None:
    other = SCORES.clone()
    other[2, 0] = 0.3002
    valid = torch.tensor([[True, True, False]])
    assert flips(choice(SCORES), choice(other), valid) is None


def test_candidates_that_a_mask_forbids_are_alike() -> None:
    masked = SCORES.clone()
    masked[0, 1:] = -math.inf
    truth = Choice(masked, torch.tensor([[0, 1], [1, 2], [2, 1]]))
    own = Choice(masked, torch.tensor([[0, 2], [1, 2], [2, 1]]))
    assert flips(truth, own, VALID) is None
    forbidden = Choice(masked, torch.tensor([[1, 2], [1, 2], [2, 1]]))
    found = flips(truth, forbidden, VALID)
    assert found is not None
    assert found.margin == math.inf


def test_the_error_of_scores_is_relative_to_a_token_s_largest() -> None:
    other = SCORES.clone()
    other[1, 0] += 0.05
    assert error(choice(SCORES), choice(other), VALID) == pytest.approx(0.1)
    twice = doubled({"0:0": choice(other)})["0:0"]
    assert error(choice(SCORES), twice, VALID) == pytest.approx(0.1)
    assert math.isnan(error(choice(SCORES), choice(SCORES[:2]), VALID))


def _run(twin: str, cache: Path, **kwargs: Any) -> Any:
    model = huggingface(twin, cache)
    (prompt,), _ = build(model.dims, None, ("sixteen",))
    with watched(model, **kwargs) as watch:
        logits = model.run(prompt, lambda *_: None)
    return watch, logits


@pytest.mark.parametrize("twin", ["mixtral", "gpt-oss", "deepseek-v3", "jetmoe", "glm-moe-dsa"])
def test_every_router_s_choices_are_seen(twin: str, twin_cache: Path) -> None:
    watch, logits = _run(twin, twin_cache)
    fam, d = described(twin, twin_cache)
    layers = {int(key.split(":")[0]) for key in watch.seen}
    assert layers == {i for i in range(d.n_layers) if fam.of(i).moe or fam.of(i).indexed}
    again, same = _run(twin, twin_cache, replay=watch.seen)
    assert torch.equal(logits, same), "one's own choice changes nothing"
    assert not again.unmatched


def test_another_s_choice_is_followed(twin_cache: Path) -> None:
    watch, logits = _run("mixtral", twin_cache)
    key = "1:0"
    seen = watch.seen[key]
    others = seen.scores.topk(2, largest=False).indices
    again, changed = _run(
        "mixtral", twin_cache, replay={**watch.seen, key: Choice(seen.scores, others)}
    )
    assert not torch.equal(logits, changed)
    # What the model itself would have chosen is told all the same.
    assert torch.equal(again.seen[key].indices, seen.indices)


def test_a_choice_of_another_shape_is_not_replayed(twin_cache: Path) -> None:
    watch, logits = _run("mixtral", twin_cache)
    seen = watch.seen["1:0"]
    wider = Choice(torch.cat([seen.scores, seen.scores], dim=-1), seen.indices)
    again, same = _run("mixtral", twin_cache, replay={**watch.seen, "1:0": wider})
    assert again.unmatched == ["1:0"]
    assert torch.equal(logits, same)


def test_dense_models_choose_nothing(twin_cache: Path) -> None:
    assert not chooses(described("llama", twin_cache)[0])
    assert _run("llama", twin_cache)[0].seen == {}
