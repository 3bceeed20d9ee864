"""Explanations: what is said of a fault, of a right port, and of a port that dies."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from conformance.explain.explanations import Explanation
    from conformance.implementations.lens_model import LensModel

PICTURES = {"error-by-layer.png", "differences.png", "heat-map.png"}


def _explained(
    fault: str, cache: Path, out: Path | None = None, twin: str = "llama"
) -> Explanation:
    from explained import ported

    from conformance.explain.port import explain_port
    from conformance.faults import CATALOGUE

    port = ported(twin, cache)
    with CATALOGUE[fault].apply(port.exact):
        return explain_port(port.model, port.exact, port.reference, port.checkpoint, out=out)


def test_a_wrong_eps_is_located_explained_and_drawn(twin_cache: Path, tmp_path: Path) -> None:
    from conformance.report.explanation import page

    found = _explained("norm_eps_tenfold", twin_cache, tmp_path)
    assert not found.conforms
    assert (found.location.kind, found.location.site) == ("component", "blocks.1.ln1")
    assert [c.hypothesis for c in found.causes] == ["norm_eps"]
    assert found.causes[0].exact
    assert found.minimal is not None
    assert (found.minimal.n_tokens, found.minimal.original_tokens) == (1, 16)
    assert found.minimal.script is None
    assert {Path(p).name for p in found.pictures} == PICTURES
    for picture in found.pictures:
        width, height = struct.unpack(">II", Path(picture).read_bytes()[16:24])
        assert width > 300
        assert height > 200
    text = page(found)
    said = " ".join(text.split())
    assert text.startswith("llama-twin, bridge: does not conform (LlamaForCausalLM, a twin)\n")
    assert "blocks.1.ln1 (norm before attention) is wrong by itself" in said
    assert "eps were 0.0001; the checkpoint says 1e-05" in said
    assert "1.0e-12 is allowed" in said
    assert "The logits are off by " in said
    assert "conformance run --model llama-twin --subject bridge" in said


def test_an_explanation_survives_json(twin_cache: Path) -> None:
    from conformance.explain.explanations import Explanation

    found = _explained("causal_one_too_wide", twin_cache)
    data = json.loads(found.to_json())
    assert data["location"]["site"] == "blocks.1.attn.pattern"
    assert data["schema_version"] == 1
    assert Explanation.from_dict(data) == found
    with pytest.raises(ValueError, match="schema version"):
        Explanation.from_dict({**data, "schema_version": 99})


def test_numbers_that_json_has_not() -> None:
    import math

    from conformance.explain.explanations import Explanation, Location

    location = Location("component", "logits", measured=math.inf, subject=math.nan)
    found = Explanation("m", "s", "a", "twin", False, location)
    back = Explanation.from_dict(json.loads(found.to_json()))
    assert back.location.measured == math.inf
    assert back.location.subject is not None
    assert math.isnan(back.location.subject)


def test_a_weight_names_its_row_and_where_it_shows(twin_cache: Path) -> None:
    from conformance.report.explanation import page

    found = _explained("W_in_row", twin_cache)
    said = " ".join(page(found).split())
    assert "The loaded weight blocks.1.mlp.W_in is not the checkpoint's" in said
    assert "weights must be exact" in said
    assert "d_mlp index 40 only" in said
    assert "Besides blocks.1.mlp.pre_linear (up projection of the MLP)" in said


def test_a_hook_alone_does_no_harm_to_the_logits(twin_cache: Path) -> None:
    from conformance.report.explanation import page

    found = _explained("hook_v_shows_k", twin_cache)
    assert found.symptom == "The logits agree."
    said = " ".join(page(found).split())
    assert "The hook of blocks.1.attn.v shows something else" in said
    assert "it shows what the reference has at blocks.1.attn.k" in said


def test_a_right_port_is_said_to_be_right_with_its_margins(twin_cache: Path) -> None:
    import torch
    from explained import ported

    from conformance.explain.port import explain_port
    from conformance.report.explanation import page

    port = ported("llama", twin_cache)
    fresh = port.load(torch.float64)  # its weights are processed in place
    found = explain_port(port.model, fresh, port.reference, port.checkpoint, load=port.load)
    assert found.conforms
    assert found.location.kind == "none"
    assert found.minimal is None
    judged = {(m.check, m.judgement) for m in found.margins}
    assert {
        ("weights", "exact"),
        ("activations", "same_function"),
        ("activations", "same_precision"),
        ("components", "same_precision"),
        ("logits", "same_function"),
        ("logits", "same_precision"),
        ("processed logits", "same_function"),
        ("processed logits", "same_precision"),
    } == judged
    assert all(m.margin <= 1 for m in found.margins)
    text = page(found)
    assert text.startswith("llama-twin, bridge: conforms (")
    assert "Nothing differs" in text


def test_a_lost_upcast_is_bisected_over_dtypes(twin_cache: Path) -> None:
    import torch
    from explained import ported

    from conformance.explain.port import explain_port
    from conformance.faults import CATALOGUE

    port = ported("llama", twin_cache)
    with contextlib.ExitStack() as stack:

        def load(dtype: torch.dtype) -> LensModel:
            subject = port.load(dtype)
            stack.enter_context(CATALOGUE["softmax_in_bfloat16"].apply(subject))
            return subject

        found = explain_port(
            port.model, port.load(torch.float64), port.reference, port.checkpoint, load=load
        )
    assert (found.location.kind, found.location.site) == ("precision", "blocks.1.attn.pattern")
    assert {b.setting: b.ok for b in found.dtypes} == {
        "float32": False,
        "bfloat16": True,
        "float16": True,
    }
    assert "one rounding to bfloat16" in found.diagnosed


def test_an_upcast_lost_in_bfloat16_is_explained(twin_cache: Path) -> None:
    import torch
    import twins

    from conformance.engine import load as load_subject
    from conformance.engine import prepared
    from conformance.explain.port import explain_port
    from conformance.faults import CATALOGUE
    from conformance.jobs import Job

    prompts = ("sixteen", "padded_left", "long")
    model = twins.twin_model("llama", dtype="bfloat16", prompts=prompts)
    checkpoint, reference = prepared(model, twin_cache, lambda _: None)
    job = Job("subject", model, str(twin_cache), "bridge")
    with contextlib.ExitStack() as stack:

        def load(dtype: torch.dtype) -> LensModel:
            subject = load_subject(job, checkpoint, reference, dtype, lambda _: None)
            stack.enter_context(CATALOGUE["norm_upcast_lost"].apply(subject))
            return subject

        found = explain_port(
            model, load(torch.float64), reference, checkpoint.path, load=load, pictures=False
        )
    assert (found.location.kind, found.location.site) == ("precision", "blocks.1.ln1")
    assert "many entries' errors have in common" in found.location.sentence
    assert found.dtypes == ()


def test_a_wrong_fold_is_bisected_over_the_flags(twin_cache: Path) -> None:
    import torch
    from explained import ported

    from conformance.explain.bisection import culprits
    from conformance.explain.port import explain_port
    from conformance.report.explanation import page

    port = ported("llama", twin_cache)

    def load(dtype: torch.dtype) -> LensModel:
        subject = port.load(dtype)
        right = subject.model.enable_compatibility_mode

        def wrong(fold_ln: bool = True, **flags: Any) -> None:
            right(fold_ln=fold_ln, **flags)
            if fold_ln:
                with torch.no_grad():
                    subject.model.blocks[1].attn.q.original_component.weight.mul_(1.01)

        subject.model.enable_compatibility_mode = wrong
        return subject

    found = explain_port(
        port.model, load(torch.float64), port.reference, port.checkpoint, load=load
    )
    assert (found.location.kind, found.location.site) == ("processing", "logits")
    assert "fold_ln alone breaks it" in found.location.sentence
    assert "blocks.1.attn.pattern" in found.location.sentence
    assert culprits(found.flags) == ("fold_ln",)
    assert {b.setting: b.ok for b in found.flags} == {
        "fold_ln": False,
        "center_writing_weights": None,  # RMS norms do not subtract a mean
        "center_unembed": True,
        "fold_value_biases": True,
        "refactor_factored_attn_matrices": None,  # refused for rotary models
    }
    assert "Weight processing, each flag alone" in page(found)


def test_a_flag_that_raises_alone_is_judged_by_what_the_others_do() -> None:
    from conformance.explain.bisection import culprits
    from conformance.explain.explanations import Bisection

    raising = Bisection("fold_value_biases", False, note="it raises RuntimeError: shape")
    rest = Bisection("all but fold_value_biases", True, 1e-15, 1e-12)
    assert culprits((Bisection("fold_ln", True, 0.0, 1e-12), raising, rest)) == (
        "fold_value_biases",
    )
    still_wrong = Bisection("all but fold_value_biases", False, 1.0, 1e-12)
    assert culprits((raising, still_wrong)) == ()


def test_processing_that_raises(twin_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from explained import ported

    from conformance.explain.port import explain_port

    port = ported("llama", twin_cache)
    fresh = port.load(torch.float64)

    def wrong() -> None:
        raise KeyError("blocks.0.ln1.w")

    monkeypatch.setattr(fresh, "process_weights", wrong)
    found = explain_port(port.model, fresh, port.reference, port.checkpoint)
    assert found.location.kind == "processing"
    assert "it raises KeyError: 'blocks.0.ln1.w'" in found.location.sentence
    assert not found.conforms


def test_a_diagnosis_that_fails_costs_the_causes_only(
    twin_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import conformance.diagnose

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("no scale")

    monkeypatch.setattr(conformance.diagnose, "investigate", fails)
    found = _explained("norm_eps_tenfold", twin_cache)
    assert found.location.site == "blocks.1.ln1"
    assert found.causes == ()
    assert found.notes == ("causes could not be looked for: ZeroDivisionError: no scale",)
