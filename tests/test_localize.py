"""Faults that are put in are found where they are: site, component, layers, heads, positions."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.explain.localize import Finding


@functools.cache
def found(twin: str, fault: str, cache: Path) -> Finding | None:
    from explained import ported

    from conformance.explain.localize import Localizer
    from conformance.explain.survey import Survey
    from conformance.faults import CATALOGUE

    port = ported(twin, cache)
    entry = CATALOGUE[fault]
    assert entry.applies(port.exact), f"{fault} does not apply to {twin}"
    with entry.apply(port.exact):
        return Localizer(Survey(port.reference, port.exact)).function()


def located(twin: str, fault: str, cache: Path) -> Finding:
    finding = found(twin, fault, cache)
    assert finding is not None, "nothing was found"
    return finding


@pytest.mark.parametrize("twin", ["llama", "gemma2", "mixtral"])
def test_nothing_is_found_in_a_right_port(twin: str, twin_cache: Path) -> None:
    from explained import ported

    from conformance.explain.localize import Localizer
    from conformance.explain.survey import Survey, failures

    port = ported(twin, twin_cache)
    survey = Survey(port.reference, port.exact)
    assert Localizer(survey).function() is None
    modes = {mode for _, mode, _ in survey.comparisons}
    assert modes == {"plain"}, "isolation costs time and says nothing of a port that agrees"
    assert len(survey.comparisons) == len(port.reference.prompts)
    assert not failures(survey.weights())
    assert {m.judgement for m in survey.margins()} == {"same_function", "exact"}
    assert max(m.margin for m in survey.margins()) < 1


#: (twin, fault, kind, site, component, words of the sentence or the part)
CASES = (
    ("llama", "norm_eps_tenfold", "component", "blocks.1.ln1", "blocks.1.ln1", "in layer 1"),
    ("llama", "rope_base_0.01%", "component", "blocks.1.attn.rot_q", "blocks.1.attn", "position 1"),
    ("llama", "attn_scale_0.1%", "component", "blocks.1.attn.scores", "blocks.1.attn", "1.001 tim"),
    ("llama", "gate_up_swapped", "component", "blocks.1.mlp.post", "blocks.1.mlp", "activation"),
    ("llama", "logits_scaled", "component", "logits", "unembed", "1.02 times"),
    ("llama", "residual_scaled", "wiring", "blocks.1.resid_post", None, "in layer 1"),
    ("llama", "causal_one_too_wide", "component", "blocks.1.attn.pattern", "blocks.1.attn", "next"),
    ("llama", "causal_one_too_narrow", "component", "blocks.1.attn.scores", "blocks.1.attn", "own"),
    ("llama", "embed_unused_row", "weights", "embed.W_E", "embed", "every forward pass agrees"),
    ("llama", "W_Q_transposed", "weights", "blocks.1.attn.W_Q", "blocks.1.attn", "transposed"),
    ("llama", "accessor_W_K", "weights", "model.W_K", None, "an accessor; the parameters"),
    ("llama", "hook_v_shows_k", "component", "blocks.1.attn.v", "blocks.1.attn", "blocks.1.attn.k"),
    ("llama", "hook_never_fires", "structure", "blocks.1.attn.z", "blocks.1.attn", "never fired"),
    ("llama", "dropout_on", "component", "blocks.1.attn.pattern", "blocks.1.attn", "irregularly"),
    ("gemma2", "softcap_off", "component", "blocks.1.attn.scores", "blocks.1.attn", "softcap"),
    ("mixtral", "router_not_renormalised", "component", "blocks.1.mlp_out", "blocks.1.mlp", "exp"),
)


@pytest.mark.parametrize(("twin", "fault", "kind", "site", "component", "words"), CASES)
def test_a_fault_is_found_where_it_is(
    twin: str,
    fault: str,
    kind: str,
    site: str,
    component: str | None,
    words: str,
    twin_cache: Path,
) -> None:
    location = located(twin, fault, twin_cache).location
    assert (location.kind, location.site, location.component) == (kind, site, component)
    assert words in f"{location.part}; {location.sentence}"
    if kind not in ("structure",):
        assert location.measured is not None
        assert location.allowed is not None
        assert location.measured > location.allowed
        assert location.index is not None


def test_heads(twin_cache: Path) -> None:
    location = located("llama", "heads_swapped", twin_cache).location
    assert location.site == "blocks.1.attn.z"
    assert location.heads == (0, 5)
    assert location.positions is None
    assert "heads 0 and 5 are exchanged" in location.sentence


def test_grouped_heads(twin_cache: Path) -> None:
    location = located("llama", "heads_tiled", twin_cache).location
    assert location.heads == (1, 4), "heads 0, 2, 3 and 5 share their key either way"
    assert "heads 1 and 4 only" in location.sentence


@pytest.mark.parametrize(
    ("fault", "first", "verb"),
    [("window_one_too_wide", 12, "attend to"), ("window_one_too_narrow", 11, "do not attend to")],
)
def test_the_edge_of_a_window(fault: str, first: int, verb: str, twin_cache: Path) -> None:
    location = located("gemma2", fault, twin_cache).location
    assert location.part == "attention mask"
    assert location.positions == tuple(range(first, 16))
    assert f"queries at positions >= {first} {verb} the key {first} back" in location.sentence
    assert "the edge of the window of 12" in location.sentence


def test_padding(twin_cache: Path) -> None:
    finding = located("llama", "padding_ignored", twin_cache)
    assert finding.prompt == "padded_left"
    assert "keys that are padding" in finding.location.sentence
    assert finding.notes == ("prompt padded_left shows it (padding); sixteen agrees",)


def test_one_row_of_a_matrix(twin_cache: Path) -> None:
    finding = located("llama", "W_in_row", twin_cache)
    location = finding.location
    assert (location.kind, location.site) == ("weights", "blocks.1.mlp.W_in")
    assert location.rows == (40,)
    assert "48 of 3840 elements: d_mlp index 40 only" in location.sentence
    assert finding.site == "blocks.1.mlp.pre_linear"
    assert finding.others[0].site == "blocks.1.mlp.pre_linear"
    assert finding.others[0].rows == (40,)


def test_one_element_of_a_matrix(twin_cache: Path) -> None:
    location = located("llama", "W_Q_element", twin_cache).location
    assert location.heads == (3,)
    assert location.sentence == "one element, [3, 1, 0]"
    assert location.index == (3, 1, 0)


def test_one_expert_of_a_mixture(twin_cache: Path) -> None:
    finding = located("mixtral", "experts_swapped", twin_cache)
    assert finding.site == "blocks.1.mlp_out"
    said = [finding.location.sentence, *(o.sentence for o in finding.others)]
    assert any("the router sends to experts 0 and 1" in s for s in said)


def test_a_token_of_the_embedding(twin_cache: Path) -> None:
    finding = located("llama", "W_E_row", twin_cache)
    assert finding.location.site == "embed.W_E"
    assert "token 56 only" in finding.location.sentence


def test_wiring_names_both_ends(twin_cache: Path) -> None:
    location = located("llama", "parallel_for_sequential", twin_cache).location
    assert location.kind == "wiring"
    assert location.between == ("blocks.1.attn_out", "blocks.1.resid_mid")
    assert "every component agrees when it is given the reference's own input" in location.sentence
    assert "what the reference has at blocks.1.resid_pre" in location.sentence


def test_a_component_fed_from_elsewhere(twin_cache: Path) -> None:
    location = located("gemma2", "parallel_for_sequential", twin_cache).location
    assert location.kind == "wiring"
    assert location.between is not None
    assert "blocks.1.resid_pre" in location.sentence


def test_layers_that_share_a_fault_are_told_together(twin_cache: Path) -> None:
    finding = located("llama", "layers_swapped", twin_cache)
    assert finding.location.kind == "weights"
    assert finding.location.layers == (1, 2)
    assert finding.others[0].site == "blocks.1.ln1"
    assert finding.others[0].layers == (1, 2)


def test_a_port_that_raises(twin_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from explained import ported

    from conformance.explain.localize import Localizer
    from conformance.explain.survey import Survey

    port = ported("llama", twin_cache)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(port.exact, "run", broken)
    finding = Localizer(Survey(port.reference, port.exact)).function()
    assert finding is not None
    assert finding.location.kind == "structure"
    assert "RuntimeError: no such kernel" in finding.location.sentence


def test_a_lost_upcast_is_a_loss_of_precision(twin_cache: Path) -> None:
    from explained import ported

    from conformance.explain.localize import Localizer
    from conformance.explain.survey import Survey
    from conformance.faults import CATALOGUE

    port = ported("llama", twin_cache)
    used = port.load(torch.float32)
    localizer = Localizer(Survey(port.reference, port.exact))
    assert localizer.precision(used) is None
    with CATALOGUE["softmax_in_bfloat16"].apply(used):
        finding = Localizer(Survey(port.reference, port.exact)).precision(used)
    assert finding is not None
    assert finding.location.kind == "precision"
    assert finding.location.site == "blocks.1.attn.pattern"
    assert "times the larger of the reference's own error" in finding.location.sentence


# --- words, without a model ---------------------------------------------------------------------


def test_lists_of_indices() -> None:
    from conformance.explain.whereabouts import count, listed

    assert listed([3]) == "3"
    assert listed([3, 5]) == "3 and 5"
    assert listed([3, 4]) == "3 and 4"
    assert listed([0, 1, 2, 3]) == "0 to 3"
    assert listed([1, 3, 5, 7, 9, 11, 13]) == "1, 3, 5, 7, 9, 11, ... (7 of them)"
    assert count("head", [3]) == "head 3"
    assert count("head", [3, 5]) == "heads 3 and 5"


def test_a_shift_by_one_position_is_seen() -> None:
    from conformance.explain.whereabouts import find
    from conformance.families import Dims

    dims = Dims(1, 1, 1, 4, 4, 9, 8, 0, (None,), 4)
    truth = torch.randn(1, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    late = torch.cat([truth[:, :1], truth[:, :-1]], dim=1)
    valid = torch.ones(1, 8, dtype=torch.bool)
    spot = find("pos_embed", truth, late, valid, 1e-12, dims)
    assert spot.positions == tuple(range(1, 8))
    assert "what the reference has at the one before it" in spot.sentence


def test_not_a_number_is_everywhere_wrong() -> None:
    from conformance.profiles import relative

    truth = torch.ones(1, 2, 3)
    value = truth.clone()
    value[0, 1, 2] = float("nan")
    found = relative("ln_final", truth, value, torch.ones(1, 2, dtype=torch.bool))
    assert found[0, 1, 2] == float("inf")
    assert found.sum() == float("inf")
    assert int((found > 0).sum()) == 1


def test_a_weight_that_is_a_multiple() -> None:
    from conformance.explain.whereabouts import matrix

    w = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    spot = matrix(w, 2 * w, ("d_model", "d_mlp"))
    assert spot.sentence == "every element; it is 2 times the checkpoint's"
    assert spot.rows is None


#: On two stacks hooks are wrong without a fault (docs/findings/004): these come besides.
CROSSED = (
    ("cross_attn_out_scaled", "blocks.2.cross_attn_out", "output projection of attention to the"),
    ("cross_values_of_next_head", "blocks.2.cross_attn.v", "value projection of the encoder's"),
)


@pytest.mark.parametrize(("fault", "site", "part"), CROSSED)
def test_attention_to_an_encoder(fault: str, site: str, part: str, twin_cache: Path) -> None:
    finding = located("m2m100", fault, twin_cache)
    told = {other.site: other.part for other in (finding.location, *finding.others)}
    assert site in told
    assert told[site].startswith(part)


def test_what_a_decoder_site_is_computed_from(twin_cache: Path) -> None:
    from explained import ported

    from conformance.explain.localize import Localizer
    from conformance.explain.survey import Survey

    port = ported("mbart", twin_cache)
    localizer = Localizer(Survey(port.reference, port.exact))
    shown, first = set(port.exact.expected_hooks()[0]), port.exact.family.encoder
    before = {
        site: localizer._before(f"blocks.{first}.{site}", shown, forced=False)
        for site in ("resid_pre", "cross_attn.k", "ln_cross", "ln2")
    }
    assert before["resid_pre"] == {"embed", "pos_embed"}, "not the encoder's last layer"
    assert before["cross_attn.k"] == {"ln_encoder"}
    assert before["ln_cross"] == {f"blocks.{first}.resid_mid"}
    assert f"blocks.{first}.resid_cross" in before["ln2"]
