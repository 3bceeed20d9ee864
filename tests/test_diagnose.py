"""Diagnosis: the right cause is named, and never a wrong one."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import math
import types
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import conformance
from conformance.checkpoints.twin_catalogue import TWINS
from conformance.spec import ModelSpec, TwinSource

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from conformance.diagnose import Evidence
    from conformance.diagnose.score import Patient, Scored

#: HookedTransformer left in 4.0.
HOOKED = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None

#: Hypotheses of faults on these prompts: a short one past the twins' windows, and a padded one.
PROMPTS = ("sixteen", "padded_left")


@functools.cache
def patient(twin: str, subject: str, cache: Path) -> Patient:
    from conformance.diagnose.score import Patient

    model = ModelSpec(
        id=f"{twin}-diagnosed",
        architecture=TWINS[twin].architecture,
        source=TwinSource(twin=twin),
        prompts=PROMPTS,
    )
    return Patient.load(model, subject, cache)


@functools.cache
def scored(twin: str, subject: str, fault: str, cache: Path) -> Scored:
    from conformance.faults import CATALOGUE

    on = patient(twin, subject, cache)
    assert CATALOGUE[fault].applies(on.subject), f"{fault} does not apply to {twin}"
    return on.score(CATALOGUE[fault])


def right_port(twin: str, cache: Path) -> Evidence:
    """Evidence on a port in which nothing is wrong."""
    from conformance.diagnose import collect

    on = patient(twin, "bridge", cache)
    return collect(on.reference, on.subject, PROMPTS, config=on.config)


def showing(
    found: Evidence, site: str, change: Callable[[str, torch.Tensor], torch.Tensor]
) -> Evidence:
    """The same, but with another value at one site."""
    right = found.subject

    def subject(prompt: str, name: str) -> torch.Tensor | None:
        value = right(prompt, name)
        return value if name != site or value is None else change(prompt, value)

    return dataclasses.replace(found, site=site, subject=subject, subject_plain=lambda *_: None)


# --- the faults of the catalogue ----------------------------------------------------------------

#: (twin, fault): at least one of every kind of formula, and what its cause is said to be.
SLICE = (
    ("mbart", "encoder_norm_skipped", "norm_skipped", "the norm is left out"),
    ("bert", "norm_eps_of_torch", "norm_eps", "eps were 1e-05"),
    ("llama", "rope_base_0.01%", "rotary_base", "base 10001;"),
    ("llama", "rope_partial_dim", "rotary_dim", "pair 0"),
    ("llama", "rope_adjacent_pairs", "rotary_pairing", "2i and 2i + 1"),
    ("llama", "rope_stretched", "rotary_positions_scaled", "multiplied by 1.001"),
    ("llama", "rope_queries_late", "rotary_positions_shifted", "queries are rotated 1 position"),
    ("llama", "attn_scale_0.1%", "attention_scale", "1.001 times the checkpoint's"),
    ("llama", "heads_tiled", "grouped_heads_tiled", "tiled"),
    ("llama", "heads_swapped", "head_order", "heads 0 and 5"),
    ("llama", "causal_one_too_wide", "causal_mask", "sees the next token"),
    ("llama", "causal_one_too_narrow", "causal_mask", "does not see its own token"),
    ("llama", "padding_ignored", "padding_ignored", "padding"),
    ("llama", "norm_eps_tenfold", "norm_eps", "eps were 0.0001; the checkpoint says 1e-05"),
    ("llama", "norm_shared", "norm_shared", "blocks.1.ln1"),
    ("llama", "layers_swapped", "weights_of_layer", "blocks.2.ln1"),
    ("llama", "gate_up_swapped", "gate_up_swapped", "up projection"),
    ("llama", "mlp_clamped", "activation_clamped", "at most 1;"),
    ("llama", "parallel_for_sequential", "parallel", "before attention"),
    ("llama", "residual_scaled", "residual_scale", "weight 0.99, not 1"),
    ("llama", "logits_scaled", "logits_scaled", "1.02 times"),
    ("llama", "W_Q_transposed", "matrix_transposed", "transpose of attn.W_Q"),
    ("gpt2", "bias_k_skipped", "bias_skipped", "b_K"),
    ("gpt2", "gelu_quick", "activation", "quick_gelu; the checkpoint says gelu_tanh"),
    ("gpt2", "positions_late", "positions_shifted", "position p - 1"),
    ("gpt2", "positions_count_padding", "positions_count_padding", "padding"),
    ("gemma2", "softcap_missing", "softcap_missing", "the checkpoint says 20"),
    ("gemma2", "softcap_off", "softcap", "capped at 20.3333"),
    ("gemma2", "final_softcap_off", "final_softcap", "capped at 30.5; the checkpoint says 30"),
    ("gemma2", "window_one_too_narrow", "window_width", "11 tokens; the checkpoint says 12"),
    ("gemma2", "norm_offset_missing", "norm_offset", "1 + weight"),
    ("gemma2", "embed_scale_rounded", "embed_scale", "rounded to bfloat16"),
    ("mixtral", "router_not_renormalised", "router_renormalisation", "softmax over all"),
    ("mixtral", "router_one_more", "router_top_k", "3 experts a token; the checkpoint says 2"),
    ("mixtral", "experts_swapped", "experts_swapped", "experts 0 and 1"),
    ("gpt-neox", "rope_base_1%", "rotary_base", "base 10100; the checkpoint says 10000"),
    ("gpt-neox", "sequential_for_parallel", "sequential", "attention's output too"),
)


@pytest.mark.parametrize(("twin", "fault", "hypothesis", "words"), SLICE, ids=lambda v: str(v))
def test_the_cause_of_a_fault_is_named(
    twin: str, fault: str, hypothesis: str, words: str, twin_cache: Path
) -> None:
    found = scored(twin, "bridge", fault, twin_cache)
    assert not found.wrong, found.causes
    statements = [statement for name, statement in found.causes if name == hypothesis]
    assert statements, f"{found.site}: {found.causes}"
    assert any(words in statement for statement in statements), statements


@pytest.mark.parametrize(
    "fault",
    ["W_Q_row", "W_K_element", "W_out_element", "W_U_row"],
)
def test_a_damaged_weight_is_no_formula(fault: str, twin_cache: Path) -> None:
    found = scored("llama", "bridge", fault, twin_cache)
    assert found.site is not None
    assert found.causes == ()


@pytest.mark.parametrize("fault", ["hook_v_shows_k", "hook_rot_q_shows_rot_k"])
def test_a_hook_that_lies_is_told_from_a_wrong_formula(fault: str, twin_cache: Path) -> None:
    found = scored("llama", "bridge", fault, twin_cache)
    assert [name for name, _ in found.causes] == ["hook_shows_other"]


def test_dropout_is_recognised(twin_cache: Path) -> None:
    found = scored("llama", "bridge", "dropout_on", twin_cache)
    assert [name for name, _ in found.causes] == ["dropout"]
    assert "dropout of 0.1" in found.causes[0][1]


@pytest.mark.skipif(not HOOKED, reason="transformer-lens 4.0 has no HookedTransformer")
@pytest.mark.parametrize(
    ("fault", "hypothesis"),
    [
        ("rope_base_1%", "rotary_base"),
        ("attn_scale_0.1%", "attention_scale"),
        ("heads_tiled", "grouped_heads_tiled"),
        ("norm_eps_tenth", "norm_eps"),
        ("gate_up_swapped", "gate_up_swapped"),
        ("parallel_for_sequential", "parallel"),
    ],
)
def test_causes_in_a_hooked_transformer(fault: str, hypothesis: str, twin_cache: Path) -> None:
    found = scored("llama", "hooked", fault, twin_cache)
    assert [name for name, _ in found.causes] == [hypothesis]


def test_the_slice_covers_the_table() -> None:
    from conformance.diagnose.score import DESCRIBED, EXPECTED
    from conformance.faults import CATALOGUE

    assert set(EXPECTED) <= set(CATALOGUE)
    assert set(DESCRIBED) <= set(CATALOGUE)
    for _, fault, hypothesis, _ in SLICE:
        assert hypothesis in EXPECTED[fault]
    formulas = {"rotary", "attention scale", "softcap", "norm", "mlp", "router", "positions"}
    missing = {
        name
        for name, fault in CATALOGUE.items()
        if fault.klass in formulas
        and fault.kind == "fault"
        and fault.needs is None
        and name not in EXPECTED
    }
    assert not missing, "faults that are formulas and have no hypothesis"


# --- what is said, and what is not --------------------------------------------------------------


def test_nothing_is_said_of_a_right_port(twin_cache: Path) -> None:
    from conformance.diagnose import diagnose

    found = right_port("llama", twin_cache)
    assert found.site is None
    assert diagnose(found) == ()


def test_a_cause_carries_its_residual_and_what_it_explains(twin_cache: Path) -> None:
    from conformance.diagnose import diagnose
    from conformance.diagnose.facts import Norm

    site = "blocks.1.ln1"
    right = right_port("llama", twin_cache)
    on = patient("llama", "bridge", twin_cache)
    w = right.weights[f"{site}.w"]

    def other(prompt: str, _: torch.Tensor) -> torch.Tensor:
        x = on.reference.input(prompt, site)
        assert x is not None
        return Norm(3e-4, False, 0.0)(x, w)

    (cause,) = diagnose(showing(right, site, other))
    assert cause.hypothesis == "norm_eps"
    assert cause.site == site
    assert cause.exact
    assert cause.statement == f"{site} behaves as if eps were 0.0003; the checkpoint says 1e-05"
    assert cause.residual <= 1e-12
    assert cause.without > 1e-6


@pytest.mark.parametrize(
    ("twin", "wrong", "later"),
    [
        ("bart", "blocks.1.attn_out", "blocks.1.ln1"),  # norms come after what is added
        ("mbart", "blocks.1.mlp_out", "ln_encoder"),  # of two layers, the encoder's last
    ],
)
def test_what_diverges_is_in_the_order_of_its_architecture(
    twin: str, wrong: str, later: str, twin_cache: Path
) -> None:
    from conformance.diagnose.evidence import watch
    from conformance.faults.inject import edited

    on = patient(twin, "bridge", twin_cache)
    with edited(on.subject, wrong, lambda value: value * 1.01):
        run = watch(on.reference, on.subject, ("sixteen",), modes=("plain",))
    found = [site for site in run.failing("plain") if site not in on.known]
    assert found[0] == wrong
    assert later in found


def test_what_this_checkpoint_cannot_tell_apart_is_all_named(twin_cache: Path) -> None:
    """Where a port shows scores but no rotated queries: one too far, or keys one too short."""
    from conformance.diagnose import diagnose
    from conformance.diagnose.evidence import Scene
    from conformance.diagnose.formulas import Stage, compute, right

    found = right_port("gpt-neox", twin_cache)
    f = right(found, 1)
    assert f.q_rope is not None
    late = dataclasses.replace(f, q_rope=dataclasses.replace(f.q_rope, shift=1.0))

    def scores(prompt: str, _: torch.Tensor) -> torch.Tensor:
        scene = Scene(found, prompt, 1)
        return compute(scene, late, Stage.ROTATED, Stage.SCORES)["attn.scores"]

    causes = diagnose(showing(found, "blocks.1.attn.scores", scores))
    assert {c.hypothesis for c in causes} == {"rotary_positions_shifted"}
    assert len(causes) == 2
    assert all(c.site == "blocks.1.attn.rot_q" for c in causes)


@pytest.mark.parametrize("twin", ["hunyuan", "nanochat", "ministral3", "bitnet", "glm", "codegen"])
def test_the_formulas_of_attention_are_the_references(twin: str, twin_cache: Path) -> None:
    import torch

    from conformance.diagnose.evidence import Scene
    from conformance.diagnose.formulas import Stage, compute, right, values

    found = right_port(twin, twin_cache)
    f, last_norm = right(found, 1), found.family.qk_norm_rotated
    steps = [(Stage.PROJECTED, Stage.ROTATED), (Stage.SCORES, Stage.SCORES)]
    steps += [(Stage.ROTATED, Stage.NORMED)] if last_norm else []
    for prompt in PROMPTS:
        scene = Scene(found, prompt, 1)
        for since, until in steps:
            for kind, value in compute(scene, f, since, until).items():
                truth = scene.truth(kind)
                seen = truth > -1e30
                torch.testing.assert_close(
                    value[seen], truth[seen], rtol=0, atol=1e-11 * float(truth[seen].abs().max())
                )
        v = values(scene, f.clip).repeat_interleave(found.dims.group, dim=2)
        torch.testing.assert_close(f.mixed(scene, v), scene.truth("attn.z"), rtol=0, atol=1e-11)


def test_a_difference_that_no_hypothesis_fits_has_no_cause(twin_cache: Path) -> None:
    from conformance.diagnose import investigate

    found = investigate(
        showing(right_port("llama", twin_cache), "blocks.1.attn.q", lambda _, t: t + 0.01 * t**2)
    )
    assert found.causes == ()
    assert "the projection attn.W_Q" in found.formulas


def test_a_formula_that_does_not_reproduce_the_reference_is_not_believed(twin_cache: Path) -> None:
    from conformance.diagnose import investigate

    right = right_port("llama", twin_cache)
    config = types.SimpleNamespace(**{**right.config.to_dict(), "rms_norm_eps": 1e-3})
    broken = dataclasses.replace(
        showing(right, "blocks.1.ln1", lambda _, t: t + 0.01 * t**2), config=config
    )
    found = investigate(broken)
    assert found.causes == ()
    assert found.unproven == ("the norm ln1",)


def test_hypotheses_know_nothing_of_the_catalogue() -> None:
    folder = Path(conformance.__file__).parent / "diagnose"
    for path in folder.glob("*.py"):
        if path.stem == "score":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any("faults" in name for name in names), path.name


# --- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "first"), [(9.99999999e-6, 1e-5), (10001.0, 1e4), (20.33333333333, 20.3333)]
)
def test_numbers_that_a_person_would_write(value: float, first: float) -> None:
    from conformance.diagnose.fit import written

    found = list(written(value))
    assert found[0] == pytest.approx(first, rel=1e-3)
    assert found[-1] == value
    assert len(set(found)) == len(found)


def test_a_parameter_is_fitted_from_afar() -> None:
    import torch

    from conformance.diagnose.fit import fitted

    x = torch.linspace(0.1, 3, 50, dtype=torch.float64)
    best = next(
        fitted(lambda c: c * torch.tanh(x / c), 2.5 * torch.tanh(x / 2.5), (30.0,), positive=True)
    )
    assert best == pytest.approx(2.5, rel=1e-12)


def test_masks_that_differ_are_infinitely_far() -> None:
    import torch

    from conformance.diagnose.fit import apart

    site, valid = "blocks.0.attn.scores", torch.ones(1, 2, dtype=torch.bool)
    truth = torch.tensor([[[[1.0, -torch.inf], [2.0, 3.0]]]], dtype=torch.float64)
    other = truth.clone()
    other[..., 1, 1] = -1e9
    assert apart(site, truth, other, other.nan_to_num(neginf=-1e30), valid) == 0.0
    assert apart(site, truth, other, truth, valid) == math.inf
    assert apart(site, truth, truth, truth + 1, valid, loose=True) < 1e-15
    assert apart(site, truth, truth, truth[..., :1], valid) == math.inf


def test_rotation_turns_a_pair_by_the_angle_of_its_position() -> None:
    import torch

    from conformance.diagnose.rotary import Rope, frequencies

    x = torch.tensor([[[[1.0, 0.0, 0.0, 0.0, 7.0]]]], dtype=torch.float64)
    rope = Rope(frequencies(100.0, 4))
    at = torch.tensor([[3]])
    turned = rope(x, at)[0, 0, 0]
    assert turned.tolist() == pytest.approx([math.cos(3), 0, math.sin(3), 0, 7])
    neighbours = dataclasses.replace(rope, pairing="adjacent", table="adjacent", direction=-1)
    turned = neighbours(x, at)[0, 0, 0]
    assert turned.tolist() == pytest.approx([math.cos(3), -math.sin(3), 0, 0, 7])


@pytest.mark.parametrize("twin", ["llama3-rope", "llama-yarn-rope", "llama-linear-rope"])
def test_scaled_frequencies_are_the_librarys(twin: str) -> None:
    import torch
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from conformance.diagnose.rotary import setting
    from conformance.families import dims, family
    from conformance.precision import promoted

    entry = TWINS[twin]
    config = transformers.AutoConfig.for_model(entry.model_type, **entry.config)
    found = setting(config, family(entry.architecture, config), dims(config), 0)
    assert found is not None
    with promoted(torch.float64):
        expected, radius = ROPE_INIT_FUNCTIONS[found.kind](config, torch.device("cpu"))
    rope = found.rope()
    assert torch.allclose(rope.frequencies, expected.double(), rtol=1e-12, atol=0)
    assert rope.radius == pytest.approx(radius, rel=1e-12)
    assert not torch.allclose(found.unscaled().frequencies, rope.frequencies, rtol=1e-3)


@pytest.mark.parametrize("layout", ["concat", "per_head", "grouped", "quarters"])
def test_a_fused_projection_is_put_together_again(layout: str) -> None:
    import torch
    import transformers

    from conformance.diagnose.projections import _joined
    from conformance.families import dims, family
    from conformance.weights import split_fused

    entry = TWINS["gpt2"]
    fam = dataclasses.replace(
        family(entry.architecture, None),
        qkv_layout=layout,  # type: ignore[arg-type]
    )
    config = transformers.GPT2Config(**entry.config)
    heads = dataclasses.replace(
        dims(config), n_heads=8, n_kv_heads=2 if layout in ("concat", "grouped") else 8, d_head=3
    )
    width = (heads.n_heads + 2 * heads.n_kv_heads) * heads.d_head
    fused = torch.arange(5.0 * width).reshape(5, width)
    assert torch.equal(_joined(*split_fused(fused, fam, heads), layout), fused)
