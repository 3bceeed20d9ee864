"""The reference's trace: run once, reused, complete, and true to the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from twins import checkpoint, huggingface, ran, twin_model

from conformance import own_error
from conformance import reference as module
from conformance.errors import TraceError
from conformance.implementations import huggingface as hf
from conformance.prompts import MEDIA, PROMPTS
from conformance.reference import Reference, directory, ensure
from conformance.variants import CENTRED, ISOLATION_PROMPTS, teacher

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.spec import ModelSpec

TWIN = "llama"
MODEL = twin_model(TWIN)
QUICK = twin_model(TWIN, prompts=("two",))


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def stored(twin_cache: Path) -> Reference:
    made = checkpoint(TWIN, twin_cache)
    path = ensure(MODEL, made, twin_cache, silent)
    return Reference(path, made.path, MODEL.architecture)


@pytest.fixture
def run_here(tmp_path: Path, twin_cache: Path) -> Callable[..., Path]:
    """Run (or find) the quick model's reference in a cache of this test's own."""

    def run(model: ModelSpec = QUICK) -> Path:
        return ensure(model, checkpoint(TWIN, twin_cache), tmp_path, silent)

    return run


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(hf, "HuggingFaceModel", explode)


# --- Run once -----------------------------------------------------------------------------------


def test_a_second_run_loads_no_model(
    run_here: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    first = run_here()
    before = (first / "data.bin").stat().st_mtime_ns
    request.getfixturevalue("no_models")
    assert run_here() == first
    assert (first / "data.bin").stat().st_mtime_ns == before


def test_a_stored_run_is_read_without_a_model(stored: Reference, no_models: None) -> None:
    again = Reference(
        directory(MODEL, _checkpoint(stored), _cache(stored)),
        _checkpoint(stored).path,
        MODEL.architecture,
    )
    assert torch.equal(again.truth("two", "logits"), stored.truth("two", "logits"))


def _cache(stored: Reference) -> Path:
    return Path(str(stored.trace._data.filename)).parents[2]


def _checkpoint(stored: Reference) -> Any:
    return checkpoint(TWIN, _cache(stored))


def test_a_change_of_the_tracing_code_makes_it_stale(
    run_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_here()
    monkeypatch.setattr(module, "code_hash", lambda: "another")
    second = run_here()
    assert second != first
    assert (second / "index.json").exists()
    assert not first.exists()


@pytest.mark.parametrize("changes", [{"prompts": ("one",)}, {"id": "another"}], ids=str)
def test_what_determines_a_trace_determines_its_place(
    changes: dict[str, Any], tmp_path: Path, twin_cache: Path
) -> None:
    made = checkpoint(TWIN, twin_cache)
    other = QUICK.model_copy(update=changes)
    assert directory(other, made, tmp_path) != directory(QUICK, made, tmp_path)
    elsewhere = checkpoint("llama-bias", twin_cache)
    assert directory(QUICK, elsewhere, tmp_path) != directory(QUICK, made, tmp_path)
    narrow = QUICK.model_copy(update={"dtype": "bfloat16"})
    assert directory(narrow, made, tmp_path) == directory(QUICK, made, tmp_path)


def test_a_damaged_trace_is_run_again(run_here: Callable[..., Path]) -> None:
    path = run_here()
    data = (path / "data.bin").read_bytes()
    (path / "data.bin").write_bytes(data[: len(data) // 2])
    assert run_here() == path
    assert (path / "data.bin").read_bytes() == data


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_failure_midway_leaves_nothing(
    fails_at: int,
    run_here: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = hf.HuggingFaceModel, []

    def load(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == fails_at:
            raise RuntimeError("out of luck")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(hf, "HuggingFaceModel", load)
        with pytest.raises(RuntimeError, match="out of luck"):
            run_here()
    # What was finished stays: the truth, where the model in its own dtype failed.
    (*kept,) = (p for p in (tmp_path / "traces").iterdir() if p.is_dir())
    assert len(kept) == fails_at - 1
    assert not [found for path in kept for found in path.glob("precision/*")]
    assert (run_here() / "index.json").exists()


# --- Complete -----------------------------------------------------------------------------------


def test_every_prompt_and_site_is_there(stored: Reference, twin_cache: Path) -> None:
    heard = tuple(name for name in PROMPTS if name != MEDIA)  # this one has no other input
    assert tuple(p.name for p in stored.prompts) == heard
    assert stored.left_out == {}
    sites = {*ran(TWIN, twin_cache).sites, "logits"}
    assert set(stored.sites) == sites
    assert len(stored.sites) == len(sites)
    for prompt in stored.prompts:
        for site in sites:
            truth = stored.truth(prompt.name, site)
            assert truth.dtype == torch.float64
            # Masked scores aside, all of it is finite.
            assert site.endswith("scores") or bool(truth.isfinite().all()), site


def test_what_is_stored_is_what_the_model_computes(stored: Reference, twin_cache: Path) -> None:
    for name in ("sixteen", "padded_left"):
        found = ran(TWIN, twin_cache, name)
        (prompt,) = (p for p in stored.prompts if p.name == name)
        assert torch.equal(prompt.tokens, found.prompt.tokens)
        assert torch.equal(prompt.valid, found.prompt.valid)
        for site in found.sites:
            assert torch.equal(stored.truth(name, site), found[site]), site
        assert torch.equal(stored.truth(name, "logits"), found.logits)


def test_the_reference_s_own_exactness_is_known_everywhere(stored: Reference) -> None:
    for prompt in stored.prompts:
        for site in stored.sites:
            spread = stored.spread(prompt.name, site)
            assert 0 <= spread < 1e-12, (prompt.name, site)
            # Weights moved by a unit in the last place show wherever weights have a part.
            assert spread > 0 or site.endswith("pattern"), (prompt.name, site)
            modes = ("plain", "blocks", "components")
            for mode in modes if prompt.name in ISOLATION_PROMPTS else modes[:1]:
                if (mode, site) == ("blocks", "logits"):
                    continue  # the unembedding is fed the truth in either mode
                error = stored.error(mode, prompt.name, site)
                assert 0 <= error < 1e-3, (mode, prompt.name, site)
                assert math.isfinite(error)
        processed = stored.error("processed", prompt.name, CENTRED)
        assert stored.error("plain", prompt.name, CENTRED) <= processed < 1e-3
        # Float32 is not exact: a zero here would mean that nothing was compared.
        assert stored.error("plain", prompt.name, "logits") > 1e-9
    assert stored.variants == {"doubled": "run", "rerounded": "run", "sdpa": "run"}


def test_an_error_that_was_not_measured_is_not_made_up(stored: Reference) -> None:
    with pytest.raises(TraceError, match="no blocks error of logits on two"):
        stored.error("blocks", "two", "logits")
    with pytest.raises(TraceError, match=r"no two/blocks\.9\.ln1"):
        stored.truth("two", "blocks.9.ln1")


def test_inputs_of_components_are_known(stored: Reference, twin_cache: Path) -> None:
    names = huggingface(TWIN, twin_cache).components()
    assert "blocks.0.mlp" in names
    for name in names:
        assert stored.input("sixteen", name) is not None, name
    assert stored.input("sixteen", "blocks.0.nothing") is None
    at = "blocks.1.attn"
    assert torch.equal(stored.input("sixteen", at), stored.truth("sixteen", "blocks.1.ln1"))


def test_logits_in_the_dtype_that_users_run(stored: Reference) -> None:
    narrow = stored.logits("sixteen", "float32")
    assert narrow.dtype == torch.float32
    truth = stored.logits("sixteen", "float64")
    assert truth.dtype == torch.float64
    torch.testing.assert_close(narrow.double(), truth, rtol=1e-4, atol=1e-4)
    assert not torch.equal(narrow.double(), truth)


def test_parameters_are_those_of_the_checkpoint(stored: Reference, twin_cache: Path) -> None:
    file = checkpoint(TWIN, twin_cache).path / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    parameters = stored.parameters()
    assert set(parameters) == set(weights)
    for name, value in weights.items():
        assert parameters[name].dtype == value.dtype
        assert torch.equal(parameters[name], value), name


def test_rerounding_puts_the_weights_back(twin_cache: Path, stored: Reference) -> None:
    model = hf.HuggingFaceModel(
        checkpoint(TWIN, twin_cache).path, MODEL.architecture, torch.float32
    )
    before = {name: p.clone() for name, p in model.parameters().items()}
    prompts = stored.prompts[:1]
    measured = own_error.Measured(stored.trace, prompts)
    measured._reround(model)
    assert measured.error["processed"][prompts[0].name][CENTRED] > 0
    assert all(torch.equal(p, before[name]) for name, p in model.parameters().items())


# --- Teacher forcing ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["blocks", "components"])
@pytest.mark.parametrize("name", ISOLATION_PROMPTS)
def test_forcing_the_reference_on_itself_changes_nothing(
    mode: Any, name: str, stored: Reference, twin_cache: Path
) -> None:
    model = huggingface(TWIN, twin_cache)
    (prompt,) = (p for p in stored.prompts if p.name == name)
    force = teacher(mode, lambda c: stored.input(name, c), torch.float64)
    seen = []

    def on_site(site: str, value: torch.Tensor) -> None:
        seen.append(site)
        assert torch.equal(value, stored.truth(name, site)), site

    logits = model.run(prompt, on_site, force=force)
    assert torch.equal(logits, stored.truth(name, "logits"))
    assert [*seen, "logits"] == stored.sites


def test_a_forced_component_sees_nothing_else(stored: Reference, twin_cache: Path) -> None:
    """A fault in block 0 does not reach block 1's attention when components are fed."""
    model = huggingface(TWIN, twin_cache)
    (prompt,) = (p for p in stored.prompts if p.name == "sixteen")
    weight = model.model.get_parameter("model.layers.0.mlp.down_proj.weight")
    kept = weight.detach().clone()
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        weight.mul_(1.5)
        force = teacher("components", lambda c: stored.input("sixteen", c), torch.float64)
        model.run(prompt, lambda s, v: found.setdefault(s, v.clone()), force=force)
        weight.copy_(kept)
    different = {
        site for site in found if not torch.equal(found[site], stored.truth("sixteen", site))
    }
    assert "blocks.0.mlp_out" in different
    # The residual stream carries the sum on; every component is fed the truth.
    assert {s.split(".")[-1] for s in different} <= {
        "mlp_out",
        "resid_post",
        "resid_pre",
        "resid_mid",
    }


def test_a_trace_that_another_run_is_at_work_on_is_not_stale(tmp_path: Path) -> None:
    from filelock import FileLock

    from conformance.reference import _remove_stale

    target, idle, busy = (tmp_path / f"llama-{end * 24}" for end in "abc")
    other = tmp_path / f"llama-bias-{'d' * 24}"
    for folder in (idle, busy, other):
        folder.mkdir()
    with FileLock(f"{busy}.lock"):
        _remove_stale(target, "llama")
    assert sorted(p for p in tmp_path.iterdir() if p.is_dir()) == sorted([busy, other])


def test_modes_feed_what_they_say() -> None:
    value = torch.ones(1)
    blocks = teacher("blocks", lambda _: value, torch.float32)
    components = teacher("components", lambda _: value, torch.float32)
    assert blocks("blocks.0.attn") is None
    assert components("blocks.0.attn") is not None
    for force in (blocks, components):
        for name in ("blocks.0", "ln_final", "unembed"):
            assert force(name) is not None, name
    assert blocks("blocks.0").dtype == torch.float32
    assert teacher("components", lambda _: None, torch.float32)("ln_final") is None


def test_a_variant_that_computes_another_function_lends_no_bound_its_size(
    twin_cache: Path,
) -> None:
    model = twin_model("falcon-rw", prompts=("sixteen",))
    files = checkpoint("falcon-rw", twin_cache)
    path = ensure(model, files, twin_cache, lambda _: None)
    stored = Reference(path, files.path, model.architecture)
    (said,) = stored.contradictions
    assert "sdpa and eager attention of transformers compute different functions" in said
    assert stored.variants["sdpa"].startswith("left out")
    assert stored.error("plain", "sixteen", "blocks.0.attn_out") < 1e-5
