"""Where in a tensor a difference lives, in numbers and in words: heads, positions, rows, mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from conformance.bounds import MASKED_BELOW, SAME, UNDERFLOW
from conformance.compare import kept
from conformance.profiles import relative
from conformance.sites import parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

    from conformance.families import Dims

#: An axis of which more than this part is wrong is wrong everywhere, for a reader.
_MOST = 0.9
#: More indices than this are not listed one by one.
_LISTED = 6


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """The entries of one site that are wrong.

    Attributes:
        heads, positions, rows: indices along the head, position (query) and last axis; None
            where (nearly) all of them are wrong, or there is no such axis.
        sentence: the same in words; "" where the difference is everywhere.
        masked: whether the two sides mask different entries.
    """

    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    sentence: str = ""
    masked: bool = False


def find(
    site: str,
    truth: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor,
    allowed: float,
    dims: Dims,
    router: torch.Tensor | None = None,
) -> Whereabouts:
    """Where ``value`` differs from ``truth`` by more than ``allowed``.

    Args:
        truth, value: one site, along its axes.
        valid: bool [batch, pos], True at real tokens.
        allowed: relative, per row.
        router: the reference's router logits [token, expert] of the layer, to tell experts by
            the tokens that go to them.
    """

    where = parse(site)
    axes = where.axes
    bad = relative(site, truth, value, valid) > allowed
    if axes[0] == "token":
        bad, axes = bad.unflatten(0, tuple(valid.shape)), ("batch", "pos", *axes[1:])
    if where.kind in ("attn.scores", "attn.pattern"):
        window = None if where.layer is None else dims.windows[where.layer]
        mask = _mask(where.kind, truth, value, valid, window)
        if mask is not None:
            return mask
    words: list[str] = []
    heads = positions = rows = None
    head_axis = next((i for i, a in enumerate(axes) if a in ("head", "kv_head")), None)
    if head_axis is not None:
        wrong = _along(bad, head_axis)
        if len(wrong) < bad.shape[head_axis]:
            heads = tuple(wrong)
            name = "key/value head" if axes[head_axis] == "kv_head" else "head"
            words.append(f"{count(name, wrong)} only")
    at = axes.index("query") if "query" in axes else axes.index("pos")
    sequence, place = _places(bad, at, valid)
    if len(sequence) < valid.shape[0]:
        words.append(f"{count('sequence', sequence)} of the batch only")
    everywhere = sorted({int(p) for row in sequence for p in valid[row].nonzero()[:, 0]})
    if place and len(place) < len(everywhere):
        positions = tuple(place)
        words.append(_positions(place, everywhere))
    last = bad.ndim - 1
    if axes[last] in ("d_model", "d_mlp", "d_head", "d_head_v", "expert", "d_vocab"):
        wrong = _along(bad, last)
        if wrong and len(wrong) < _MOST * bad.shape[last]:
            rows = tuple(wrong)
            words.append(_elements(axes[last], wrong, bad.shape[last]))
    if router is not None and where.kind in ("mlp_out", "mlp.out"):
        told = _experts(bad.any(dim=-1), router, valid)
        words += [told] if told else []
    like = _resemblance(*_counted(site, truth, value, valid), axes, head_axis)
    words += [like] if like else []
    return Whereabouts(heads, positions, rows, ", ".join(words))


def _along(bad: torch.Tensor, axis: int) -> list[int]:
    others = [i for i in range(bad.ndim) if i != axis]
    found = bad.any(dim=others) if others else bad
    return [int(i) for i in found.nonzero()[:, 0]]


def _places(bad: torch.Tensor, at: int, valid: torch.Tensor) -> tuple[list[int], list[int]]:
    others = [i for i in range(1, bad.ndim) if i != at]
    table = bad.any(dim=others) if others else bad  # [batch, pos]
    table = table & valid.bool() if table.shape == valid.shape else table
    return _along(table, 0), _along(table, 1)


def _positions(wrong: Sequence[int], everywhere: Sequence[int]) -> str:
    tail = [p for p in everywhere if p >= wrong[0]]
    if wrong[-1] == everywhere[-1] and len(wrong) >= _MOST * len(tail) and len(tail) > 1:
        return f"from position {wrong[0]} on"
    head = [p for p in everywhere if p <= wrong[-1]]
    if wrong[0] == everywhere[0] and len(wrong) == len(head) and len(head) > 1:
        return f"up to position {wrong[-1]}"
    return f"{count('position', wrong)} only"


def _elements(axis: str, wrong: Sequence[int], size: int) -> str:
    if axis == "expert":
        return f"the logits of {count('expert', wrong)} only"
    if axis in ("d_head", "d_head_v"):
        return f"{count('dimension', wrong)} of the {size} of a head only"
    return f"{count('element', wrong)} of {axis} only"


def _experts(wrong: torch.Tensor, router: torch.Tensor, valid: torch.Tensor) -> str:
    """Which experts' tokens are wrong; "" where that does not tell them apart."""
    flat, real = wrong.reshape(-1), valid.reshape(-1)
    if bool((flat | ~real).all()) or not bool((flat & real).any()):
        return ""
    ranked = router.argsort(dim=-1, descending=True)
    for k in (1, 2, 4, 8):
        if k >= router.shape[-1]:
            break
        chosen = [{int(e) for e in row} for row in ranked[:, :k]]
        good = {e for t, c in enumerate(chosen) if real[t] and not flat[t] for e in c}
        guilty = {e for t, c in enumerate(chosen) if real[t] and flat[t] for e in c} - good
        if guilty and all(c & guilty for t, c in enumerate(chosen) if real[t] and flat[t]):
            return f"only tokens that the router sends to {count('expert', sorted(guilty))}"
    return ""


def _mask(
    kind: str, truth: torch.Tensor, value: torch.Tensor, valid: torch.Tensor, window: int | None
) -> Whereabouts | None:
    """What one side masks and the other does not; None if the masks are the same."""
    if kind == "attn.scores":
        ours, theirs = truth > MASKED_BELOW, value > MASKED_BELOW
    else:
        ours, theirs = truth > 0, value > 0
    if bool((value < 0).any()) and kind == "attn.pattern":
        return None  # not probabilities at all
    queries = valid[:, None, :, None]
    extra, missing = theirs & ~ours & queries, ours & ~theirs & queries
    if kind == "attn.pattern":  # what underflows on one side only is no mask
        extra, missing = extra & (value > UNDERFLOW), missing & (truth > UNDERFLOW)
    elif not bool(theirs[queries.expand_as(theirs)].logical_not().any()):
        return None  # the port shows scores before masking
    words = []
    for verb, entries, of in (
        ("attend to", extra, ~ours & queries),
        ("do not attend to", missing, ours & queries),
    ):
        if bool(entries.any()):
            words.append(f"{verb} {_keys(entries, of, valid, window)}")
    if not words:
        return None
    different = extra | missing
    heads = _along(different, 1)
    queries_wrong = _along(different, 2)
    only = f" of {count('head', heads)}" if len(heads) < different.shape[1] else ""
    return Whereabouts(
        tuple(heads) if len(heads) < different.shape[1] else None,
        tuple(queries_wrong),
        None,
        f"queries {_from(queries_wrong, different.shape[2])}{only} " + " and ".join(words),
        masked=True,
    )


def _from(queries: Sequence[int], size: int) -> str:
    if len(queries) == 1:
        return f"at position {queries[0]}"
    if len(queries) == size:
        return "at every position"
    if list(queries) == list(range(queries[0], size)):
        return f"at positions >= {queries[0]}"
    return f"at positions {listed(queries)}"


def _keys(
    entries: torch.Tensor, candidates: torch.Tensor, valid: torch.Tensor, window: int | None
) -> str:
    """Which keys, by their distance from the query.

    Args:
        entries: bool [batch, head, query, key], the ones to describe.
        candidates: the ones that could have been.
    """
    at = entries.nonzero()
    padded = ~valid[at[:, 0], at[:, 3]]
    back = (at[:, 2] - at[:, 3])[~padded]
    words = []
    ahead = sorted({int(-b) for b in back if b < 0})
    behind = sorted({int(b) for b in back if b >= 0})
    if ahead:
        words.append("the next key" if ahead == [1] else f"keys up to {ahead[-1]} ahead (later)")
    if behind:
        if len(behind) == 1:
            text = f"the key {behind[0]} back" if behind[0] else "their own key"
        else:
            text = f"keys {behind[0]} to {behind[-1]} back"
        if window is not None and (behind[0] == window or behind[-1] == window - 1):
            text += f": the edge of the window of {window}"
        words.append(text)
    if bool(padded.any()):
        words.append("keys that are padding")
    possible = candidates.nonzero()
    apart = set((at[:, 2] - at[:, 3]).tolist())
    same = sum(int(d) in apart for d in (possible[:, 2] - possible[:, 3]).tolist())
    irregular = "" if len(at) > same / 2 or bool(padded.any()) else ", irregularly"
    return " and ".join(words) + irregular


def _counted(
    site: str, truth: torch.Tensor, value: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in float64, with zeros at the entries that do not count."""
    import torch

    keep = kept(site, truth, valid)
    truth, value = truth.double(), value.double()
    if keep is None:
        return truth, value
    return torch.where(keep, truth, 0.0), torch.where(keep, value, 0.0)


def _resemblance(
    truth: torch.Tensor, value: torch.Tensor, axes: Sequence[str], head_axis: int | None
) -> str:
    """A plain relation between the two, if there is one: a factor, heads exchanged, a shift."""
    if not bool(truth.isfinite().all()) or not bool(value.isfinite().all()):
        return ""
    size = float(truth.norm())
    if size == 0.0:
        return ""
    if not bool((value != 0).any()):
        return "the port shows zeros"
    factor = float((truth * value).sum()) / size**2
    if abs(factor) > 0 and float((value - factor * truth).norm()) <= SAME * size * abs(factor):
        times = f"{factor:.6g}"
        return "" if times == "1" else f"the port's values are {times} times the reference's"
    if head_axis is not None:
        name = "key/value head" if axes[head_axis] == "kv_head" else "head"
        return _heads_exchanged(truth.movedim(head_axis, 0), value.movedim(head_axis, 0), name)
    if axes[:2] == ("batch", "pos") and truth.shape[1] > 2:
        if float((truth[:, :-1] - value[:, 1:]).norm()) <= SAME * size:
            return "each position has what the reference has at the one before it"
        if float((truth[:, 1:] - value[:, :-1]).norm()) <= SAME * size:
            return "each position has what the reference has at the one after it"
    return ""


def _heads_exchanged(truth: torch.Tensor, value: torch.Tensor, name: str = "head") -> str:
    size = [float(t.norm()) for t in truth]
    shows: dict[int, int] = {}
    for h in range(truth.shape[0]):
        same = [
            g
            for g in range(truth.shape[0])
            if size[g] > 0 and float((value[h] - truth[g]).norm()) <= SAME * size[g]
        ]
        if not same:
            return ""
        if h not in same:
            shows[h] = same[0]
    if not shows:
        return ""
    if len(shows) == 2 and all(shows.get(g) == h for h, g in shows.items()):
        first, second = sorted(shows)
        return f"{name}s {first} and {second} are exchanged"
    text = ", ".join(f"{name} {h} is the reference's {g}" for h, g in list(shows.items())[:4])
    return text + (", ..." if len(shows) > 4 else "")


def same_as(value: torch.Tensor, truths: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the tensor that ``value`` is, among tensors of its shape; None if none is."""
    import torch

    value = value.double()
    hidden = value < MASKED_BELOW
    for name, truth in truths.items():
        if truth.shape != value.shape or not torch.equal(truth < MASKED_BELOW, hidden):
            continue
        a, b = (torch.where(hidden, 0.0, t.double()) for t in (truth, value))
        size = float(a.norm())
        if 0 < size < float("inf") and float((a - b).norm()) <= SAME * size:
            return name
    return None


def matrix(expected: torch.Tensor, found: torch.Tensor, axes: Sequence[str]) -> Whereabouts:
    """Where a loaded weight differs from the checkpoint's.

    Args:
        expected, found: of the same shape.
        axes: what the dimensions are called, e.g. ``("head", "d_model", "d_head")``.
    """
    bad = expected.double() != found.double()
    number = int(bad.sum())
    if not number:
        return Whereabouts()
    wrong = {axis: _along(bad, axis) for axis in range(bad.ndim)}
    narrow = {a: w for a, w in wrong.items() if len(w) < _MOST * bad.shape[a]}
    heads = tuple(wrong[0]) if axes[:1] == ("head",) and 0 in narrow else None
    others = [a for a in narrow if axes[a] != "head"]
    rows = None
    if others:
        rows = tuple(wrong[min(others, key=lambda a: len(wrong[a]) / bad.shape[a])])
    if number == 1:
        text = f"one element, {[w[0] for w in wrong.values()]}"
    elif number == bad.numel():
        text = "every element"
    else:
        text = f"{number} of {bad.numel()} elements"
        words = [count(_NAMES.get(axes[a], f"{axes[a]} index"), w) for a, w in narrow.items()]
        text += (": " + ", ".join(words) + " only") if words else ""
    like = _matrix_like(expected.double(), found.double(), axes)
    return Whereabouts(heads, None, rows, text + (f"; {like}" if like else ""))


_NAMES = {"head": "head", "row": "row", "column": "column", "token": "token", "layer": "layer"}


def _matrix_like(expected: torch.Tensor, found: torch.Tensor, axes: Sequence[str]) -> str:
    if expected.ndim >= 2 and expected.shape[-1] == expected.shape[-2]:
        turned = expected.transpose(-1, -2)
        if bool((turned == found).all()):
            return "it is the checkpoint's matrix transposed"
    if expected.ndim == 3 and axes[0] == "head":
        at = axes.index("d_model") if "d_model" in axes else 1
        flat = [t.movedim(at, 0).reshape(t.shape[at], -1) for t in (expected, found)]
        if flat[0].shape[0] == flat[0].shape[1] and bool((flat[1] == flat[0].T).all()):
            return "it is the checkpoint's matrix transposed"
    size = float(expected.norm())
    if not bool((found != 0).any()):
        return "the port's is zero"
    factor = float((expected * found).sum()) / size**2 if size else 0.0
    if factor and float((found - factor * expected).norm()) <= SAME * size * abs(factor):
        times = f"{factor:.6g}"
        return "" if times == "1" else f"it is {times} times the checkpoint's"
    if expected.ndim and axes[0] == "head":
        return _heads_exchanged(expected, found)
    return ""


def count(name: str, indices: Iterable[int]) -> str:
    """``head 3``, ``heads 3 and 5``."""
    found = list(indices)
    return f"{name}{'' if len(found) == 1 else 's'} {listed(found)}"


def listed(indices: Sequence[int]) -> str:
    """``3``, ``3 and 5``, ``0 to 7``, ``1, 2, 4, ... (9 of them)``."""
    found = list(indices)
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]} to {found[-1]}"
    if len(found) > _LISTED:
        return ", ".join(map(str, found[:_LISTED])) + f", ... ({len(found)} of them)"
    if len(found) < 2:
        return ", ".join(map(str, found))
    return ", ".join(map(str, found[:-1])) + f" and {found[-1]}"
