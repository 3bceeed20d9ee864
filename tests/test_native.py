"""Models of TransformerLens's own format: the reference, what was published, and what loads it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from twins import twin_model

from conformance.checkpoints import resolve
from conformance.checkpoints.twin_catalogue import TWINS
from conformance.checkpoints.twins import build_twin
from conformance.classes import model_class, read_config
from conformance.errors import CheckpointError, NotApplicable
from conformance.families import family
from conformance.faults import CATALOGUE
from conformance.implementations.base import replace_input
from conformance.native import ARCHITECTURE, published
from conformance.native.config import NativeConfig
from conformance.native.loading import load_bridge
from conformance.prove.bench import Bench
from conformance.spec import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

OWN = [name for name, twin in TWINS.items() if twin.architecture == ARCHITECTURE]
LOOSE = 1e-3
TOKENS = torch.tensor([[5, 17, 40, 8, 23, 23, 9, 31]])


def load(path: Path) -> Any:
    return model_class(ARCHITECTURE).from_pretrained(path, dtype=torch.float64).eval()


@pytest.fixture(scope="module", params=OWN)
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    build_twin(request.param, 0, path)
    return path


def test_the_reference_is_the_formula(twin: Path) -> None:
    """Written out once more, without modules."""
    model, config = load(twin), read_config(twin)
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(1).double())

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        if config.normalization is None and not name.endswith("mlp.ln"):
            return x
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        gain = w.get(f"{name}.weight")
        return x if gain is None else x * gain + w[f"{name}.bias"]

    def act(x: torch.Tensor) -> torch.Tensor:
        if config.act_fn == "gelu":
            return x * (1 + torch.erf(x / math.sqrt(2))) / 2
        if config.act_fn == "relu":
            return x * (x > 0)
        return x * x.exp() / x.exp().sum(-1, keepdim=True)

    stream = w["tok_embed.weight"][TOKENS[0]]
    positions = w["pos.weight"][: TOKENS.shape[1]]
    short = config.positions == "shortformer"
    stream = stream if short else stream + positions
    hidden = torch.full((len(stream),) * 2, -math.inf).double().triu(1)
    for layer in range(config.n_layers):
        at = f"layers.{layer}"
        x = normed(stream, f"{at}.ln1")
        made = x + positions if short else x
        q, k, v = (
            linear(made, f"{at}.attn.q"),
            linear(made, f"{at}.attn.k"),
            linear(x, f"{at}.attn.v"),
        )
        heads = []
        for h in range(config.n_heads):
            part = slice(h * config.d_head, (h + 1) * config.d_head)
            scores = q[:, part] @ k[:, part].T / math.sqrt(config.d_head) + hidden
            heads.append(scores.softmax(-1) @ v[:, part])
        stream = stream + linear(torch.cat(heads, -1), f"{at}.attn.o")
        if not config.attn_only:
            neurons = act(linear(normed(stream, f"{at}.ln2"), f"{at}.mlp.fc_in"))
            if config.act_fn == "solu_ln":
                neurons = normed(neurons, f"{at}.mlp.ln")
            stream = stream + linear(neurons, f"{at}.mlp.fc_out")
    expected = linear(normed(stream, "ln_out"), "head")
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits[0], expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_reference_generates_from_its_cache(twin: Path) -> None:
    model = load(twin)
    whole = model(TOKENS).logits
    past = model(TOKENS[:, :5], use_cache=True).past_key_values
    rest = model(TOKENS[:, 5:], past_key_values=past).logits
    torch.testing.assert_close(rest, whole[:, 5:])
    mask = torch.tensor([[0, 0, *[1] * 6]])
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), TOKENS[:, :6]], 1)
    at = (mask.cumsum(-1) - 1).clamp(0)
    found = model(padded, attention_mask=mask, position_ids=at).logits[:, 2:]
    torch.testing.assert_close(found, whole[:, :6])


def test_what_was_published_reads_as_the_same_checkpoint(twin: Path, tmp_path: Path) -> None:
    config = read_config(twin)
    published.write(twin, config, tmp_path)
    file = tmp_path / published.WEIGHTS
    state = torch.load(file, weights_only=True)
    state["blocks.0.attn.mask"] = torch.ones(2, 2)  # a buffer that some repositories hold
    torch.save(state, file)
    source = {"path": str(tmp_path)}
    spec = ModelSpec.model_validate({"id": "own", "architecture": ARCHITECTURE, "source": source})
    found = resolve(spec, tmp_path / "cache").path
    again, first = load(found).state_dict(), load(twin).state_dict()
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], first[name]) for name in first)
    assert read_config(found).positions == config.positions


@pytest.mark.parametrize("layers", [2, 7, 9])
def test_old_models_hold_matrices_transposed(layers: int) -> None:
    config = NativeConfig(layout="neel-solu-old", act_fn="solu_ln", n_layers=layers)
    weights = model_class(ARCHITECTURE)(config).state_dict()
    found = {name: tuple(t.shape) for name, t in published.laid_out(weights, config).items()}
    assert found["pos_embed.W_pos"] == ((96, 48) if layers > 8 else (48, 96))
    assert found["blocks.0.mlp.W_in"] == ((48, 80) if layers > 6 else (80, 48))
    assert found["blocks.0.attn.W_Q"] == ((4, 48, 12) if layers > 6 else (4, 12, 48))
    assert found["norm.w"] == (48,)
    assert found["blocks.0.mlp.norm.b"] == (80,)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"act_fn": "tanh"}, "act_fn is 'tanh'"),
        ({"d_model": None}, "d_model"),
        ({"attn_only": True}, "unknown: blocks.0.ln2.b"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    build_twin("solu", 0, tmp_path / "twin")
    published.write(tmp_path / "twin", read_config(tmp_path / "twin"), tmp_path)
    stated = json.loads((tmp_path / published.CONFIG).read_text()) | change
    stated = {name: value for name, value in stated.items() if value is not None}
    (tmp_path / published.CONFIG).write_text(json.dumps(stated))
    with pytest.raises(CheckpointError, match=says):
        published.read(tmp_path, "own", tmp_path / "target")


@pytest.mark.parametrize("name", ["attn-only-shortformer", "attn-only-shortformer-ln"])
def test_forcing_keeps_the_positions_of_queries_and_keys(name: str, tmp_path: Path) -> None:
    """A component's input is what values are made of; a shortformer adds positions for the rest."""
    value, positions = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    given = {n: torch.zeros(1, 3, 4) for n in ("query_input", "key_input", "value_input")}
    _, found = replace_input((), given, value, positions)
    assert torch.equal(found["value_input"], value)
    assert torch.equal(found["query_input"], value + positions)
    assert torch.equal(found["key_input"], value + positions)
    build_twin(name, 0, tmp_path)
    fam = family(ARCHITECTURE, read_config(tmp_path))
    assert fam.embeds == ("embed",)
    assert fam.attention_only
    assert fam.regular


def test_which_of_them_the_bridge_loads(twin: Path) -> None:
    config = read_config(twin)

    def loaded() -> Any:
        return load_bridge(twin, torch.float32, None, None)

    if not hasattr(TransformerBridge, "boot_tl_legacy"):
        with pytest.raises(NotApplicable, match="does not load"):
            loaded()
    elif config.positions == "shortformer":
        with pytest.raises(NotApplicable, match="shortformer"):
            loaded()
    elif config.normalization == "LNPre":  # docs/findings/198
        with pytest.raises(RuntimeError, match=r"mlp\.ln"):
            loaded()
    else:
        with torch.no_grad():
            off = loaded()(TOKENS) - load(twin).float()(TOKENS).logits
        assert float(off.abs().max()) < LOOSE


#: Of the lenses, which ask of attention-only models what they ask of others.
LENSES = ("decompose_drops_last", "head_results_rolled", "qk_transposed")


@pytest.mark.skipif(
    not hasattr(TransformerBridge, "boot_tl_legacy"), reason="the bridge does not load them"
)
def test_faults_of_attention_only_models_are_caught_and_named(twin_cache: Path) -> None:
    bench = Bench.load(twin_model("attn-only"), "bridge", twin_cache)
    for fault in LENSES:
        assert bench.provable(CATALOGUE[fault]), fault
        proof = bench.prove(CATALOGUE[fault])
        assert proof.caught, fault
        assert proof.site_named, (fault, proof.named)
