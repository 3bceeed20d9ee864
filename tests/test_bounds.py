"""The numeric limits: their properties, and that no other module has any."""

from __future__ import annotations

import ast
import functools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import conformance
from conformance import bounds

PACKAGE = Path(conformance.__file__).parent

sizes = st.floats(0, 1e6)
dtypes = st.sampled_from(list(bounds.EPS))


@pytest.mark.parametrize("dtype", bounds.EPS)
def test_eps_is_torch_s(dtype: str) -> None:
    assert bounds.EPS[dtype] == torch.finfo(getattr(torch, dtype)).eps


def test_the_floor_lies_between_right_ports_and_the_smallest_fault() -> None:
    assert 5e-14 < bounds.SAME_FUNCTION_FLOOR < 1e-8 / 10


@given(spread=sizes, other=sizes)
def test_same_function(spread: float, other: float) -> None:
    allowed, source = bounds.same_function(spread)
    assert math.isfinite(allowed)
    assert allowed >= bounds.SAME_FUNCTION_FLOOR
    assert allowed >= min(spread, bounds.SAME_FUNCTION_CEILING)
    assert allowed <= bounds.SAME_FUNCTION_CEILING
    assert (bounds.same_function(other)[0] >= allowed) or other < spread
    assert source


@given(own=sizes, other=sizes, dtype=dtypes)
def test_same_precision(own: float, other: float, dtype: str) -> None:
    fail, warn, source = bounds.same_precision(own, dtype)
    assert 0 < warn < fail < math.inf
    assert fail >= own
    assert fail >= bounds.EPS[dtype]
    assert bounds.same_precision(other, dtype)[0] >= fail or other < own
    assert dtype in source


@given(own=sizes, dtype=dtypes)
def test_the_same_numbers_leave_less_room(own: float, dtype: str) -> None:
    narrow, _, source = bounds.same_precision(own, dtype, same_numbers=True)
    assert narrow <= bounds.same_precision(own, dtype)[0]
    # Rounding every entry once passes where the reference happens to be exact.
    assert narrow >= bounds.EPS[dtype]
    assert source


@given(own=sizes, dtype=dtypes)
def test_one_rounding_that_a_row_shares_is_told_from_none(own: float, dtype: str) -> None:
    least = bounds.EPS[dtype] / (4 * math.sqrt(3))  # rms, of a number just below a power of two
    allowed, source = bounds.shared_precision(own, dtype)
    assert allowed >= max(own, least / 2)
    assert bounds.shared_precision(0.0, dtype)[0] < least
    assert bounds.shared_precision(math.nan, dtype)[0] < least
    assert source


@given(own=sizes, dtype=dtypes)
def test_scores_change_places_up_to_twice_their_error(own: float, dtype: str) -> None:
    allowed, source = bounds.near_tie(own, dtype)
    assert allowed == 2 * bounds.same_precision(own, dtype)[0]
    assert "scores" in source


@pytest.mark.parametrize("undefined", [math.nan, math.inf])
def test_an_undefined_reference_does_not_widen_the_bound(undefined: float) -> None:
    assert bounds.same_function(undefined)[0] == bounds.SAME_FUNCTION_FLOOR
    for dtype in bounds.EPS:
        assert bounds.same_precision(undefined, dtype)[0] == bounds.same_precision(0.0, dtype)[0]


def test_masked_lies_past_any_real_score() -> None:
    for masked in (-math.inf, torch.finfo(torch.float16).min, -1e9):
        assert masked < bounds.MASKED_BELOW


#: Small numbers elsewhere, and why they are no tolerance: module -> values.
NOT_A_LIMIT = {
    "prove/bench.py": {1e-3, 1e-5, 0.03},  # tolerances of other suites, shown beside our verdicts
    # rms_norm_eps of a twin's config, and a multiplier of Falcon H1
    "checkpoints/twin_catalogue/llama.py": {1e-5, 1e-6},
    "checkpoints/twin_catalogue/multimodal.py": {1e-5},
    "checkpoints/twin_catalogue/dense.py": {1e-6},
    "checkpoints/twin_catalogue/recurrent.py": {0.0390625, 0.02, 1e-9},  # and limits of time steps
    "cli.py": {0.001},  # seconds
    "diagnose/anywhere.py": {0.005},  # the smallest rate of a dropout
    "diagnose/facts.py": {1e-5, 0.01, 0.044715},  # defaults of configs, constants of activations
    "diagnose/fit.py": {1e-5},  # the step of a derivative
    "diagnose/norms.py": {1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3},  # eps that people write
    "diagnose/rotary.py": {0.001},  # of yarn's ramp
    "isolation.py": {0.001},  # seconds
    "native/config.py": {1e-5},  # the eps of a format
    "report/pictures.py": {1e-18},  # where an axis begins
}
CLOSENESS = {"allclose", "isclose", "assert_close", "approx", "round_trip"}


@functools.cache
def trees() -> tuple[tuple[str, ast.AST], ...]:
    return tuple(
        (path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "bounds.py"
    )


def test_no_other_module_has_a_small_number() -> None:
    found = {
        (name, node.value)
        for name, tree in trees()
        for node in ast.walk(tree)
        if not name.startswith("faults/")  # how wrong a known-wrong port is made
        and isinstance(node, ast.Constant)
        and isinstance(node.value, float)
        and 0 < abs(node.value) < 0.05
    }
    allowed = {(name, value) for name, values in NOT_A_LIMIT.items() for value in values}
    assert found <= allowed, "a numeric limit belongs in conformance/bounds.py, with its source"
    assert found == allowed, "an entry of NOT_A_LIMIT is out of date"


def test_no_other_module_decides_closeness() -> None:
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and name != "prove/bench.py":  # as above
                called = ast.unparse(node.func).rsplit(".", 1)[-1]
                assert called not in CLOSENESS, f"{name}:{node.lineno}"
                keywords = {k.arg for k in node.keywords}
                assert not keywords & {"atol", "rtol"}, f"{name}:{node.lineno}"
