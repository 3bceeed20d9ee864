"""What is freed goes back; what is mapped is let go of, and still there."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from conformance import memory, trace
from conformance.trace import Trace, TraceWriter


def written(directory: Path, count: int, size: int) -> Trace:
    with TraceWriter(directory) as writer:
        for index in range(count):
            writer.add(f"t{index}", torch.full((size,), float(index), dtype=torch.float64))
        writer.finish({})
    return Trace(directory)


def resident(kind: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(kind)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_mapped_trace_takes_no_more_than_its_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 1 << 20  # 8 MB each
    found = written(tmp_path / "t", 8, size)
    monkeypatch.setattr(trace, "MAPPED", 2 * 8 * size)
    before = resident("RssFile")
    kept = [found[f"t{index}"] for index in range(8) if float(found[f"t{index}"].sum()) >= 0]
    assert resident("RssFile") - before <= 4 * 8 * size
    memory.give_back()
    assert resident("RssFile") - before < 8 * size
    assert [float(t[-1]) for t in kept] == list(range(8))  # let go of, and still there


def test_what_cannot_appear_again_is_not_held(tmp_path: Path) -> None:
    value = torch.ones(3)
    with TraceWriter(tmp_path / "t") as writer:
        writer.add("scores", value, again=False)
        assert not writer._written
        writer.add("once", value)
        writer.add("twice", value)
        assert len(writer._written) == 1
        writer.finish({})
    made = Trace(tmp_path / "t")
    assert all(torch.equal(made[name], value) for name in ("scores", "once", "twice"))


def test_only_checkpoints_of_some_size_are_tidied_after(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\0" * 1000)
    assert not memory.worth_tidying(tmp_path)
    with file.open("ab") as stream:
        stream.truncate(memory.TIDIED)
    assert memory.worth_tidying(tmp_path)


def test_systems_that_cannot_return_memory_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: object) -> None:
        raise OSError

    memory._trim.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", none)
    memory.give_back()
    memory._trim.cache_clear()
