"""The catalogue of faults: every check can fail, at the right site, and only then."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from conformance.checkpoints.twin_catalogue import TWINS
from conformance.checks.names import CHECKS
from conformance.spec import ModelSpec, TwinSource

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.prove.ports import Bench, Proof

BRIDGE = "bridge"
#: HookedTransformer left in 4.0.
HOOKED = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@functools.cache
def bench(twin: str, subject: str, cache: Path) -> Bench:
    from conformance.prove.ports import PROMPTS, Bench

    model = ModelSpec(
        id=f"{twin}-twin",
        architecture=TWINS[twin].architecture,
        source=TwinSource(twin=twin),
        prompts=PROMPTS,
    )
    return Bench.load(model, subject, cache)


@functools.cache
def proof(twin: str, subject: str, fault: str, cache: Path) -> Proof:
    from conformance.faults import CATALOGUE

    on = bench(twin, subject, cache)
    entry = CATALOGUE[fault]
    assert entry.applies(on.exact), f"{fault} does not apply to {twin}"
    return on.prove(entry)


# --- the catalogue itself -----------------------------------------------------------------------


def test_the_catalogue_is_well_kept() -> None:
    import importlib
    import pkgutil

    from conformance import faults
    from conformance.faults import CATALOGUE, SOURCES

    modules = [
        importlib.import_module(f"conformance.faults.{module.name}")
        for module in pkgutil.iter_modules(faults.__path__)
    ]
    entries = [
        fault
        for module in modules
        for listed in ("FAULTS", "EQUIVALENTS")
        for fault in getattr(module, listed, ())
    ]
    assert len({fault.name for fault in entries}) == len(entries), "two entries share a name"
    assert {fault.name: fault for fault in entries} == CATALOGUE, "one is not in the catalogue"
    kinds = Counter(f.kind for f in entries)
    assert kinds["fault"] >= 60
    assert kinds["equivalent"] >= 10
    assert kinds["precision"] >= 3
    assert all(f.what and f.name == f.name.strip() for f in entries)
    for fault in entries:
        if fault.kind != "equivalent":
            assert fault.source is not None, fault.name
            assert fault.source.startswith("https://github.com/"), fault.name
    assert set(SOURCES) == {f.klass for f in entries if f.kind != "equivalent"}


def test_a_fault_that_one_check_alone_can_see_names_that_check() -> None:
    from conformance.checks import registry
    from conformance.faults import CATALOGUE

    alone = {name: fault for name, fault in CATALOGUE.items() if fault.needs is not None}
    runs = {name for name, check in registry().items() if check.runs}
    assert {fault.needs for fault in alone.values()} == runs


def test_an_unknown_fault_is_refused_with_a_suggestion() -> None:
    from conformance.errors import ConformanceError
    from conformance.prove.ports import catalogue

    with pytest.raises(ConformanceError, match="rope_base_1%"):
        catalogue(["rope_bas_1%"])


# --- what the checks make of it -----------------------------------------------------------------

#: (twin, subject, fault): at least one of every class, on more than one architecture.
SLICE = (
    ("llama", "rope_base_0.01%"),
    ("llama", "rope_queries_late"),
    ("llama", "attn_scale_0.1%"),
    ("llama", "heads_tiled"),
    ("llama", "causal_one_too_wide"),
    ("llama", "padding_ignored"),
    ("llama", "norm_eps_tenfold"),
    ("llama", "gate_up_swapped"),
    ("llama", "W_Q_element"),
    ("llama", "W_U_element"),
    ("llama", "embed_unused_row"),
    ("llama", "residual_scaled"),
    ("llama", "accessor_W_K"),
    ("llama", "hook_v_shows_k"),
    ("llama", "hook_never_fires"),
    ("llama", "hook_fires_twice"),
    ("llama", "logits_scaled"),
    ("llama", "dropout_on"),
    ("llama", "fold_final_norm_twice"),
    ("gpt2", "positions_late"),
    ("gpt2", "positions_count_padding"),
    ("gpt2", "bias_q_skipped"),
    ("gpt2", "gelu_exact_for_tanh"),
    ("gpt2", "norm_bias_skipped"),
    ("gpt2", "fold_value_bias_twice"),
    ("gemma2", "softcap_off"),
    ("gemma2", "final_softcap_off"),
    ("gemma2", "window_one_too_wide"),
    ("gemma2", "window_one_too_narrow"),
    ("gemma2", "norm_offset_missing"),
    ("gemma2", "embed_scale_rounded"),
    ("mixtral", "router_not_renormalised"),
    ("mixtral", "experts_swapped"),
    ("gpt-oss", "swiglu_limit_missing"),
    ("qwen2-moe", "shared_expert_dropped"),
    ("qwen2-moe", "router_renormalised"),
    ("granite", "residual_multiplier_missing"),
    ("granite", "embed_multiplier_missing"),
    ("granite", "logit_scale_missing"),
    ("opt", "position_offset_missing"),
    ("mamba", "mixer_out_scaled"),
    ("mamba", "decay_faster"),
    ("rwkv", "own_token_dropped"),
    ("rwkv", "token_shift_by_two"),
    ("rwkv", "receptance_missing"),
    ("gemma4", "v_norm_skipped"),
    ("gemma4", "shared_values_of_next_head"),
    ("gemma4", "layer_embedding_late"),
    ("gemma4", "layer_embedding_missing"),
    ("gemma4", "stream_scale_missing"),
    ("gemma4-26b-a4b", "experts_beside_dropped"),
    ("bert", "mlp_out_scaled"),
    ("bert", "norm_eps_of_torch"),
    ("bert", "causal_where_none_is"),
    ("bert", "positions_late"),
    ("vit", "W_Q_element"),
    ("vit", "gelu_tanh_for_exact"),
    ("hubert-large", "mlp_out_scaled"),
    ("mbart", "W_Q_element"),
    ("mbart", "cross_attn_out_scaled"),
    ("mbart", "cross_keys_late"),
    ("mbart", "encoder_norm_skipped"),
)


@pytest.mark.parametrize(("twin", "fault"), SLICE, ids=lambda v: str(v))
def test_a_fault_is_caught_and_named(twin: str, fault: str, cache: Path) -> None:
    found = proof(twin, BRIDGE, fault, cache)
    assert found.caught
    assert found.site_named, f"{found.named}, not {found.site_true}"
    if found.factor is not None:
        assert found.factor > 100


@pytest.mark.parametrize("twin", ["mamba", "rwkv", "nemotron-h", "jamba", "bert", "mbart"])
def test_every_fault_says_whether_it_fits_blocks_without_attention_or_mlp(
    twin: str, cache: Path
) -> None:
    from conformance.faults import CATALOGUE

    port = bench(twin, BRIDGE, cache).exact
    fitting = {name: fault.sites(port) for name, fault in CATALOGUE.items() if fault.fits(port)}
    assert len(fitting) > 20
    absent = {
        f"blocks.{layer}.{kind}"
        for layer in range(port.dims.n_layers)
        for kind in port.family.absent(layer)
    }
    assert not {name for name, sites in fitting.items() if sites and absent.issuperset(sites)}
    assert "W_Q_element" not in fitting or port.family.of(1).attn is not None


def test_the_slice_covers_every_class_and_every_check(cache: Path) -> None:
    from conformance.faults import CATALOGUE, SOURCES

    classes = {CATALOGUE[fault].klass for _, fault in SLICE}
    # Faults that one check alone can see are proven in that check's own tests.
    alone = {fault.needs: fault.klass for fault in CATALOGUE.values() if fault.needs is not None}
    elsewhere = {"attention variant", "precision", *alone.values()}
    assert set(SOURCES) - classes <= elsewhere
    proven = {name for twin, fault in SLICE for name in proof(twin, BRIDGE, fault, cache).checks}
    assert proven == set(CHECKS) - set(alone)


def test_components_name_a_wrong_component_alone(cache: Path) -> None:
    found = proof("llama", BRIDGE, "gate_up_swapped", cache)
    assert "components" in found.checks


PRECISION = (
    "norm_in_bfloat16",
    "softmax_in_bfloat16",
    "rotary_table_in_bfloat16",
    "logits_in_bfloat16",
)


@pytest.mark.parametrize("fault", PRECISION)
def test_a_lost_upcast_is_the_same_function_in_worse_precision(fault: str, cache: Path) -> None:
    on = bench("llama", BRIDGE, cache)
    from conformance.faults import CATALOGUE

    found = on.prove(CATALOGUE[fault])
    assert found.caught, "same function must hold and same precision must fail"
    assert found.site_named, f"{found.named}, not {found.site_true}"


def _equivalents() -> list[str]:
    from conformance.faults import equivalents, rotary

    return [f.name for f in (*rotary.EQUIVALENTS, *equivalents.EQUIVALENTS)]


@pytest.mark.parametrize(
    "name",
    [
        "positions_shifted",
        "another_batch_size",
        "another_thread_count",
        "sums_in_halves",
        "sums_backwards",
        "fused_qkv",
        "softmax_as_fused_kernels",
        "query_scaled_first",
        "products_backwards",
        "norm_by_rsqrt",
        "norm_folded_by_hand",
        "heads_permuted",
        "matrix_strided",
        "inference_mode",
        "no_onednn",
    ],
)
def test_an_equivalent_change_is_not_flagged(name: str, cache: Path) -> None:
    assert name in _equivalents()
    found = proof("llama", BRIDGE, name, cache)
    assert not found.caught, f"{found.checks} at {found.named}"


@pytest.mark.skipif(not HOOKED, reason="transformer-lens 4.0 has no HookedTransformer")
@pytest.mark.parametrize(
    "fault",
    [
        "rope_base_0.01%",
        "rope_adjacent_pairs",
        "attn_scale_0.1%",
        "heads_tiled",
        "norm_eps_tenfold",
        "gate_up_swapped",
        "W_K_element",
        "hook_never_fires",
        "parallel_for_sequential",
        "fold_final_norm_twice",
    ],
)
def test_a_fault_in_a_hooked_transformer_is_caught_and_named(fault: str, cache: Path) -> None:
    found = proof("llama", "hooked", fault, cache)
    assert found.caught
    assert found.site_named, f"{found.named}, not {found.site_true}"


# --- in and out ---------------------------------------------------------------------------------


def _state(on: Bench) -> dict[str, object]:
    """Everything the subject computes and holds, to compare bit for bit."""
    subject = on.exact
    seen: dict[str, object] = {}
    prompt = on.reference.prompts[0]
    seen["logits"] = subject.run(prompt, lambda name, value: seen.update({name: value.clone()}))
    for name, parameter in subject.model.named_parameters():
        seen[f"parameter {name}"] = parameter.detach().clone()
    for name, buffer in subject.model.named_buffers():
        seen[f"buffer {name}"] = buffer.clone()
    for name, module in subject.model.named_modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        seen[f"module {name}"] = (type(module), hooks)
    seen["model"] = (type(subject.model), tuple(subject.extra), sorted(vars(subject)))
    return seen


@pytest.mark.parametrize("twin", ["llama", "gpt2", "gemma2", "mixtral"])
def test_every_fault_goes_out_as_it_came_in(twin: str, cache: Path) -> None:
    import torch

    from conformance.faults import CATALOGUE

    on = bench(twin, BRIDGE, cache)
    before = _state(on)
    for fault in CATALOGUE.values():
        if fault.applies(on.exact) and not fault.processed:
            with fault.apply(on.exact):
                on.exact.run(on.reference.prompts[0], lambda *_: None)
    after = _state(on)
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, after[name]), name  # type: ignore[arg-type]
        else:
            assert value == after[name], name


def test_a_fault_goes_out_when_something_raises(cache: Path) -> None:
    from conformance.faults import CATALOGUE

    on = bench("llama", BRIDGE, cache)
    before = _state(on)
    for name in ("W_Q_row", "heads_tiled", "accessor_W_K", "hook_v_shows_k"):
        with pytest.raises(ZeroDivisionError), CATALOGUE[name].apply(on.exact):
            raise ZeroDivisionError
    assert sorted(before) == sorted(_state(on))
    assert proof("llama", BRIDGE, "another_thread_count", cache).caught is False


# --- the run ------------------------------------------------------------------------------------


def test_a_run_writes_every_proof_and_prints_what_it_means(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from conformance.prove.command import read, run
    from conformance.prove.ports import FILE_NAME
    from conformance.spec import load_spec

    (tmp_path / "models.toml").write_text(
        'schema = 1\n[[model]]\nid = "llama-twin"\narchitecture = "LlamaForCausalLM"\n'
        'source = { twin = "llama" }\n'
    )
    status = run(
        load_spec(tmp_path / "models.toml"),
        subjects=["bridge"],
        faults=["attn_scale_0.1%", "another_batch_size"],
        out=tmp_path / "out",
        cache=cache,
        workers=1,
        console=Console(width=120),
    )
    assert status == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / FILE_NAME).read_text().splitlines()]
    assert [line["kind"] for line in lines] == [
        "header",
        "unfaulted",
        "fault",
        "equivalent",
        "footer",
    ]
    fault = lines[2]
    assert fault["class"] == "attention scale"
    assert fault["site_named"] is True
    assert fault["named"] == "blocks.1.attn.scores"
    assert fault["gates"]["mean KL < 0.1"] is False
    assert fault["prompts"] == ["sixteen"]
    assert fault["factor"] > 1e4
    assert lines[1]["seed"] == 0
    assert lines[1]["alarms"] == []
    assert len(read(tmp_path / "out" / FILE_NAME)) == 3
    printed = capsys.readouterr().out
    assert "1 of 1 caught, site named in 1" in printed
    assert "0 of 1 flagged" in printed


#: (twin, entry of the catalogue, why it is nothing there): each was once put in all the same.
NOTHING = (
    ("olmo3", "rope_local_global_swapped", "both kinds of layer have one base"),
    ("recurrent-gemma", "window_absent", "the bridge shows nothing inside its blocks"),
    ("recurrent-gemma", "mlp_out_scaled", "the same"),
    ("recurrent-gemma", "generation_hooks_prompt_only", "it decodes without a cache"),
    ("hunyuan", "positions_shifted", "a norm weighs what is rotated: differences are not all"),
    ("bitnet", "heads_permuted", "a norm weighs all heads' outputs together"),
    ("deepseek-v2-lite", "router_not_renormalised", "nothing is renormalised"),
    ("longt5-tglobal", "fused_qkv", "keys are projected twice"),
    ("t5gemma", "cache_stale", "generation of two stacks keeps no cache"),
)


@pytest.mark.skipif(HOOKED, reason="ports of 4.3.0")
@pytest.mark.parametrize(("twin", "name", "why"), NOTHING)
def test_what_would_change_nothing_is_not_put_in(
    twin: str, name: str, why: str, cache: Path
) -> None:
    from explained import ported

    from conformance.faults import CATALOGUE

    assert not CATALOGUE[name].fits(ported(twin, cache).exact), why


def test_another_base_is_another_base_far_out_too() -> None:
    """A cause is named to 1e-12 (SAME_FUNCTION_FLOOR): a fault must be what it says to less."""
    import torch

    from conformance.faults.tables import based

    positions = torch.arange(4096, dtype=torch.float64)[:, None]

    def table(base: float) -> tuple[torch.Tensor, torch.Tensor]:
        turns = positions * base ** (-torch.arange(0, 10, 2, dtype=torch.float64) / 10)
        turns = torch.cat([turns, turns], dim=-1)
        return turns.cos(), turns.sin()

    changed = based(1.01)(*table(10000.0))
    # Angles of up to 4096 are themselves rounded to 4096 * 2^-53 = 5e-13.
    for found, right in zip(changed, table(10100.0), strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)
