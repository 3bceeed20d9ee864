"""Promoted float64: no request for a narrower float is honoured, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from twins import huggingface

from conformance import precision
from conformance.checkpoints.twin_catalogue import TWINS
from conformance.precision import DTYPES, NARROW, promoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

X = torch.arange(6, dtype=torch.float64).reshape(2, 3)
F32, BF16 = torch.float32, torch.bfloat16

REQUESTS: dict[str, Callable[[], torch.Tensor]] = {
    "float()": lambda: X.float(),
    "half()": lambda: X.half(),
    "bfloat16()": lambda: X.bfloat16(),
    "to(dtype)": lambda: X.to(F32),
    "to(dtype=)": lambda: X.to(dtype=torch.bfloat16),
    "to(device, dtype)": lambda: X.to("cpu", torch.float16),
    "to(tensor)": lambda: X.to(torch.zeros(1, dtype=F32)),
    "type(dtype)": lambda: X.type(F32),
    "type(text)": lambda: X.type("torch.FloatTensor"),
    "type(bfloat16 text)": lambda: X.type("torch.BFloat16Tensor"),
    "type_as": lambda: X.type_as(torch.zeros(1, dtype=F32)),
    "softmax(dtype=)": lambda: torch.nn.functional.softmax(X, dim=-1, dtype=F32),
    "torch.softmax": lambda: torch.softmax(X, -1, F32),
    "Tensor.softmax": lambda: X.softmax(-1, dtype=BF16),
    "log_softmax": lambda: torch.log_softmax(X, -1, dtype=F32),
    "sum": lambda: X.sum(dtype=F32),
    "mean": lambda: X.mean(-1, dtype=F32),
    "cumsum": lambda: X.cumsum(0, dtype=F32),
    "zeros": lambda: torch.zeros(2, dtype=F32),
    "ones": lambda: torch.ones(2, dtype=BF16),
    "empty": lambda: torch.empty(2, dtype=torch.float16),
    "full": lambda: torch.full((2,), 1.0, dtype=F32),
    "full without dtype": lambda: torch.full((2,), 1.0),
    "zeros without dtype": lambda: torch.zeros(2),
    "zeros_like": lambda: torch.zeros_like(X, dtype=F32),
    "new_zeros": lambda: X.new_zeros(2, dtype=F32),
    "new_full": lambda: X.new_full((2,), 1.0, dtype=F32),
    "new_tensor": lambda: X.new_tensor([1.0], dtype=F32),
    "arange": lambda: torch.arange(0, 4, dtype=F32),
    "arange of floats": lambda: torch.arange(0.0, 4.0),
    "linspace": lambda: torch.linspace(0, 1, 4, dtype=F32),
    "eye": lambda: torch.eye(2, dtype=F32),
    "randn": lambda: torch.randn(2, dtype=F32),
    "tensor": lambda: torch.tensor([1.0, 2.0]),
    "tensor(dtype=)": lambda: torch.tensor([1, 2], dtype=F32),
    "tensor of float32 numpy": lambda: torch.tensor(np.ones(2, dtype=np.float32)),
    "from_numpy, cast": lambda: torch.from_numpy(np.ones(2, dtype=np.float32)).float(),
    "as_tensor": lambda: torch.as_tensor(np.ones(2, dtype=np.float32)),
    "asarray": lambda: torch.asarray(np.ones(2, dtype=np.float16)),
    "int().float()": lambda: X.long().float(),
    "true division of integers": lambda: torch.arange(4) / 3,
    "integers to(dtype)": lambda: torch.arange(4).to(F32),
    "Linear": lambda: torch.nn.Linear(2, 2, dtype=F32).weight,
    "Module.float": lambda: torch.nn.Linear(2, 2).float().weight,
    "Module.to": lambda: torch.nn.Linear(2, 2).to(BF16).weight,
    "rms norm": lambda: X.float() * torch.rsqrt(X.float().pow(2).mean(-1, keepdim=True) + 1e-6),
    "rotary": lambda: 1.0 / (10.0 ** (torch.arange(0, 4, 2, dtype=torch.int64).float() / 4)),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_every_request_gives_float64(request_: Callable[[], torch.Tensor]) -> None:
    with promoted(torch.float64):
        assert request_().dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32


def test_no_precision_is_lost_on_the_way() -> None:
    third = torch.tensor(1 / 3, dtype=torch.float64)
    with promoted(torch.float64):
        assert third.float().bfloat16().to(torch.float16).item() == 1 / 3
        assert torch.tensor(1 / 3, dtype=torch.float32).item() == 1 / 3


@pytest.mark.parametrize("name", ["long", "bool", "int"])
def test_other_dtypes_are_left_alone(name: str) -> None:
    with promoted(torch.float64):
        assert getattr(X, name)().dtype == getattr(torch.tensor([1.0]), name)().dtype
        assert torch.arange(3).dtype == torch.int64
        assert torch.zeros(2, dtype=torch.bool).dtype == torch.bool
        assert X.to(torch.int64).dtype == torch.int64


def test_nothing_is_left_behind() -> None:
    before = torch.get_default_dtype()
    with promoted(torch.float64):
        assert torch.get_default_dtype() == torch.float64
    assert torch.get_default_dtype() == before
    assert torch.zeros(1, dtype=torch.float32).dtype == torch.float32
    assert X.float().dtype == torch.float32


def test_nothing_is_left_behind_after_an_exception() -> None:
    with pytest.raises(RuntimeError, match="x"), promoted(torch.float64):
        raise RuntimeError("x")
    assert torch.get_default_dtype() == torch.float32
    assert torch.zeros(1).dtype == X.float().dtype == torch.float32


def test_an_inner_context_leaves_the_outer_one_in_force() -> None:
    with promoted(torch.float64):
        with promoted(torch.float64):
            pass
        with promoted(torch.float32):
            assert X.float().dtype == torch.float64
        assert torch.zeros(1).dtype == X.float().dtype == torch.float64
    assert X.float().dtype == torch.float32


@pytest.mark.parametrize("dtype", NARROW)
def test_other_dtypes_are_not_promoted(dtype: torch.dtype) -> None:
    with promoted(dtype):
        assert torch.get_default_dtype() == torch.float32
        assert X.to(dtype).dtype == dtype


def test_another_thread_is_not_promoted() -> None:
    found: list[torch.dtype] = []
    with promoted(torch.float64):
        thread = threading.Thread(target=lambda: found.append(X.float().dtype))
        thread.start()
        thread.join()
    assert found == [torch.float32]


def test_what_from_numpy_makes_is_seen_at_its_first_cast_only() -> None:
    """It asks no mode. No architecture of families.py uses it; this is to notice a change."""
    with promoted(torch.float64):
        assert torch.from_numpy(np.ones(2, dtype=np.float32)).dtype == torch.float32


def test_names_of_dtypes() -> None:
    assert {name: str(dtype) for name, dtype in DTYPES.items()} == {
        n: f"torch.{n}" for n in ("float64", "float32", "bfloat16", "float16")
    }


@pytest.mark.parametrize("ends", [[3, 7, 7, 10], [0, 0, 10, 10], [10, 10, 10, 10]], ids=str)
def test_grouped_mm_is_a_product_per_expert(ends: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(10, 5, generator=generator, dtype=torch.float64)
    b = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    expected = torch.zeros(10, 6, dtype=torch.float64)
    for row in range(10):
        expert = sum(row >= end for end in ends)
        for column in range(6):
            expected[row, column] = sum(a[row, k] * b[expert, k, column] for k in range(5))
    offs = torch.tensor(ends, dtype=torch.int32)
    with promoted(torch.float64):
        found = torch._grouped_mm(a, b, offs)
        by_name = torch._grouped_mm(a, b, offs=offs, out_dtype=torch.bfloat16)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(found, by_name)


def test_a_grouped_mm_of_another_shape_is_not_guessed() -> None:
    a = torch.zeros(2, 3, dtype=torch.float64)
    with promoted(torch.float64), pytest.raises(NotImplementedError, match="grouped_mm"):
        torch._grouped_mm(a, a)


@pytest.mark.parametrize("twin", TWINS)
def test_a_promoted_model_holds_nothing_narrow(twin: str, twin_cache: Path) -> None:
    model = huggingface(twin, twin_cache).model
    held = {
        **dict(model.named_parameters()),
        **dict(model.named_buffers()),
        **{
            f"{name}.{key}": value
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, torch.Tensor)
        },
    }
    assert {name for name, tensor in held.items() if tensor.dtype in NARROW} == set()
    for name, tensor in held.items():
        if "inv_freq" in name:
            # Made in float64, not widened from float32.
            assert not torch.equal(tensor.float().double(), tensor), name


# --- dtypes that are not promoted ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_experts_of_any_size_can_be_multiplied(dtype: torch.dtype) -> None:
    a, b = torch.randn(10, 12).to(dtype), torch.randn(3, 12, 7).to(dtype)
    ends = torch.tensor([3, 3, 10], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="16 bytes"):
        torch._grouped_mm(a, b, offs=ends)
    with promoted(dtype):
        found = torch._grouped_mm(a, b, offs=ends)
    assert found.dtype == dtype
    assert torch.equal(found, torch.cat([a[:3] @ b[0], a[3:] @ b[2]]))


@pytest.fixture
def mkldnn() -> Iterator[None]:
    before = torch._C._get_mkldnn_enabled()
    precision.settle_kernels.cache_clear()
    yield
    torch._C._set_mkldnn_enabled(before)
    precision.settle_kernels.cache_clear()


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_kernels_that_work_are_used(dtype: torch.dtype, mkldnn: None) -> None:
    precision._try_kernels(dtype)
    torch._C._set_mkldnn_enabled(True)
    assert precision.settle_kernels(dtype)
    assert torch._C._get_mkldnn_enabled()


def test_kernels_that_kill_a_process_are_left_out(
    mkldnn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_try_kernels", lambda _: os.kill(os.getpid(), signal.SIGILL))
    assert not precision.settle_kernels(BF16)
    assert not torch._C._get_mkldnn_enabled()
    assert (torch.ones(2, 2, dtype=BF16) @ torch.ones(2, 2, dtype=BF16)).sum() == 8
