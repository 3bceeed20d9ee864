"""Which entries of a site count: padding, masked scores, a constant per query."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.compare import kept, measure
from conformance.sites import GLOBAL_KINDS, KINDS

SIZE = {"batch": 2, "pos": 4, "query": 4, "key": 4, "token": 8}
ALL = torch.ones(2, 4, dtype=torch.bool)
LEFT = torch.tensor([[True] * 4, [False, False, True, True]])


def site(kind: str) -> str:
    return kind if kind in {k.name for k in GLOBAL_KINDS} else f"blocks.1.{kind}"


def values(kind: str, seed: int = 0) -> torch.Tensor:
    shape = [SIZE.get(axis, 3) for axis in KINDS[kind].axes]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(kind: str, tensor: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The tensor's entries at valid positions, looked up one position at a time."""
    axes = KINDS[kind].axes
    found = []
    for b in range(2):
        for p in range(4):
            if not valid[b, p]:
                continue
            if axes[0] == "token":
                found.append(tensor[4 * b + p])
            elif "query" in axes:
                found.append(tensor[b, :, p])
            else:
                found.append(tensor[b, p])
    return torch.stack(found).flatten()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_count_at_any_site(kind: str) -> None:
    truth = values(kind)
    keep = kept(site(kind), truth, LEFT)
    assert keep.shape == truth.shape
    assert int(keep.sum()) == rows(kind, truth, LEFT).numel()
    assert torch.equal(truth[keep].sort().values, rows(kind, truth, LEFT).sort().values)
    wrong = torch.where(keep, truth, math.nan)
    found = measure(site(kind), truth, wrong, LEFT)
    assert found.max_abs == 0
    assert found.count == int(keep.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_every_real_entry_counts(kind: str) -> None:
    truth = values(kind)
    for index in kept(site(kind), truth, LEFT).nonzero().tolist():
        moved = truth.clone()
        moved[tuple(index)] += 0.5
        found = measure(site(kind), truth, moved, LEFT)
        assert found.index == tuple(index)
        assert found.max_abs == pytest.approx(0.5)
        assert found.rel_max > 0


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.endswith("attn.scores")])
def test_without_padding_everything_counts(kind: str) -> None:
    assert kept(site(kind), values(kind), ALL) is None


@pytest.mark.parametrize(
    "masked", [-math.inf, torch.finfo(torch.float64).min, -1e9, torch.finfo(torch.float16).min]
)
@pytest.mark.parametrize("valid", [ALL, LEFT], ids=["whole", "padded"])
def test_scores_that_the_reference_masks_do_not_count(masked: float, valid: torch.Tensor) -> None:
    truth = values("attn.scores")
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    truth = truth.where(causal, masked)
    subject = truth.where(causal, -7.0)
    found = measure("blocks.0.attn.scores", truth, subject, valid)
    assert found.rel_max == found.rel_rms == 0
    assert found.count == 3 * sum(int(causal[p].sum()) for b, p in valid.nonzero().tolist())


def test_a_score_that_only_the_subject_masks_counts() -> None:
    truth = values("attn.scores")
    subject = truth.clone()
    subject[0, 1, 2, 0] = -1e9
    assert measure("blocks.0.attn.scores", truth, subject, ALL).max_abs > 1e8


@given(seed=st.integers(0, 50), masked=st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_constant_per_query_can_be_left_out(seed: int, masked: bool) -> None:
    truth = values("attn.scores", seed)
    if masked:
        truth = truth.where(torch.ones(4, 4, dtype=torch.bool).tril(), -math.inf)
    constant = 5 * values("attn.scores", seed + 1)[..., :1]
    at = "blocks.0.attn.scores"
    assert measure(at, truth, truth + constant, ALL).rel_max > 0
    loose = measure(at, truth, truth + constant, ALL, up_to_a_constant=True)
    assert loose.rel_max < 1e-14


def test_leaving_out_a_constant_leaves_everything_else() -> None:
    truth = values("attn.scores")
    moved = truth.clone()
    moved[0, 0, 3, 1] += 0.5  # one key only: no constant of the query
    found = measure("blocks.0.attn.scores", truth, moved, ALL, up_to_a_constant=True)
    assert found.max_abs == pytest.approx(0.375)
    nan = truth.clone()
    nan[0, 0, 3, 1] = math.nan
    assert math.isnan(
        measure("blocks.0.attn.scores", truth, nan, ALL, up_to_a_constant=True).rel_max
    )


def test_rows_are_positions_scores_heads_and_pattern_queries() -> None:
    """A row is the scale by which an entry is measured."""
    for kind, row in (
        ("resid_pre", (0, 2)),
        ("attn.q", (0, 2)),
        ("attn.scores", (0, 1)),
        ("attn.pattern", (0, 1, 2)),
        ("mlp.router_logits", (3,)),
    ):
        truth = values(kind)
        moved = truth.clone()
        moved[row] *= 1 + 1e-3
        found = measure(site(kind), truth, moved, ALL)
        assert found.rel_max == pytest.approx(1e-3), kind
        assert found.worst_row == row


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        measure("embed", values("embed"), values("embed")[:1], ALL)


def test_nothing_left_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        measure("embed", values("embed"), values("embed", 1), torch.zeros_like(ALL))
