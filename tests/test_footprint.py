"""What a run is said to need: counted, summed by phase, and held against a machine's memory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

from conformance.bounds import FOOTPRINT_MARGIN
from conformance.checks.names import CHECKS
from conformance.cli import app
from conformance.errors import DoesNotFit, SpecError
from conformance.footprint import fitting, machine
from conformance.footprint.comparing import cause, compared, read_tiers_of
from conformance.footprint.predict import IMPORTS, Footprint, Phase, predict
from conformance.footprint.shapes import (
    Shape,
    of_config,
    of_directory,
    of_name,
    of_reference,
    of_twin,
    of_weights,
)
from conformance.footprint.table import Row, rows
from conformance.jobs import Limit
from conformance.selection import SelectionError
from conformance.spec import BEYOND, Memory, Spec, Tier, TwinSource, WheelSource, load_spec

GPT2 = Shape(124_439_808, 12, 768, 12, 12, 64, 3072, 50257, 1024, tied=True)


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hub", "parameters"),
    [
        ("gpt2", 124_439_808),  # tied
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),  # grouped keys and values
        ("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704),  # every expert
        ("EleutherAI/pythia-70m", 70_426_624),
    ],
)
def test_names_have_the_published_number_of_parameters(hub: str, parameters: int) -> None:
    shape = of_name(hub)
    assert shape is not None
    assert shape.parameters == parameters


def test_nearly_every_name_has_a_shape_and_every_shape_a_name() -> None:
    names = {name.hub for name in load_spec(Path("models.toml")).names}
    text = Path("conformance/footprint/shapes.toml").read_text(encoding="utf-8")
    known = {line.split('"')[1] for line in text.splitlines() if line.startswith('"')}
    assert known <= names
    assert names - known == {
        "facebook/hubert-base-ls960",
        "allenai/Olmo-3-1025-7B",
        "allenai/Olmo-3-1125-32B",
        "bigcode/santacoder",
    }


@pytest.mark.parametrize("twin", ["gpt2", "llama", "mixtral", "mamba", "rwkv"])
def test_a_config_alone_gives_what_the_weights_have(twin: str) -> None:
    import torch
    import transformers

    from conformance.checkpoints.shrink import shrink
    from conformance.checkpoints.twin_catalogue import TWINS

    entry = TWINS[twin]
    config = shrink(entry.model_type, entry.config)
    shape = of_config(config, entry.architecture)
    with torch.random.fork_rng(devices=[]):
        model = getattr(transformers, entry.architecture)._from_config(config)
    named = dict(model.named_parameters())
    assert shape.parameters == sum(p.numel() for p in named.values())
    assert shape.experts == sum(p.numel() for n, p in named.items() if ".experts." in n)
    assert bool(shape.experts) == (twin == "mixtral")


def test_a_checkpoint_and_its_trace_have_the_same_shape(twin_cache: Path) -> None:
    from twins import checkpoint, twin_model

    from conformance.engine import prepared

    made, reference = prepared(twin_model("llama"), twin_cache, lambda _: None)
    assert made.path == checkpoint("llama", twin_cache).path
    assert (
        of_directory(made.path, "LlamaForCausalLM") == of_reference(reference) == of_twin("llama")
    )


# --- phases --------------------------------------------------------------------------------------


def test_the_peak_is_the_largest_phase_with_its_process() -> None:
    needed = predict(GPT2)
    totals = {phase.name: IMPORTS[phase.side] + phase.total for phase in needed.phases}
    assert needed.host_bytes == max(totals.values())
    assert needed.peak.name == "weight processing"
    assert needed.gpu_bytes < needed.host_bytes - IMPORTS["subject"]
    assert set(needed.sides) == {"reference", "subject"}


def test_checks_that_are_not_asked_for_need_nothing() -> None:
    few = predict(GPT2, checks=["weights"])
    assert few.host_bytes < predict(GPT2).host_bytes
    assert {phase.name for phase in few.phases} == {
        "trace in float64",
        "precision in float32",
        "loading",
    }


def test_a_narrower_dtype_and_a_longer_prompt_count() -> None:
    def phase(name: str, needed: Footprint) -> Phase:
        return next(phase for phase in needed.phases if phase.name.startswith(name))

    wide, narrow = predict(GPT2, "float32"), predict(GPT2, "bfloat16")
    assert phase("precision", narrow).total < phase("precision", wide).total
    assert not [p for p in predict(GPT2, "float64").phases if p.name.startswith("precision")]
    short, long = predict(GPT2, tokens=16), predict(GPT2, tokens=1024)
    before, after = (phase("trace", needed).parts for needed in (short, long))
    assert after["attention matrices"] == 64**2 * before["attention matrices"]
    assert after["logits"] == 64 * before["logits"]
    rows = phase("trace", predict(GPT2, tokens=16, batch=3)).parts
    for part in ("activations", "attention matrices", "logits"):
        assert rows[part] == 3 * before[part]
    assert rows["weights"] == before["weights"]


def test_generation_keeps_grouped_keys_and_values() -> None:
    def caches(shape: Shape) -> int:
        phases = {phase.name: phase.parts for phase in predict(shape).phases}
        return phases["generation"]["caches"]

    grouped = dataclasses.replace(GPT2, kv_heads=GPT2.heads // 3)
    assert caches(GPT2) == 3 * caches(grouped)
    # Three rows of 14 tokens and 24 more, of twelve layers and heads of 64, in float64.
    assert caches(GPT2) == 8 * 2 * 12 * 12 * 64 * 3 * (14 + 24)


def test_experts_are_held_but_not_processed() -> None:
    experts = dataclasses.replace(GPT2, experts=50_000_000)
    assert predict(experts).host_bytes < predict(GPT2).host_bytes
    assert predict(experts, checks=["gradients"]) == predict(GPT2, checks=["gradients"])


#: What docs/footprint.md calls the trained models -> their ids.
REAL = {
    "SmolLM2 135M": "smollm2-135m-instruct",
    "Gemma 3 270M": "gemma3-270m",
    "microformer": "microformer-mgm",
}


def measured() -> dict[str, tuple[float, float]]:
    """Model -> predicted and measured peak of its larger process, in MB: docs/footprint.md."""
    found: dict[str, tuple[float, float]] = {}
    for line in Path("docs/footprint.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 9 and cells[7].endswith("%"):
            told = (float(cells[5].split()[0]), float(cells[6].split()[0]))
            found[cells[1]] = max(found.get(cells[1], (0.0, 0.0)), told, key=lambda x: x[1])
    return found


def test_predictions_are_near_what_was_measured() -> None:
    models = load_spec(Path("benchmarks/scaled.toml")).models
    found = measured()
    assert len(found) == len(models) + len(REAL)
    for model in models:
        assert isinstance(model.source, TwinSource)
        predicted, peak = found[model.id]
        now = predict(of_twin(model.source.twin, model.source.config)).sides["subject"].total / 1e6
        assert round(now) == predicted, f"{model.id}: docs/footprint.md is of another prediction"
        assert abs(predicted / peak - 1) < FOOTPRINT_MARGIN - 1
    entries = {model.id: model for model in load_spec(Path("models.toml")).models}
    for name, entry in REAL.items():
        source = entries[entry].source
        assert isinstance(source, WheelSource)
        shape = of_weights(source.weights_sha256 or "")
        assert shape is not None
        predicted, peak = found[name]
        assert round(predict(shape).sides["subject"].total / 1e6) == predicted
        assert abs(predicted / peak - 1) < 0.1


def test_sizes_of_weights_inside_packages_are_those_of_their_configs() -> None:
    """Parameters counted anew from the sizes alone, as each architecture has them."""
    import tomllib

    path = Path("conformance/footprint/embedded.toml")
    found = {s["parameters"]: s for s in tomllib.loads(path.read_text())["weights"].values()}
    for s in found.values():
        heads = {"num_attention_heads": s["heads"], "num_key_value_heads": s["kv_heads"]}
        rotary = {
            "hidden_size": s["d_model"],
            "num_hidden_layers": s["layers"],
            "head_dim": s["d_head"],
            "intermediate_size": s["d_mlp"],
            "vocab_size": s["d_vocab"],
            "tie_word_embeddings": True,
            **heads,
        }
        gpt2 = {
            "n_embd": s["d_model"],
            "n_layer": s["layers"],
            "n_head": s["heads"],
            "n_positions": s["context"],
            "vocab_size": s["d_vocab"],
        }
        kinds = {9669: ("gpt2", gpt2), 49152: ("llama", rotary), 262144: ("gemma3_text", rotary)}
        kind, sizes = kinds[s["d_vocab"]]
        config = transformers.AutoConfig.for_model(kind, **sizes)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) == s["parameters"]


def test_a_small_port_takes_what_is_predicted(twin_cache: Path) -> None:
    """Peaks of real processes, the imports included: of a twin there is not much else."""
    import torch
    from twins import twin_model

    if torch.version.cuda is not None:
        pytest.skip("the imports were measured without CUDA, whose build takes 150 MB more")

    from conformance.isolation import Isolation
    from conformance.runner import Runner
    from conformance.selection import Case

    model, checks = twin_model("gpt2"), ("weights",)
    spec = Spec(models=(model,), subjects={}, path=Path("models.toml"), sha256="0" * 64)
    cases = [Case(model.id, "bridge", check) for check in checks]
    with Isolation(threads=1) as children:
        runner = Runner(spec, cases, children, cache=twin_cache, timeout=600)
        cost = [runner.verdict(case) for case in cases][-1].metrics["cost"]
    peaks = predict(of_twin("gpt2"), model.dtype, checks).sides
    peak = IMPORTS["subject"] + peaks["subject"].total
    assert abs(peak / cost["subject_peak_bytes"] - 1) < FOOTPRINT_MARGIN - 1


def test_predicting_imports_no_tensor_library() -> None:
    code = "import sys, conformance.footprint, conformance.runner; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


# --- machines ------------------------------------------------------------------------------------


def tier(name: str, **sizes: int) -> Tier:
    memories = [{"kind": kind, "bytes": size} for kind, size in sizes.items()]
    return Tier.model_validate({"name": name, "memories": memories})


def test_a_tier_is_the_smallest_machine_that_a_run_fits_with_its_margin() -> None:
    needed = 1_000_000_000
    enough = round(needed * FOOTPRINT_MARGIN)
    tiers = (tier("less", cpu=enough - 1), tier("just", cpu=enough), tier("more", cpu=10 * enough))
    assert fitting.tier_of(needed, needed, tiers) == "just"
    assert fitting.tier_of(needed, needed, tiers[:1]) == BEYOND
    assert fitting.tier_of(needed, needed / 2, (tier("gpu", gpu=enough // 2),)) == "gpu"


def test_runs_take_place_in_ram_whatever_the_gpus_here() -> None:
    here = fitting.limit_here([Memory(kind="cpu", bytes=1), Memory(kind="gpu", bytes=10**12)])
    assert fitting.limit_here([Memory(kind="cpu", bytes=9)], workers=2).cpu == 4
    with pytest.raises(DoesNotFit, match="which no run uses yet") as caught:
        fitting.require(GPT2, "float32", CHECKS, here)
    limit = caught.value.facts["limit"]
    assert limit["there_bytes"] == 1
    assert limit["there_gpu_bytes"] == [10**12]
    assert limit["needed_bytes"] > predict(GPT2).host_bytes
    fitting.require(GPT2, "float32", CHECKS, Limit("a large machine", 10**12))


def test_free_memory_is_what_the_kernel_and_the_control_group_leave(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   1000000 kB\n")
    assert machine.free(tmp_path)[0] == Memory(kind="cpu", bytes=1_024_000_000)
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, text in (
        ("memory.max", "500000000"),
        ("memory.current", "300000000"),
        ("memory.stat", "anon 7\ninactive_file 100000000\n"),
    ):
        (group / name).write_text(f"{text}\n")
    assert machine.free(tmp_path)[0].bytes == 300_000_000


# --- the command ---------------------------------------------------------------------------------

MODELS = """
schema = 1
[[model]]
id = "gpt2-twin"
architecture = "GPT2LMHeadModel"
source = { twin = "gpt2" }
[[name]]
hub = "EleutherAI/pythia-6.9b"
architecture = "GPTNeoXForCausalLM"
not_judged = "too large"
[[name]]
hub = "nobody/knows"
architecture = "GPTNeoXForCausalLM"
not_judged = "unknown"
"""


def test_the_table_is_sorted_and_names_what_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text(MODELS)
    said = CliRunner().invoke(app, ["tiers", "--models", str(path)])
    assert said.exit_code == 0
    lines = said.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "gpt2-twin",
        "EleutherAI/pythia-6.9b",
        "nobody/knows",
    ]
    assert "beyond" in lines[2]
    assert "gradients" in lines[2]
    assert "not among those known" in lines[3]
    found = json.loads(CliRunner().invoke(app, ["tiers", "--models", str(path), "--json"]).stdout)
    assert found[0]["tier"] == "free"
    assert found[0]["footprint_bytes"] >= max(found[0]["phases"].values())
    assert CliRunner().invoke(app, ["tiers", "--models", str(path), "--model", "x"]).exit_code == 2


def test_an_unknown_pattern_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text(MODELS)
    spec = load_spec(path)
    with pytest.raises(SelectionError, match="nothing is called"):
        rows(spec, ["nope*"])
    assert [row.id for row in rows(spec, ["EleutherAI/*"])] == ["EleutherAI/pythia-6.9b"]


def row(shape: Shape, at: str) -> Row:
    return Row("org/name", "name", shape, predict(shape), at)


@pytest.mark.parametrize(
    ("parameters", "there", "why"),
    [
        (9_000_000_000, 16 * 10**9, "weights"),
        (5_000_000_000, 16 * 10**9, "dtype"),
        (3_000_000_000, 16 * 10**9, "float64"),
        (1_900_000_000, 16 * 10**9, "copies"),
        (124_439_808, predict(GPT2).host_bytes, "margin"),
        (200_000_000, 200 * 10**9, "smaller"),
    ],
)
def test_each_disagreement_has_a_cause(parameters: int, there: int, why: str) -> None:
    shape = dataclasses.replace(GPT2, parameters=parameters)
    sizes = {"theirs": there, "ours": 100 * 10**9}
    assert cause(row(shape, "ours"), "theirs", sizes).startswith(why)
    assert cause(row(shape, "theirs"), "theirs", sizes) == ""
    assert cause(row(shape, "ours"), "a heading", sizes).startswith("not a class of machine")
    assert cause(row(shape, "ours"), BEYOND, sizes).startswith("smaller")


def test_tiers_assigned_otherwise_are_compared(tmp_path: Path) -> None:
    path, other = tmp_path / "models.toml", tmp_path / "theirs.toml"
    path.write_text(MODELS)
    other.write_text('[free]\nnames = ["EleutherAI/pythia-6.9b", "who/is-this"]\n')
    spec = load_spec(path)
    page = compared(rows(spec), read_tiers_of(other), spec)
    assert page.startswith("0 of 2 agree.")
    assert "| 1 | not among our names |" in page
    assert "| EleutherAI/pythia-6.9b | 6,857,302,016 |" in page
    other.write_text("free = 1")
    with pytest.raises(SpecError, match="no list of tiers"):
        read_tiers_of(other)


def test_a_page_says_what_most_of_it_is() -> None:
    from conformance.report.html.figures import fact_rows

    name, said = fact_rows(fitting.footprint_facts(predict(GPT2)))[-1]
    assert name == "most memory"
    assert said.startswith("weight processing: ")
    assert "weights" in said
