"""Models that read pixels or a wave: what they are given, and what is judged of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from explained import ported
from fakes import ROOT
from twins import huggingface, judge, ran

from conformance import content
from conformance.checks import NO_TOKENS, judging
from conformance.checks.names import CHECKS
from conformance.errors import ImplementationError, NotApplicable
from conformance.ledger.judging import expected
from conformance.prompts import PROMPTS
from conformance.records import verdict_from_dict
from conformance.spec import load_spec

if TYPE_CHECKING:
    from pathlib import Path

MODELS = {m.id.removesuffix("-twin"): m for m in load_spec(ROOT / "models.toml").models}
IMAGES = ("vit", "deit", "ast")
WAVES = ("hubert", "wav2vec2-large")
JUDGED = (
    *("weights", "activations", "components", "logits", "patterns", "interventions", "determinism"),
)


@pytest.mark.parametrize("twin", WAVES)
@pytest.mark.parametrize("frames", [1, 2, 16])
def test_the_shortest_wave_of_so_many_frames(twin: str, frames: int, twin_cache: Path) -> None:
    model = huggingface(twin, twin_cache).model
    samples = content.samples(model.config, frames)
    count = model._get_feat_extract_output_lengths
    assert int(count(torch.tensor(samples))) == frames
    assert int(count(torch.tensor(samples - 1))) == frames - 1


@pytest.mark.parametrize("twin", [*IMAGES, *WAVES])
def test_there_are_as_many_positions_as_a_prompt_says(twin: str, twin_cache: Path) -> None:
    for name in ("sixteen", "media"):
        found = ran(twin, twin_cache, name)
        assert found["blocks.0.resid_pre"].shape[:2] == found.prompt.tokens.shape
    assert len(found.prompt.tokens) == 3
    one, three = ran(twin, twin_cache), found
    assert not torch.equal(three.logits[0], three.logits[1])
    assert not torch.equal(one.logits[0, :1], three.logits[0, :1])


@pytest.mark.parametrize("twin", ["vit", "hubert"])
def test_every_prompt_is_given_or_has_a_reason(twin: str, twin_cache: Path) -> None:
    model = huggingface(twin, twin_cache)
    given, left_out = content.contents(model.family, model.model.config)
    assert {p.name for p in given} | set(left_out) == set(PROMPTS)
    assert not {p.name for p in given} & set(left_out)
    assert all(left_out.values())
    with pytest.raises(ImplementationError, match="unknown prompt set 'sixteenth'"):
        content.contents(model.family, model.model.config, ["sixteenth"])


def test_checks_about_tokens_are_left_out(twin_cache: Path) -> None:
    assert judging(CHECKS, huggingface("vit", twin_cache).family) == tuple(
        c for c in CHECKS if c in JUDGED
    )
    assert judging(CHECKS, huggingface("bert", twin_cache).family) == CHECKS


@pytest.mark.parametrize("twin", ["vit", "ast", "hubert", "wav2vec2"])
def test_a_port_is_judged_as_expected(twin: str, twin_cache: Path) -> None:
    model = MODELS[twin]
    try:
        records = judge(model, "bridge", twin_cache)
    except NotApplicable as error:
        pytest.skip(str(error))
    assert tuple(records) == CHECKS
    for name, record in records.items():
        verdict = expected(verdict_from_dict(json.loads(json.dumps(record))), model)
        if name in JUDGED:
            assert verdict.outcome in ("passed", "xfailed"), verdict.reason
        else:
            assert verdict.outcome == "not_applicable"
            assert NO_TOKENS in str(verdict.reason)
    assert dict(records["logits"]["verdict"])["same_function"]["compared"] >= 2


def test_an_explanation_writes_no_script_of_an_image(twin_cache: Path) -> None:
    """Ports of ViT show the pattern by the hook of the scores (finding 004)."""
    from conformance.explain.port import explain_port

    port = ported("vit", twin_cache)
    found = explain_port(port.model, port.exact, port.reference, port.checkpoint)
    assert found.location.site == "blocks.0.attn.scores"
    assert found.minimal is not None
    assert found.minimal.n_tokens == found.minimal.original_tokens == 17
    assert found.minimal.script is None
    assert "this prompt has pixel_values" in found.minimal.note
