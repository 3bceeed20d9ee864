"""Precision in the dtypes that users run: lost upcasts fail, near-ties and overflows do not."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from torch.overrides import TorchFunctionMode
from twins import checkpoint, judge, twin_model

from conformance import own_error
from conformance.checkpoints.twin_catalogue import TWINS
from conformance.checks.choosing import FLIPS
from conformance.reference import Reference, ensure
from conformance.spec import ModelSpec, PathSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conformance.checks.base import PassMode
    from conformance.prove.bench import Bench
    from conformance.records import Comparison

PROMPTS = ("sixteen", "padded_left", "long")


@functools.cache
def bench(twin: str, dtype: str, cache: Path) -> Bench:
    from conformance.prove.bench import Bench

    return Bench.load(twin_model(twin, dtype=dtype, prompts=PROMPTS), "bridge", cache)


# --- lost upcasts -------------------------------------------------------------------------------

LOST = (
    ("llama", "bfloat16", "norm_upcast_lost"),
    ("llama", "bfloat16", "softmax_upcast_lost"),
    ("llama", "bfloat16", "rotary_upcast_lost"),
    ("llama", "float16", "norm_upcast_lost"),
    ("llama", "float16", "softmax_upcast_lost"),
    ("llama", "float16", "rotary_upcast_lost"),
    ("gpt2", "bfloat16", "norm_upcast_lost"),
)


@pytest.mark.parametrize(("twin", "dtype", "fault"), LOST, ids=str)
def test_a_lost_upcast_fails_where_it_is_lost(
    twin: str, dtype: str, fault: str, twin_cache: Path
) -> None:
    from conformance.faults import CATALOGUE

    on = bench(twin, dtype, twin_cache)
    assert on.provable(CATALOGUE[fault])
    found = on.prove(CATALOGUE[fault])
    assert found.caught, "same function must hold and same precision must fail"
    assert found.site_named, f"{found.named}, not {found.site_true}"
    assert found.checks == ("components",)


@pytest.mark.parametrize(("twin", "dtype"), sorted({(t, d) for t, d, _ in LOST}))
def test_the_port_as_it_is_passes(twin: str, dtype: str, twin_cache: Path) -> None:
    port = bench(twin, dtype, twin_cache).unfaulted()
    assert port.checks == ()
    assert port.alarms == ()


def test_an_upcast_can_be_lost_only_where_there_is_one(twin_cache: Path) -> None:
    from conformance.faults import CATALOGUE

    wide = bench("llama", "float32", twin_cache)
    assert not wide.provable(CATALOGUE["norm_upcast_lost"])
    assert wide.provable(CATALOGUE["norm_in_bfloat16"])
    narrow = bench("llama", "bfloat16", twin_cache)
    assert not narrow.provable(CATALOGUE["norm_in_bfloat16"])
    assert bench("llama", "float16", twin_cache).provable(CATALOGUE["norm_in_bfloat16"])


# --- choices of experts ---------------------------------------------------------------------------


class _Turned(TorchFunctionMode):
    """Chooses the first expert left out instead of the last one chosen, for one token."""

    def __init__(self, pick: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._pick, self.turned = pick, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.topk and args[0].ndim == 2:
            scores, k = args[0].clone(), args[1]
            values, order = scores.sort(-1, descending=True)
            token = int(self._pick(values[:, k - 1] - values[:, k]))
            last, first = order[token, k - 1], order[token, k]
            scores[token, last], scores[token, first] = values[token, k], values[token, k - 1]
            self.turned += 1
            args = (scores, *args[1:])
        return func(*args, **kwargs)


def _judged(on: Bench, mode: TorchFunctionMode) -> tuple[list[Comparison], list[Any]]:
    """What the checks say with another choice in every router, and what is told of it."""
    from conformance.checks import registry
    from conformance.checks.base import Pass
    from conformance.engine import Running, run_passes

    subject = on.used

    @contextlib.contextmanager
    def enter() -> Iterator[None]:
        with mode:
            yield

    running = Running([registry()[name]() for name in ("activations", "components")])
    (prompt,) = (p for p in on.reference.prompts if p.name == "sixteen")
    subject.extra.append(enter)
    try:
        modes: tuple[PassMode, ...] = ("plain", "components")
        passes = [Pass(on.used_dtype, mode, prompt) for mode in modes]
        run_passes(running, on._context(subject), passes, lambda _: None)
    finally:
        subject.extra.remove(enter)
    comparisons = [c for check in running.checks for c in check.comparisons]
    return comparisons, [one for check in running.checks for one in check.metrics.get(FLIPS, [])]


def test_another_expert_at_a_near_tie_passes_and_is_told(twin_cache: Path) -> None:
    on = bench("mixtral", "bfloat16", twin_cache)
    mode = _Turned(torch.argmin)
    comparisons, told = _judged(on, mode)
    assert mode.turned == 6
    assert [c for c in comparisons if not c.ok] == []
    assert {(one["mode"], one["layer"]) for one in told} >= {("plain", 0), ("components", 0)}
    for one in told:
        assert one["tokens"] >= 1
        assert one["of"] == 16
        assert 0 <= one["margin"] <= 8 * max(one["reference_error"], 2**-6)
    sites = {c.site for c in comparisons if "sent elsewhere" in c.note}
    assert sites == {f"blocks.{one['layer']}.mlp.router_logits" for one in told}


def test_another_expert_at_no_near_tie_fails(twin_cache: Path) -> None:
    on = bench("mixtral", "bfloat16", twin_cache)
    comparisons, told = _judged(on, _Turned(torch.argmax))
    failed = [c for c in comparisons if not c.ok and "sent elsewhere" in c.note]
    # Apart, where errors have not added up, in every layer.
    apart = {c.site for c in failed if c.prompt == "sixteen (components)"}
    assert apart == {f"blocks.{i}.mlp.router_logits" for i in range(3)}
    assert all(c.measured > c.allowed for c in failed if c.allowed is not None)
    assert all("replayed" in c.note for c in failed)
    assert told


def test_the_rest_is_judged_given_the_reference_s_choice(twin_cache: Path) -> None:
    """Without it, a flip at a near-tie would be a difference as large as the experts'."""
    from conformance.choices import watched

    on = bench("mixtral", "bfloat16", twin_cache)
    (prompt,) = (p for p in on.reference.prompts if p.name == "sixteen")
    replay = on.reference.choices("plain", "sixteen")

    def run(chosen: Any) -> torch.Tensor:
        with watched(on.used, chosen), _Turned(torch.argmin):
            return on.used.run(prompt, lambda *_: None)

    left_alone = on.used.run(prompt, lambda *_: None)
    assert (run({}) - left_alone).abs().max() > 10 * (run(replay) - left_alone).abs().max()


# --- one truth for all dtypes, and what is not judged ---------------------------------------------


def test_dtypes_share_the_truth(tmp_path: Path, twin_cache: Path) -> None:
    made = checkpoint("llama", twin_cache)
    said: list[str] = []
    paths = {
        dtype: ensure(
            twin_model("llama", prompts=("two",), dtype=dtype), made, tmp_path, said.append
        )
        for dtype in ("float32", "bfloat16", "float64")
    }
    assert len(set(paths.values())) == 1
    assert said.count("reference: float64, prompt two") == 1
    found = {
        dtype: Reference(path, made.path, "LlamaForCausalLM", dtype)
        for dtype, path in paths.items()
    }
    errors = {d: found[d].error("plain", "two", "logits") for d in ("float32", "bfloat16")}
    assert 0 < 1000 * errors["float32"] < errors["bfloat16"]
    assert found["bfloat16"].logits("two", "bfloat16").dtype == torch.bfloat16
    assert found["float64"].variants == {}
    assert found["float64"].logits("two", "float64").dtype == torch.float64


def test_components_are_held_against_arithmetic_on_what_the_dtype_holds(twin_cache: Path) -> None:
    """Rounding the weights is not the port's doing, and must hide nothing that is."""
    on = bench("llama", "bfloat16", twin_cache)
    reference = on.reference
    for site in ("blocks.1.ln1", "blocks.1.attn.q", "blocks.1.mlp_out"):
        truth, own = reference.truth("sixteen", site), reference.isolated("sixteen", site)
        assert own.dtype == torch.float64
        assert 1e-4 < float((own - truth).norm() / truth.norm()) < 1e-1
    error = reference.error("components", "sixteen", "blocks.1.ln1")
    assert error < reference.error("plain", "sixteen", "blocks.1.ln1")


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory, twin_cache: Path) -> Path:
    """A Llama whose second MLP leaves float16's range, and no other dtype's."""
    target = tmp_path_factory.mktemp("overflowing") / "llama"
    shutil.copytree(checkpoint("llama", twin_cache).path, target)
    file = target / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["model.layers.1.mlp.down_proj.weight"] *= 1e5
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    return target


def _overflowing(path: Path, dtype: str) -> ModelSpec:
    return ModelSpec(
        id="overflowing",
        architecture=TWINS["llama"].architecture,
        source=PathSource(path=path),
        dtype=dtype,
        prompts=("sixteen",),
    )


CHECKS = ("activations", "components", "logits", "loss")


def test_what_overflows_in_the_reference_itself_is_told_and_not_judged(
    overflowing: Path, tmp_path: Path
) -> None:
    records = judge(_overflowing(overflowing, "float16"), "bridge", tmp_path, checks=CHECKS)
    for check, record in records.items():
        assert record["outcome"] == "passed", (check, record["reason"])
        assert record["dtype"] == "float16"
        assert record["metrics"]["reference_overflows"] == {
            "dtype": "float16",
            "first": {"sixteen": "blocks.1.mlp_out"},
        }
    precision = records["activations"]["verdict"]["same_precision"]
    assert precision["failed"] == 0
    json.dumps(records["logits"]["metrics"])


def test_the_same_model_is_judged_whole_in_bfloat16(overflowing: Path, tmp_path: Path) -> None:
    records = judge(_overflowing(overflowing, "bfloat16"), "bridge", tmp_path, checks=CHECKS)
    assert {r["outcome"] for r in records.values()} == {"passed"}
    assert all("reference_overflows" not in r["metrics"] for r in records.values())


def test_in_float64_only_the_function_is_judged(tmp_path: Path, twin_cache: Path) -> None:
    model = twin_model("llama", dtype="float64", prompts=("two",))
    records = judge(model, "bridge", twin_cache, checks=CHECKS[:1])
    assert set(records["activations"]["verdict"]) == {"same_function"}
    assert records["activations"]["dtype"] == "float64"


def test_a_dtype_s_figures_go_stale_with_the_code_that_takes_them(
    tmp_path: Path, twin_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, model = checkpoint("llama", twin_cache), twin_model("llama", prompts=("one",))
    path = ensure(model, made, tmp_path, lambda _: None)
    before = own_error.where(path, "float32")
    monkeypatch.setattr(own_error, "code_hash", lambda: "another")
    assert ensure(model, made, tmp_path, lambda _: None) == path
    assert not before.exists()
    assert own_error.where(path, "float32").exists()
