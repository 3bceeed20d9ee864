"""What is kept of a port for people to look at: right, small, and without a say in verdicts."""

from __future__ import annotations

import base64
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from made_runs import verdict
from twins import huggingface, judge, twin_model

from conformance import samples
from conformance.errors import RecordsError
from conformance.metrics import difference
from conformance.profiles import ByHead, ByLayer, Histograms, relative, rounded
from conformance.prompts import Prompt
from conformance.recorder import file_name, keep_sample
from conformance.records import PER_DECADE, Comparison
from conformance.samples import LARGEST, NEURONS, POSITIONS, Sample

if TYPE_CHECKING:
    from pathlib import Path

ALL = torch.ones(2, 5, dtype=torch.bool)


def comparison(site: str, measured: float, allowed: float = 1e-12) -> Comparison:
    return Comparison("same_function", site, "p", measured, allowed, measured <= allowed)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- by layer, by head, by size ---------------------------------------------------------------


def test_of_each_layer_the_comparison_nearest_its_bound_is_kept() -> None:
    kept = ByLayer()
    kept.see("float64", "attn", comparison("blocks.1.attn.q", 2e-13))
    kept.see("float64", "attn", comparison("blocks.1.attn.z", 4e-13))
    kept.see("float64", "attn", comparison("blocks.1.attn.k", 5e-13, allowed=1e-11))
    kept.see("float64", "attn", comparison("blocks.0.attn.q", 0.0))
    kept.see("float32", "unembed", comparison("logits", math.nan))
    kept.see("float32", "unembed", comparison("logits", 1.0))
    found = kept.plain()
    assert found["float64"]["attn"] == [
        [0, 0.0, 1e-12, "blocks.0.attn.q"],
        [1, 4e-13, 1e-12, "blocks.1.attn.z"],
    ]
    ((layer, measured, _, site),) = found["float32"]["unembed"]
    assert (layer, site) == (None, "logits")
    assert math.isnan(measured)  # NaN is further past its bound than anything


def test_what_is_not_there_has_no_size() -> None:
    kept = ByLayer()
    kept.see(
        "float64", "attn", Comparison("structure", "blocks.0.attn.q", None, math.inf, 0, False)
    )
    assert kept.plain() == {}


@given(
    exponents=st.lists(st.integers(-30, 10), min_size=1, max_size=40),
    odd=st.lists(st.sampled_from([0.0, math.inf]), max_size=5),
)
def test_a_histogram_counts_every_entry_once(exponents: list[int], odd: list[float]) -> None:
    values = [10.0**e * 1.5 for e in exponents]
    kept = Histograms()
    kept.see("float64", "blocks.0.mlp_out", torch.tensor([*values, *odd], dtype=torch.float64))
    kept.see("float64", "blocks.1.mlp_out", torch.zeros(2, dtype=torch.float64))
    found = kept.plain()["float64"]["mlp_out"]
    assert found["equal"] == odd.count(0.0) + 2
    assert found["not_finite"] == odd.count(math.inf)
    assert sum(found["counts"]) == len(values)
    assert found["counts"][0]
    assert found["counts"][-1]


def test_a_difference_is_in_the_bin_of_its_size() -> None:
    kept = Histograms()
    kept.see("float64", "logits", torch.tensor([1.1e-9, 4e-9, 9e-9, 1.1e-8], dtype=torch.float64))
    found = kept.plain()["float64"]["logits"]
    assert found["first"] == -9 * PER_DECADE
    assert found["counts"] == [1, 2, 1]


def test_a_head_has_its_largest_difference() -> None:
    differences = torch.zeros(1, 4, 3, 2, dtype=torch.float64)  # [batch, pos, head, d_head]
    differences[0, 2, 1, 1] = 0.12345
    kept = ByHead()
    kept.see("blocks.2.attn.z", differences, 1e-12)
    kept.see("blocks.0.attn.z", torch.zeros_like(differences), 1e-12)
    assert kept.plain() == {"attn.z": [[0, 1e-12, [0.0] * 3], [2, 1e-12, [0.0, 0.123, 0.0]]]}


@pytest.mark.parametrize("site", ["blocks.0.attn.pattern", "blocks.0.attn.z", "blocks.0.mlp_out"])
def test_the_largest_entry_is_what_the_verdict_measured(site: str) -> None:
    shape = (2, 3, 5, 5) if site.endswith("pattern") else (2, 5, 3, 4)
    shape = shape if "attn" in site else (2, 5, 6)
    truth = random(*shape)
    value = truth + 1e-9 * random(*shape, seed=1)
    rows = 2 if site.endswith("attn.z") else 1
    measured = difference(truth, value, row_dims=rows).rel_max
    assert float(relative(site, truth, value, ALL).max()) == pytest.approx(measured, rel=1e-12)


def test_three_digits_are_kept() -> None:
    assert rounded(1.23456e-15) == 1.23e-15
    assert math.isnan(rounded(math.nan))
    assert rounded(math.inf) == math.inf


# --- samples ----------------------------------------------------------------------------------


def filled(layers: int, width: int, heads: int, tokens: int, failing: int | None = None) -> Sample:
    """A sample of a port that shows every site."""
    sample = Sample("text", torch.arange(tokens)[None], layers, failing)
    for layer in range(layers):
        for kind in ("attn.pattern", "attn_out", "mlp.post", "mlp_out", "resid_post"):
            site = f"blocks.{layer}.{kind}"
            shape = (1, heads, tokens, tokens) if kind == "attn.pattern" else (1, tokens, width)
            if sample.wants(site):
                truth = random(*shape)
                sample.see(site, truth, truth + 1e-15 * random(*shape, seed=1))
    for site in ("embed", "ln_final"):
        truth = random(1, tokens, width)
        sample.see(site, truth, truth)
    sample.see_logits(random(1, tokens, 1000), random(1, tokens, 1000, seed=1))
    return sample


def unpacked(packed: dict[str, Any]) -> torch.Tensor:
    raw = bytearray(base64.b64decode(packed["data"]))
    return torch.frombuffer(raw, dtype=torch.float16).double() * (packed["scale"] or 1.0)


@pytest.mark.parametrize(
    ("layers", "width", "heads", "tokens"), [(126, 16384, 128, 512), (3, 48, 6, 64), (1, 2, 1, 1)]
)
def test_a_sample_is_small_whatever_the_model(
    layers: int, width: int, heads: int, tokens: int
) -> None:
    plain = filled(min(layers, 5), min(width, 256), heads, min(tokens, 32)).plain(
        lambda i: "長" * 99
    )
    assert len(json.dumps(plain, ensure_ascii=False).encode()) < LARGEST


def test_a_sample_keeps_the_digits_of_a_tiny_difference() -> None:
    plain = filled(3, 48, 6, 16).plain(None)
    site = next(s for s in plain["sites"] if s["site"] == "blocks.1.mlp_out")
    truth, added = random(1, 16, 48), 1e-15 * random(1, 16, 48, seed=1)
    chosen = site["index"]
    expected = truth[0, :POSITIONS][:, chosen].reshape(-1)
    torch.testing.assert_close(unpacked(site["reference"]), expected, rtol=1e-3, atol=1e-4)
    apart = ((truth + added) - truth)[0, :POSITIONS][:, chosen].reshape(-1)
    torch.testing.assert_close(unpacked(site["difference"]), apart, rtol=1e-3, atol=1e-18)
    assert float(apart.abs().max()) > 1e-16


def test_the_neuron_that_differs_most_is_sampled() -> None:
    sample = Sample("text", torch.arange(4)[None], 2)
    truth = random(1, 4, 100)
    value = truth.clone()
    value[0, 3, 77] += 1.0
    sample.see("blocks.0.mlp_out", truth, value)
    (site,) = sample.plain(None)["sites"]
    assert 77 in site["index"]
    assert site["index"][: NEURONS // 2] == list(range(NEURONS // 2))
    assert site["of"] == 100


def test_the_layer_that_fails_is_sampled() -> None:
    assert Sample("text", torch.zeros(1, 1), 30).layers == [0, 14, 29]
    assert Sample("text", torch.zeros(1, 1), 30, failing=7).layers == [0, 7, 29]
    assert Sample("text", torch.zeros(1, 1), 1).layers == [0]


def test_values_that_are_none_do_not_stop_a_sample() -> None:
    sample = Sample("text", torch.arange(4)[None], 1)
    truth = random(1, 4, 6)
    value = truth.clone()
    value[0, 1, 2], value[0, 2, 3] = math.nan, math.inf
    sample.see("blocks.0.mlp_out", truth, value)
    sample.see_logits(truth, value)
    plain = sample.plain(None)
    json.dumps(plain, allow_nan=False)
    assert unpacked(plain["sites"][0]["difference"]).isnan().any()


# --- of a real port ----------------------------------------------------------------------------


def test_a_run_keeps_what_a_page_shows(twin_cache: Path) -> None:
    model = twin_model("llama", prompts=("sixteen", "text", "padded_left"))
    checks = ("activations", "components", "logits")
    records = judge(model, "bridge", twin_cache, checks=checks)
    seen = {check: record["metrics"] for check, record in records.items()}
    facts = seen["activations"]["facts"]
    layers, heads = facts["layers"], facts["heads"]
    assert (facts["kind"], facts["dtype"]) == ("dense", "float32")
    assert facts["parameters"] == sum(
        p.numel() for p in huggingface("llama", twin_cache).parameters().values()
    )
    for dtype in ("float64", "float32"):
        stream = seen["activations"]["by_layer"][dtype]["resid_post"]
        assert [row[0] for row in stream] == list(range(layers))
        assert all(0 <= measured <= allowed for _, measured, allowed, _ in stream)
        alone = seen["components"]["by_layer"][dtype]
        assert {"attn", "mlp", "ln1", "ln2", "block", "ln_final", "unembed"} <= set(alone)
        assert "resid_post" in seen["activations"]["differences"][dtype]
        assert "logits" in seen["logits"]["differences"][dtype]
    for rows in seen["activations"]["by_head"].values():
        assert [row[0] for row in rows] == list(range(layers))
        assert all(len(errors) == heads for *_, errors in rows)
    entries = seen["activations"]["differences"]["float64"]["resid_post"]
    assert entries["equal"] + sum(entries["counts"]) == layers * 16 * facts["d_model"]
    sample = seen["activations"]["sample"]
    assert sample["prompt"] == "text"
    assert [sample["words"][str(i)] for i in sample["ids"][:4]] == ["C", "a", "l", "l"]
    assert len(json.dumps(sample)) < LARGEST
    best = (
        huggingface("llama", twin_cache)
        .run(Prompt("p", torch.tensor([sample["ids"]])), lambda *_: None)[0]
        .argmax(-1)
    )
    assert [row[0] for row in sample["guesses"]["reference"]["ids"]] == best.tolist()


# --- beside the records -----------------------------------------------------------------------


def test_a_sample_is_a_file_that_the_record_names(tmp_path: Path) -> None:
    plain = {"prompt": "text", "sites": []}
    given = verdict(
        "org/m", "bridge", "activations", "passed", metrics={"sample": plain, "sites": 3}
    )
    kept = keep_sample(given, tmp_path)
    name = kept.metrics["sample"]["file"]
    assert kept.metrics["sites"] == 3
    assert json.loads(tmp_path.joinpath(name).read_text()) == {
        **{"model": "org/m", "subject": "bridge"},
        **plain,
    }
    plainly = verdict("m", "bridge", "loss", "passed")
    assert keep_sample(plainly, tmp_path) is plainly


def test_a_sample_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.joinpath(samples.__name__.rpartition(".")[2]).write_text("")
    with pytest.raises(RecordsError, match="samples"):
        keep_sample(verdict("m", "b", "activations", "passed", metrics={"sample": {}}), tmp_path)


@given(st.lists(st.text(max_size=8), unique=True, max_size=6))
@example([".", ".."])
def test_files_of_different_names_differ(names: list[str]) -> None:
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert all("/" not in f and f not in (".", "..") for f in files if f)
