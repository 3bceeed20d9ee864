"""Pure tensor -> numbers. Knows nothing of models, checks or bounds' policy.

All differences are computed in float64 whatever the inputs are in. NaN propagates: it makes a
measurement NaN, which no bound admits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from conformance.bounds import STANDARD_ERRORS, ZERO
from conformance.memory import LOGITS_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Entries of a pair handled at a time: they stay in a core's cache, and torch keeps to the calling
#: thread below its grain size (at::internal::GRAIN_SIZE, 32768), whose barriers cost more than the
#: arithmetic where cores are shared.
_CHUNK = 1 << 15


@dataclass(frozen=True, slots=True)
class Difference:
    """How far ``subject`` is from ``reference`` over the entries that count.

    Attributes:
        rel_max: the largest over rows of max|s - r| / max|r|; a row is the last dimension, or
            all dimensions after position for [batch, pos, head, d_head]. Dimensionless.
        rel_rms: ||s - r||_2 / ||r||_2 over all counted entries. Dimensionless.
        max_abs: max|s - r|, in the site's own units.
        mean_abs: mean|s - r|.
        mse: mean (s - r)^2.
        index: where max|s - r| is.
        reference: the reference's value there.
        subject: the subject's value there.
        count: entries counted.
        worst_row: the leading index of the row with the largest ``rel_max``.
    """

    rel_max: float
    rel_rms: float
    max_abs: float
    mean_abs: float
    mse: float
    index: tuple[int, ...]
    reference: float
    subject: float
    count: int
    worst_row: tuple[int, ...] = ()


def difference(
    reference: torch.Tensor,
    subject: torch.Tensor,
    keep: torch.Tensor | None = None,
    row_dims: int = 1,
    *,
    centre: bool = False,
) -> Difference:
    """Measure ``subject`` against ``reference``.

    Args:
        reference: any float tensor of at least one dimension.
        subject: a float tensor of exactly the same shape (nothing broadcasts).
        keep: bool tensor of the same shape; False entries are left out. None keeps all.
        row_dims: how many trailing dimensions make a row.
        centre: subtract each row's mean on both sides first.

    Raises:
        ValueError: the shapes differ, or nothing is kept.
    """
    if reference.shape != subject.shape:
        raise ValueError(f"shape {tuple(subject.shape)}, reference {tuple(reference.shape)}")
    count = reference.numel() if keep is None else int(keep.sum())
    if count == 0:
        raise ValueError("nothing to compare: every entry is masked out")
    width = math.prod(reference.shape[reference.ndim - row_dims :])
    r_rows, s_rows = reference.reshape(-1, width), subject.reshape(-1, width)
    k_rows = None if keep is None else keep.reshape(-1, width)
    row_d, size = (torch.zeros(r_rows.shape[0], dtype=torch.float64) for _ in range(2))
    total_abs, squares_d, squares_r = 0.0, 0.0, 0.0
    r_mean, s_mean = ((_row_means(x) if centre else None) for x in (r_rows, s_rows))
    worst = _Largest()
    for rows, columns in _tiles(r_rows.shape[0], width):
        r = r_rows[rows, columns].to(torch.float64)
        s = s_rows[rows, columns].to(torch.float64)
        if r_mean is not None and s_mean is not None:
            r, s = r - r_mean[rows], s - s_mean[rows]
        d, r_abs = (s - r).abs_(), r.abs()
        if k_rows is not None:
            drop = ~k_rows[rows, columns]
            d.masked_fill_(drop, 0.0)
            r_abs.masked_fill_(drop, 0.0)
        d_max, r_max = d.amax(1), r_abs.amax(1)
        if not math.isfinite(float((d_max + r_max).sum())):
            # Equal infinities are equal; their difference is NaN only by arithmetic. And an
            # infinity that both sides share has no size to measure its row by.
            d.masked_fill_(r == s, 0.0)
            r_abs.masked_fill_(r.isinf(), 0.0)
            d_max, r_max = d.amax(1), r_abs.amax(1)
        total_abs += float(d.sum())
        squares_d += float(torch.linalg.vector_norm(d)) ** 2
        squares_r += float(torch.linalg.vector_norm(r_abs)) ** 2
        row = int(d_max.argmax())  # the first NaN, if there is one
        worst.see(d_max[row : row + 1], (rows.start + row) * width + columns.start)
        if worst.fresh:
            at = worst.at + int(d[row].argmax())
        row_d[rows] = torch.maximum(row_d[rows], d_max)
        size[rows] = torch.maximum(size[rows], r_max)
    norm_d, norm = math.sqrt(squares_d), math.sqrt(squares_r)
    per_row = _Largest()
    # A row whose reference is zero has no scale of its own; the tensor's serves.
    whole = float(size.max())
    scale = torch.where(size > ZERO, size, whole if whole > ZERO else 1.0)
    per_row.see(row_d / scale, 0)
    index = _unravel(at, reference.shape)
    row = at // width
    return Difference(
        rel_max=per_row.value,
        rel_rms=norm_d / (norm if norm > ZERO else 1.0),
        max_abs=worst.value,
        mean_abs=total_abs / count,
        mse=norm_d**2 / count,
        index=index,
        reference=float(reference[index]) - (float(r_mean[row]) if r_mean is not None else 0.0),
        subject=float(subject[index]) - (float(s_mean[row]) if s_mean is not None else 0.0),
        count=count,
        worst_row=_unravel(per_row.at, reference.shape[: reference.ndim - row_dims]),
    )


@dataclass(frozen=True, slots=True)
class Shared:
    """The error that all entries of a row have in common: that of a factor of the whole row.

    Attributes:
        value: its root mean square over rows, relative; 0.0 where the estimate of its square is
            negative.
        certain: the same, less ``STANDARD_ERRORS`` standard errors that entries' own errors leave
            in that estimate.
        rows: how many rows could be told of.
    """

    value: float
    certain: float
    rows: int


def shared_error(
    reference: torch.Tensor,
    subject: torch.Tensor,
    keep: torch.Tensor | None = None,
    row_dims: int = 1,
    along: torch.Tensor | None = None,
) -> Shared:
    """Estimate the rms of the relative error that each row's entries share.

    Rounding each entry of a row leaves errors that know nothing of each other; rounding the one
    number by which a row is multiplied or divided (a norm's root mean square, a softmax's sum)
    moves all of them alike, subject = (1 + a) reference. The products of two different entries'
    errors, in proportion to the entries, therefore have the mean a^2, whatever each entry's own
    error is (a U-statistic: Hoeffding 1948); rows count by the pairs of entries that they have.

    Args:
        reference, subject, keep, row_dims: as for :func:`difference`.
        along: what one unit of the shared error changes, of the same shape; the reference itself
            unless given.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != subject.shape:
        raise ValueError(f"shape {tuple(subject.shape)}, reference {tuple(reference.shape)}")
    width = math.prod(reference.shape[reference.ndim - row_dims :])
    r = reference.reshape(-1, width).to(torch.float64)
    d = subject.reshape(-1, width).to(torch.float64) - r
    if along is not None:
        r = along.reshape(-1, width).to(torch.float64)
    if keep is not None:
        drop = ~keep.reshape(-1, width)
        r, d = r.masked_fill(drop, 0.0), d.masked_fill(drop, 0.0)
    size = (r * r).sum(1, keepdim=True)
    told = size[:, 0] > ZERO
    r, d, size = r[told], d[told], size[told]
    products, weights = d * r / size, r * r / size
    pairs = 1 - (weights * weights).sum(1)
    sums = products.sum(1) ** 2 - (products * products).sum(1)
    rows, total = int(pairs.numel()), float(pairs.sum())
    if rows < 2 or total <= 0:
        return Shared(0.0, 0.0, rows)
    mean = float(sums.sum()) / total
    # What errors that know nothing of each other would make of the sum. Each entry's own error is
    # what is left of it beside its row's share, corrected for what the entry itself has of that
    # (HC2: MacKinnon and White 1985). Where one makes up more than half of its row (a leverage to
    # be avoided: Huber, Robust Statistics, 1981, section 7.2), two explain each other away, and
    # the errors are taken as they are.
    left = (products - weights * products.sum(1, keepdim=True)) ** 2 / (1 - weights)
    few = weights.amax(1, keepdim=True) > 0.5
    squares = torch.where(few, products * products, left)
    variance = 2 * (squares.sum(1) ** 2 - (squares * squares).sum(1))
    error = math.sqrt(float(variance.sum())) / total
    return Shared(_root(mean), _root(mean - STANDARD_ERRORS * error), rows)


def _root(square: float) -> float:
    """NaN stays: no bound admits it."""
    return 0.0 if square <= 0 else math.sqrt(square)


def _row_means(matrix: torch.Tensor) -> torch.Tensor:
    """[rows, 1]."""
    return matrix.mean(1, keepdim=True, dtype=torch.float64)


def _tiles(rows: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Cover a [rows, width] matrix with parts of at most :data:`_CHUNK` entries."""
    high, wide = max(1, _CHUNK // max(width, 1)), max(1, min(width, _CHUNK))
    for start in range(0, rows, high):
        for left in range(0, width, wide):
            yield slice(start, start + high), slice(left, left + wide)


class _Largest:
    """The largest of many numbers seen in parts, and where; a NaN is larger than anything."""

    def __init__(self) -> None:
        self.value, self.at, self.fresh = -1.0, 0, False

    def see(self, part: torch.Tensor, offset: int) -> None:
        at = int(part.argmax())  # the first NaN, if there is one
        value = float(part.reshape(-1)[at])
        self.fresh = not math.isnan(self.value) and (math.isnan(value) or value > self.value)
        if self.fresh:
            self.value, self.at = value, offset + at


def _unravel(flat: int, shape: torch.Size) -> tuple[int, ...]:
    index: list[int] = []
    for size in reversed(shape):
        index.insert(0, flat % size)
        flat //= size
    return tuple(index)


@dataclass(frozen=True, slots=True)
class LogitMetrics:
    """What people quote about two sets of logits, over all positions that count.

    KL divergences are in nats, from log-softmax in float64: ``kl_rs`` is KL(reference ||
    subject), ``kl_sr`` the other way round (Kullback and Leibler 1951).
    """

    positions: int
    mse: float
    mean_abs: float
    max_abs: float
    max_abs_index: tuple[int, ...]
    max_rel: float
    cosine_min: float
    cosine_mean: float
    kl_rs_mean: float
    kl_rs_stderr: float
    kl_rs_p99: float
    kl_rs_max: float
    kl_sr_mean: float
    kl_sr_stderr: float
    kl_sr_p99: float
    kl_sr_max: float
    top1_agree: float
    top1_decided: int
    top1_decided_agree: float
    top5_overlap: float


def logit_metrics(
    reference: torch.Tensor, subject: torch.Tensor, valid: torch.Tensor
) -> LogitMetrics:
    """Compare logits [batch, pos, d_vocab] at every position where ``valid`` [batch, pos] holds.

    ``top1_decided`` counts positions where the reference's margin between its first and second
    token exceeds the largest difference there; ``top1_decided_agree`` is the fraction of those
    with the same first token (1.0 if there are none). Two logits moving towards each other can
    turn a margin of up to twice the difference, so below 1.0 it still says something.
    """
    r_all, s_all = reference[valid], subject[valid]
    n = r_all.shape[0]
    rows = max(1, LOGITS_AT_ONCE // reference.shape[-1])
    columns: list[torch.Tensor] = []
    total_sq = total_abs = 0.0
    largest, relative = _Largest(), _Largest()
    for start in range(0, n, rows):
        r = r_all[start : start + rows].to(torch.float64)
        s = s_all[start : start + rows].to(torch.float64)
        d = (s - r).abs()
        total_sq += float((d * d).sum())
        total_abs += float(d.sum())
        largest.see(d, start * r.shape[1])
        relative.see(d.amax(1) / r.abs().amax(1).clamp_min(ZERO), start)
        lr, ls = r.log_softmax(-1), s.log_softmax(-1)
        k = min(5, r.shape[1])
        top_r, top_s = r.topk(k).indices, s.topk(k).indices
        best2 = r.topk(min(2, r.shape[1])).values
        margin = best2[:, 0] - best2[:, -1]
        columns.append(
            torch.stack(
                [
                    torch.nn.functional.cosine_similarity(r, s, dim=-1),
                    (lr.exp() * (lr - ls)).sum(-1).clamp_min(0),
                    (ls.exp() * (ls - lr)).sum(-1).clamp_min(0),
                    (top_r[:, 0] == top_s[:, 0]).double(),
                    (margin > d.amax(1)).double(),
                    (top_r[:, :, None] == top_s[:, None, :]).any(-1).double().mean(-1),
                ]
            )
        )
    cos, kl_rs, kl_sr, top1, decided, top5 = torch.cat(columns, dim=1)
    first = valid.nonzero()[largest.at // reference.shape[-1]].tolist()
    n_decided = int(decided.sum())

    def stats(x: torch.Tensor) -> tuple[float, float, float, float]:
        stderr = float(x.std(correction=1)) / math.sqrt(n) if n > 1 else 0.0
        return float(x.mean()), stderr, float(x.quantile(0.99)), float(x.max())

    return LogitMetrics(
        n,
        total_sq / (n * reference.shape[-1]),
        total_abs / (n * reference.shape[-1]),
        largest.value,
        (*first, largest.at % reference.shape[-1]),
        relative.value,
        float(cos.min()),
        float(cos.mean()),
        *stats(kl_rs),
        *stats(kl_sr),
        float(top1.mean()),
        n_decided,
        float(top1[decided.bool()].mean()) if n_decided else 1.0,
        float(top5.mean()),
    )


def token_losses(
    logits: torch.Tensor, tokens: torch.Tensor, *, next_token: bool = True
) -> torch.Tensor:
    """Cross entropy in nats, [batch, pos - 1] (or [batch, pos]), in the logits' own dtype.

    Args:
        logits: [batch, pos, d_vocab].
        tokens: [batch, pos]; the token at p + 1 is the target of position p.
        next_token: if not, that at p is: a decoder's input is what lies one token back.
    """
    if next_token:
        logits, tokens = logits[:, :-1], tokens[:, 1:]
    batch, pos, d_vocab = logits.shape
    rows, targets = logits.reshape(-1, d_vocab), tokens.reshape(-1, 1)
    losses = rows.new_empty(rows.shape[0])
    step = max(1, LOGITS_AT_ONCE // d_vocab)
    for start in range(0, rows.shape[0], step):
        part = slice(start, start + step)
        losses[part] = -rows[part].log_softmax(-1).gather(-1, targets[part])[:, 0]
    return losses.reshape(batch, pos)
