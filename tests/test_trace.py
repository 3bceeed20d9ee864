"""Traces on disk: what is written is read back, and damage is found."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from conformance.errors import TraceError
from conformance.trace import Trace, TraceWriter

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "bool"]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def write(here: Path, **tensors: torch.Tensor) -> Trace:
    with TraceWriter(here) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.finish({"number": 3, "text": "x"})
    return Trace(here)


def size(here: Path) -> int:
    return (here / "data.bin").stat().st_size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 5), (7,), (), (0, 4)], ids=str)
def test_round_trip(here: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values = (torch.randn(shape) * 10).to(getattr(torch, dtype))
    other = torch.arange(5)
    trace = write(here, first=other, values=values, last=other + 1)
    assert trace["values"].dtype == values.dtype
    assert trace["values"].shape == trace.shape("values") == values.shape
    assert torch.equal(trace["values"], values)
    assert torch.equal(trace["last"], other + 1)
    assert list(trace) == ["first", "values", "last"]
    assert "values" in trace
    assert "nothing" not in trace
    assert trace.facts == {"number": 3, "text": "x"}


def test_special_values_survive(here: Path) -> None:
    values = torch.tensor([float("inf"), float("-inf"), float("nan"), -0.0, 2.0**-1074])
    values = values.double()
    found = write(here, values=values)["values"]
    assert found.view(torch.int64).equal(values.view(torch.int64))


def test_layouts_in_memory_do_not_matter(here: Path) -> None:
    base = torch.randn(4, 6)
    views = {"t": base.T, "step": base[:, ::2], "wide": base[:1].expand(3, 6), "grad": base}
    views["grad"] = base.clone().requires_grad_()
    trace = write(here, **views)
    for name, view in views.items():
        assert torch.equal(trace[name], view), name


def test_one_tensor_under_two_names_is_kept_once(here: Path) -> None:
    values = torch.randn(1000)
    trace = write(here, a=values, b=values, c=values.view(1000))
    assert size(here) < 2 * 4000
    assert torch.equal(trace["b"], values)


def test_a_view_of_another_shape_is_another_tensor(here: Path) -> None:
    values = torch.randn(6, 6)
    trace = write(here, a=values, t=values.T, part=values[:3], flat=values.view(36))
    assert torch.equal(trace["t"], values.T)
    assert torch.equal(trace["part"], values[:3])
    assert trace.shape("flat") == (36,)


def test_a_change_in_place_is_told_apart(here: Path) -> None:
    values = torch.zeros(3)
    with TraceWriter(here) as writer:
        writer.add("before", values)
        values.add_(1)
        writer.add("after", values)
        writer.finish({})
    trace = Trace(here)
    assert trace["before"].tolist() == [0, 0, 0]
    assert trace["after"].tolist() == [1, 1, 1]


def test_an_address_used_again_is_not_taken_for_the_old_tensor(here: Path) -> None:
    with TraceWriter(here) as writer:
        for i in range(300):
            writer.add(f"{i}", torch.full((64,), float(i)))
        writer.finish({})
    trace = Trace(here)
    assert all(trace[f"{i}"].eq(i).all() for i in range(300))


def test_identities_are_forgotten_between_runs(here: Path) -> None:
    values = torch.zeros(100)
    with TraceWriter(here) as writer:
        writer.add("first", values)
        writer.next_run()
        values.data.fill_(1)  # does not count as a version
        writer.add("second", values)
        writer.finish({})
    assert Trace(here)["second"].sum() == 100


def test_a_name_appears_once(here: Path) -> None:
    with TraceWriter(here) as writer:
        writer.add("a", torch.ones(1))
        with pytest.raises(TraceError, match="a appeared twice"):
            writer.add("a", torch.ones(1))


def test_a_trace_can_be_read_while_it_grows(here: Path) -> None:
    with TraceWriter(here) as writer:
        writer.add("a", torch.ones(3))
        writer.finish({"sealed": 1})
        early = Trace(here)
        writer.add("b", torch.full((5,), 2.0))
        assert "b" not in early
        assert early["a"].tolist() == [1, 1, 1]
        writer.finish({"sealed": 2})
        late = Trace(here)
    assert late["a"].tolist() == [1, 1, 1]
    assert late["b"].tolist() == [2] * 5
    assert (early.facts["sealed"], late.facts["sealed"]) == (1, 2)


def test_an_unfinished_trace_is_refused(here: Path) -> None:
    with TraceWriter(here) as writer:
        writer.add("a", torch.ones(3))
    with pytest.raises(TraceError, match="not a finished trace") as caught:
        Trace(here)
    assert "delete" in caught.value.hint


@pytest.mark.parametrize("left", [0, 1, 39])
def test_a_truncated_trace_is_refused(here: Path, left: int) -> None:
    write(here, a=torch.ones(5, dtype=torch.float64))
    data = here / "data.bin"
    data.write_bytes(data.read_bytes()[:left])
    with pytest.raises(TraceError, match=f"holds {left} bytes, the index promises 40") as caught:
        Trace(here)
    assert "delete" in caught.value.hint


@pytest.mark.parametrize("text", ["", '{"entries": {"a"', "{}", "[]", '{"entries": {"a": {}}}'])
def test_a_damaged_index_is_refused(here: Path, text: str) -> None:
    write(here, a=torch.ones(5))
    (here / "index.json").write_text(text)
    with pytest.raises(TraceError):
        Trace(here)


def test_a_missing_data_file_is_refused(here: Path) -> None:
    write(here, a=torch.ones(5))
    (here / "data.bin").unlink()
    with pytest.raises(TraceError, match="not a finished trace"):
        Trace(here)


def test_a_missing_tensor_is_named(here: Path) -> None:
    trace = write(here, a=torch.ones(5))
    for look in (trace.shape, trace.__getitem__):
        with pytest.raises(TraceError, match=r"no blocks\.0\.attn\.q"):
            look("blocks.0.attn.q")


def test_an_empty_trace_is_a_trace(here: Path) -> None:
    assert list(write(here)) == []


def test_tensors_are_aligned(here: Path) -> None:
    write(here, a=torch.ones(3, dtype=torch.bool), b=torch.ones(1), c=torch.ones(2))
    entries = json.loads((here / "index.json").read_text())["entries"]
    assert all(e["offset"] % 64 == 0 for e in entries.values())
