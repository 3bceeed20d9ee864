"""Differences, logit metrics and losses, against formulas written the naive way."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conformance import metrics
from conformance.metrics import difference, logit_metrics, shared_error, token_losses

NAN, INF = math.nan, math.inf


def pair(seed: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(shape, generator=generator, dtype=torch.float64)
    return reference, reference + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@given(seed=st.integers(0, 99), shape=shapes, chunk=st.integers(1, 40), data=st.data())
@settings(max_examples=60, deadline=None)
def test_difference_is_the_naive_formula(
    seed: int, shape: tuple[int, ...], chunk: int, data: st.DataObject
) -> None:
    r, s = pair(seed, shape)
    row_dims = data.draw(st.integers(1, len(shape)), label="row_dims")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CHUNK", chunk)
        found = difference(r, s, None, row_dims)
    d = (s - r).abs()
    rows = range(len(shape) - row_dims, len(shape))
    ratio = d.amax(tuple(rows)) / r.abs().amax(tuple(rows))
    assert found.max_abs == float(d.max())
    assert found.mean_abs == pytest.approx(float(d.mean()))
    assert found.mse == pytest.approx(float((d * d).mean()))
    assert found.rel_rms == pytest.approx(float(d.norm() / r.norm()))
    assert found.rel_max == pytest.approx(float(ratio.max()))
    assert float(ratio[found.worst_row]) == pytest.approx(found.rel_max)
    assert float(d[found.index]) == found.max_abs
    assert (found.reference, found.subject) == (float(r[found.index]), float(s[found.index]))
    assert found.count == r.numel()


@given(seed=st.integers(0, 99), chunk=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_masked_entries_do_not_count(seed: int, chunk: int) -> None:
    r, s = pair(seed, (3, 4, 5))
    keep = torch.rand(r.shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.6
    keep[0, 0, 0] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CHUNK", chunk)
        found = difference(r, s, keep)
        # Whatever is behind the mask, even no number at all, changes nothing.
        poisoned = difference(r.where(keep, tensor(NAN)), s.where(keep, tensor(INF)), keep)
    d = (s - r).abs()[keep]
    assert found.count == int(keep.sum())
    assert found.max_abs == float(d.max())
    assert keep[found.index]
    assert found.mean_abs == pytest.approx(float(d.mean()))
    assert found.rel_rms == pytest.approx(float(d.norm() / r[keep].norm()))
    assert poisoned == found


@given(where=st.integers(0, 23), side=st.sampled_from(["reference", "subject", "both"]))
def test_nan_anywhere_makes_every_number_nan(where: int, side: str) -> None:
    r, s = pair(0, (4, 6))
    for name, values in (("reference", r), ("subject", s)):
        if side in (name, "both"):
            values.view(-1)[where] = NAN
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CHUNK", 6)
        found = difference(r, s)
    numbers = (found.rel_max, found.rel_rms, found.max_abs, found.mean_abs, found.mse)
    assert all(math.isnan(n) for n in numbers)
    assert found.index == (where // 6, where % 6)
    assert not any(n <= INF for n in numbers)  # the form in which every bound is tested


def test_nan_equal_to_itself_is_not_a_pass() -> None:
    same = tensor(1.0, NAN)
    assert math.isnan(difference(same, same).rel_max)


def test_equal_infinities_are_equal() -> None:
    found = difference(tensor(INF, -INF, 2.0), tensor(INF, -INF, 2.0).clone())
    assert found.rel_max == found.rel_rms == found.max_abs == 0.0


def test_an_infinity_does_not_hide_its_row() -> None:
    found = difference(tensor(INF, 1.0, 2.0), tensor(INF, 1.0, 3.0))
    assert found.rel_max == pytest.approx(0.5)
    assert found.rel_rms == pytest.approx(1 / math.sqrt(5))


@pytest.mark.parametrize(("reference", "subject"), [(INF, 1.0), (1.0, INF), (INF, -INF)], ids=str)
def test_an_infinity_on_one_side_fails_every_bound(reference: float, subject: float) -> None:
    found = difference(tensor(reference, 1.0), tensor(subject, 1.0))
    assert found.max_abs == INF
    assert not found.rel_max < INF
    assert not found.rel_rms < INF


def test_a_zero_row_is_measured_by_the_scale_of_the_tensor() -> None:
    found = difference(tensor(0.0, 0.0, 4.0, 2.0).view(2, 2), tensor(0.0, 1.0, 4.0, 2.0).view(2, 2))
    assert found.rel_max == 0.25
    assert found.worst_row == (0,)


def test_a_zero_tensor_is_measured_absolutely() -> None:
    found = difference(torch.zeros(2, 2), torch.full((2, 2), 1e-3))
    assert found.rel_max == pytest.approx(1e-3)
    assert found.rel_rms > 0


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (3,), (), (3, 3, 1)], ids=str)
def test_nothing_broadcasts(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        difference(torch.ones(3, 3), torch.ones(shape))


@pytest.mark.parametrize("equal", [True, False])
def test_nothing_kept_is_no_comparison(equal: bool) -> None:
    other = torch.ones(2, 2) if equal else torch.zeros(2, 2)
    with pytest.raises(ValueError, match="nothing to compare"):
        difference(torch.ones(2, 2), other, torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="nothing to compare"):
        difference(torch.ones(0, 2), torch.ones(0, 2))


def test_the_difference_of_narrow_tensors_is_taken_in_float64() -> None:
    r = torch.tensor([1.0, 3.0e38], dtype=torch.float32)
    s = torch.tensor([1.0, -3.0e38], dtype=torch.float32)
    assert difference(r, s).max_abs == 2 * float(r[1])
    half = difference(torch.ones(3, dtype=torch.float64), torch.full((3,), 1.5).bfloat16())
    assert half.rel_max == 0.5


def test_the_worst_of_several_chunks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CHUNK", 8)  # two rows of four
    r = torch.ones(7, 4, dtype=torch.float64)
    for at in [(0, 0), (1, 3), (2, 0), (5, 3), (6, 0), (6, 3)]:
        s = r.clone()
        s[at] = 3.0
        found = difference(r, s)
        assert (found.index, found.worst_row, found.max_abs) == (at, at[:1], 2.0)


def logits(seed: int, vocab: int = 11) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r, s = pair(seed, (2, 4, vocab))
    valid = torch.ones(2, 4, dtype=torch.bool)
    valid[1, 2:] = False
    return 3 * r, 3 * s, valid


@given(seed=st.integers(0, 99), chunk=st.integers(1, 60), vocab=st.integers(2, 12))
@settings(max_examples=25, deadline=None)
def test_logit_metrics_are_the_naive_formulas(seed: int, chunk: int, vocab: int) -> None:
    r, s, valid = logits(seed, vocab)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CHUNK", chunk)
        found = logit_metrics(r, s, valid)
    rv, sv = r[valid], s[valid]
    d = (sv - rv).abs()
    p, q = rv.softmax(-1), sv.softmax(-1)
    kl_rs, kl_sr = (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)
    cosine = (rv * sv).sum(-1) / (rv.norm(dim=-1) * sv.norm(dim=-1))
    k = min(5, vocab)
    top_r, top_s = rv.argsort(-1, descending=True)[:, :k], sv.argsort(-1, descending=True)[:, :k]
    overlap = [
        len(set(a) & set(b)) / k for a, b in zip(top_r.tolist(), top_s.tolist(), strict=True)
    ]
    expected = {
        "positions": 6,
        "mse": float((d**2).mean()),
        "mean_abs": float(d.mean()),
        "max_abs": float(d.max()),
        "max_rel": float((d.amax(-1) / rv.abs().amax(-1)).max()),
        "cosine_min": float(cosine.min()),
        "cosine_mean": float(cosine.mean()),
        "top1_agree": float((rv.argmax(-1) == sv.argmax(-1)).double().mean()),
        "top5_overlap": sum(overlap) / 6,
    }
    for name, kl in (("kl_rs", kl_rs), ("kl_sr", kl_sr)):
        expected |= {
            f"{name}_mean": float(kl.mean()),
            f"{name}_stderr": float(kl.std()) / math.sqrt(6),
            f"{name}_p99": float(kl.quantile(0.99)),
            f"{name}_max": float(kl.max()),
        }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9, abs=1e-12), name
    at = found.max_abs_index
    assert valid[at[:2]]
    assert float((s - r)[at].abs()) == found.max_abs


@given(seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_kl_is_never_negative_and_zero_for_equal_distributions(seed: int) -> None:
    r, s, valid = logits(seed)
    found = logit_metrics(r, r + 1e-9 * (s - r), valid)
    assert found.kl_rs_mean >= 0
    assert found.kl_sr_mean >= 0
    shifted = logit_metrics(r, r + 7.0, valid)  # softmax does not see a constant
    assert shifted.kl_rs_max == pytest.approx(0, abs=1e-14)
    same = logit_metrics(r, r.clone(), valid)
    assert (same.kl_rs_max, same.kl_sr_max, same.max_abs, same.mse) == (0, 0, 0, 0)
    assert (same.top1_agree, same.top5_overlap) == (1, 1)
    assert same.cosine_min == pytest.approx(1)


def test_positions_without_a_clear_winner_do_not_decide_top1() -> None:
    clear, tie, turned = [4.0, 1.0, 0.0], [2.0, 1.9, 0.0], [1.0, 0.0, 0.0]
    r = torch.tensor([[clear, tie, turned]], dtype=torch.float64)
    s = torch.tensor([[[4.1, 1.0, 0.0], [1.9, 2.0, 0.0], [0.0, 1.0, 0.0]]], dtype=torch.float64)
    found = logit_metrics(r, s, torch.ones(1, 3, dtype=torch.bool))
    assert found.top1_agree == pytest.approx(1 / 3)
    assert found.top1_decided == 1  # the clear one: margin 3, difference 0.1
    assert found.top1_decided_agree == 1.0


def test_no_decided_position_is_said_so() -> None:
    r = torch.tensor([[[1.0, 0.0]]])
    found = logit_metrics(r, -r, torch.ones(1, 1, dtype=torch.bool))
    assert (found.positions, found.top1_decided, found.top1_agree) == (1, 0, 0.0)


@pytest.mark.parametrize("position", [0, 3])
def test_nan_logits_show_in_every_distance(position: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CHUNK", 11)
    r, s, valid = logits(0)
    s[0, position, 5] = NAN
    found = logit_metrics(r, s, valid)
    for name in ("mse", "mean_abs", "max_abs", "max_rel", "cosine_min", "kl_rs_mean", "kl_sr_max"):
        assert math.isnan(getattr(found, name)), name


@given(seed=st.integers(0, 99), batch=st.integers(1, 3), pos=st.integers(2, 6))
@example(seed=0, batch=1, pos=1)
@settings(max_examples=15, deadline=None)
def test_token_losses_are_cross_entropy(seed: int, batch: int, pos: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = 5 * torch.randn(batch, pos, 9, generator=generator, dtype=torch.float64)
    tokens = torch.randint(9, (batch, pos), generator=generator)
    found = token_losses(values, tokens)
    expected = torch.nn.functional.cross_entropy(
        values[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none"
    )
    assert found.shape == (batch, pos - 1)
    assert found.dtype == values.dtype
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_centring_takes_each_row_s_mean_from_both_sides() -> None:
    torch.manual_seed(0)
    reference = torch.randn(2, 3, 5, dtype=torch.float64)
    moved = reference + torch.randn(2, 3, 1, dtype=torch.float64)
    assert difference(reference, moved, centre=True).rel_max < 1e-14
    assert difference(reference, moved).rel_max > 1e-2
    moved[1, 2, 4] += 0.5
    found = difference(reference, moved, centre=True)
    by_hand = [x - x.mean(-1, keepdim=True) for x in (reference, moved)]
    assert found.index == (1, 2, 4)
    assert found.reference == pytest.approx(float(by_hand[0][1, 2, 4]))
    assert found.subject == pytest.approx(float(by_hand[1][1, 2, 4]))
    assert found.rel_rms == pytest.approx(difference(*by_hand).rel_rms)


@pytest.mark.parametrize("width", [3, 32768, 40000, 70001])
def test_rows_wider_than_a_part_are_measured_whole(width: int) -> None:
    torch.manual_seed(0)
    reference = torch.randn(3, width, dtype=torch.float64)
    subject = reference.clone()
    subject[1, width - 1] += 10.0
    subject[2, 0] += 1.0
    found = difference(reference, subject)
    assert found.index == (1, width - 1)
    assert found.max_abs == pytest.approx(10.0)
    assert found.worst_row == (1,)
    assert found.rel_max == pytest.approx(10.0 / float(reference[1].abs().max()))
    assert found.mse == pytest.approx(101.0 / (3 * width))
    assert found.mean_abs == pytest.approx(11.0 / (3 * width))


# --- what a row's entries share ----------------------------------------------------------------


def rows_of(rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(7)).double()


def noise(like: torch.Tensor, seed: int = 8) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("width", [8, 48, 500])
def test_errors_of_each_entry_s_own_are_not_shared(width: int) -> None:
    truth = rows_of(100, width)
    found = shared_error(truth, truth * (1 + 1e-3 * noise(truth)))
    assert found.certain == 0.0
    assert found.value < 1e-3


@pytest.mark.parametrize("width", [8, 48, 500])
def test_a_factor_of_the_whole_row_is_found(width: int) -> None:
    truth = rows_of(100, width)
    common = noise(truth[:, :1])
    found = shared_error(truth, truth * (1 + 1e-3 * common + 1e-3 * noise(truth)))
    size = 1e-3 * float(common.square().mean().sqrt())
    assert found.value == pytest.approx(size, rel=0.25)
    assert 0.5 * size < found.certain < found.value
    assert found.rows == 100


@pytest.mark.parametrize("width", [2, 3, 10])
def test_entries_that_make_up_a_row_do_not_explain_each_other_away(width: int) -> None:
    """A pattern of few keys, rounded entry by entry, shares nothing, whatever the seed.

    Of rows of two, 26 in a hundred draws passed for certain when the errors' variance was taken
    from what is left of each entry beside its row's share.
    """
    for seed in range(100):
        draw = torch.Generator().manual_seed(seed)
        truth = torch.randn(96, width, generator=draw, dtype=torch.float64).softmax(-1)
        assert shared_error(truth, truth.to(torch.bfloat16).double()).certain == 0.0


def test_a_factor_of_one_entry_alone_is_no_row_s() -> None:
    """A pattern that is nearly all on one key tells nothing of its sum."""
    truth = torch.full((100, 9), 1e-6, dtype=torch.float64)
    truth[:, 3] = 1.0
    assert shared_error(truth, truth * (1 + 1e-3 * noise(truth))).certain == 0.0
    alone = torch.zeros(100, 9, dtype=torch.float64)
    alone[:, 3] = 1.0
    assert shared_error(alone, alone * 1.001).value == 0.0


def test_entries_that_do_not_count_share_nothing() -> None:
    truth = rows_of(20, 10)
    wrong = truth.clone()
    wrong[:10] *= 1.5
    keep = torch.ones_like(truth, dtype=torch.bool)
    keep[:10] = False
    found = shared_error(truth, wrong, keep)
    assert (found.value, found.rows) == (0.0, 10)


def test_a_change_along_something_else_is_found() -> None:
    truth = rows_of(100, 12)
    across = noise(truth)
    turned = truth + 1e-3 * across
    assert shared_error(truth, turned, along=across).value == pytest.approx(1e-3)
    assert shared_error(truth, turned).value < 5e-4


def test_nan_is_shared_by_all() -> None:
    truth = rows_of(20, 10)
    wrong = truth.clone()
    wrong[3, 3] = math.nan
    assert math.isnan(shared_error(truth, wrong).certain)


def test_shared_errors_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        shared_error(torch.zeros(2, 3), torch.zeros(3, 2))
