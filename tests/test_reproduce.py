"""The smallest case: few tokens, few layers, and a script that stands alone and tells the truth."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conformance.explain.localize import Finding
    from conformance.explain.reproduce import Forked
    from conformance.prompts import Prompt

# --- tokens -------------------------------------------------------------------------------------


def _shortest(twin: str, fault: str, cache: Path) -> tuple[Finding, Prompt]:
    from explained import ported

    from conformance.explain.localize import Localizer
    from conformance.explain.reproduce import shortest
    from conformance.explain.survey import Survey
    from conformance.faults import CATALOGUE

    port = ported(twin, cache)
    with CATALOGUE[fault].apply(port.exact):
        survey = Survey(port.reference, port.exact)
        finding = Localizer(survey).function()
        assert finding is not None
        return finding, shortest(survey, finding)


@pytest.mark.parametrize(
    ("twin", "fault", "tokens"),
    [
        ("llama", "W_Q_row", 1),
        ("llama", "rope_base_0.01%", 2),  # position 0 is not rotated
        ("llama", "causal_one_too_wide", 2),  # a single query has no later key
        ("gemma2", "window_one_too_wide", 13),  # the window of 12 and one more
    ],
)
def test_a_prompt_is_cut_to_what_is_needed(
    twin: str, fault: str, tokens: int, twin_cache: Path
) -> None:
    from explained import ported

    _, prompt = _shortest(twin, fault, twin_cache)
    whole = ported(twin, twin_cache).reference.prompts[0]
    assert whole.name == prompt.name == "sixteen"
    assert prompt.tokens.shape == (1, tokens)
    assert torch.equal(prompt.tokens, whole.tokens[:, :tokens])
    assert prompt.mask is None


def test_of_a_padded_batch_one_sequence_is_kept(twin_cache: Path) -> None:
    finding, prompt = _shortest("llama", "padding_ignored", twin_cache)
    assert finding.prompt == "padded_left"
    assert prompt.tokens.shape[0] == 1
    assert prompt.mask is not None
    assert not bool(prompt.mask.all())


# --- scripts ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    import transformer_lens.model_bridge  # noqa: F401 - so that each script need not

    from conformance.explain.reproduce import Forked

    runner = Forked()
    yield runner
    runner.close()


def _script(twin: str, cache: Path, *, site: str, measured: float, prompt: str = "sixteen") -> str:
    """The first candidate, as if the site had been found to differ by so much."""
    from explained import twin_spec
    from transformers import AutoConfig

    from conformance.checkpoints import resolve
    from conformance.engine import quiet_libraries
    from conformance.explain.explanations import Location
    from conformance.explain.localize import Finding
    from conformance.explain.reproduce import candidates
    from conformance.families import dims, family
    from conformance.implementations.subjects import load_subject
    from conformance.prompts import build

    quiet_libraries()
    model = twin_spec(twin)
    checkpoint = resolve(model, cache)
    config = AutoConfig.from_pretrained(checkpoint.path)
    d = dims(config)
    subject = load_subject(
        "bridge", checkpoint.path, family(model.architecture, config), d, torch.float64
    )
    (built,), _ = build(d, None, (prompt,))
    finding = Finding(
        Location("component", site=site, measured=measured, prompt=prompt), site=site, prompt=prompt
    )
    return next(candidates(model, checkpoint.path, subject, finding, built)).text


@pytest.mark.parametrize(
    ("twin", "measured", "prompt"),
    [
        ("llama", 1e-6, "sixteen"),
        ("llama", 1.0, "padded_left"),
        ("gpt2", 1.0, "sixteen"),  # fused projections, Conv1D
        ("gemma2", 1e-6, "padded_left"),  # norms after, softcap, window
        ("qwen3", 1.0, "sixteen"),  # norms of queries and keys
        ("phi3", 1e-6, "sixteen"),  # fused gate and up
        ("mixtral", 1.0, "sixteen"),  # experts
    ],
)
def test_a_script_says_that_a_right_port_agrees(
    twin: str, measured: float, prompt: str, twin_cache: Path, tmp_path: Path, forked: Forked
) -> None:
    """Inside attention too: its site makes the script read scores and pattern."""
    text = _script(twin, twin_cache, site="blocks.1.attn.pattern", measured=measured, prompt=prompt)
    (tmp_path / "script.py").write_text(text)
    ran = forked(tmp_path / "script.py")
    assert ran.code == 0, ran.output
    assert "sites agree" in ran.output
    assert not ran.shows


def test_a_script_is_standalone_python(twin_cache: Path) -> None:
    text = _script("llama", twin_cache, site="blocks.1.attn.rot_q", measured=1e-6)
    tree = ast.parse(text)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    roots = {name.split(".")[0] for name in imported}
    ours = {"torch", "transformers", "transformer_lens"}
    assert ours <= roots
    assert roots - ours <= set(sys.stdlib_module_names)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert ast.get_docstring(tree, clean=True) is not None


def test_a_real_defect_is_shown_by_its_script_in_a_fresh_interpreter(
    twin_cache: Path, tmp_path: Path
) -> None:
    """Grouped Falcon: docs/findings/001-falcon-grouped-qkv-split.md."""
    text = _script("falcon-40b", twin_cache, site="blocks.0.attn.q", measured=1.0)
    (tmp_path / "script.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "first diverging site: blocks.0.attn.q, relative difference" in done.stdout
    assert "transformer-lens " in done.stdout
    assert "LAYERS = 1" in text


def test_a_script_that_fails_is_not_taken_for_one_that_shows(
    tmp_path: Path, forked: Forked
) -> None:
    from conformance.explain.reproduce import Candidate, minimal_case, reduce

    (tmp_path / "broken.py").write_text("raise SystemExit(1)\n")
    ran = forked(tmp_path / "broken.py")
    assert (ran.code, ran.shows, ran.site) == (1, "", "")
    (tmp_path / "raising.py").write_text("print(1 / 0)\n")
    assert "ZeroDivisionError" in forked(tmp_path / "raising.py").output

    candidates = [Candidate("raise SystemExit(1)\n", 1, ((3,),), "one")]
    found = reduce(iter(candidates), "attn.q", tmp_path / "out", forked, lambda _: None)
    assert found is None
    assert not list((tmp_path / "out").iterdir())

    from conformance.prompts import Prompt

    case = minimal_case(None, Prompt("sixteen", torch.tensor([[3, 4]])), 16, 3, "none shows it")
    assert case.script is None
    assert not case.verified
    assert case.note == "none shows it"


def test_the_first_script_that_names_the_right_site_is_kept(tmp_path: Path, forked: Forked) -> None:
    from conformance.explain.reproduce import Candidate, reduce

    def says(site: str) -> str:
        return f'print("first diverging site: {site}, 1")\nraise SystemExit(1)\n'

    wanted, other = "blocks.0.attn.q", "blocks.0.ln1"
    candidates = [
        Candidate("raise SystemExit(0)\n", 1, ((3,),), "agrees"),
        Candidate(says(other), 1, ((3,),), "another site"),
        Candidate(says(wanted), 2, ((3,),), "the site"),
        Candidate(says(wanted), 3, ((3,),), "never tried"),
    ]
    found = reduce(iter(candidates), "attn.q", tmp_path, forked, lambda _: None)
    assert found is not None
    candidate, path, ran = found
    assert candidate.note == "the site"
    assert ran.site == wanted
    assert path.read_text() == candidate.text
    found = reduce(iter(candidates[:2]), "attn.q", tmp_path, forked, lambda _: None)
    assert found is not None
    assert found[0].note == "another site"
    assert path.read_text() == says(other)


# --- layers -------------------------------------------------------------------------------------


def test_slices_grow() -> None:
    from conformance.explain.reproduce import _slices

    assert _slices(2, 4) == ((2,), (0, 1, 2), (0, 1, 2, 3))
    assert _slices(0, 1) == ((0,),)
    assert _slices(None, 3) == ((0,), (0, 1, 2))


def test_a_slice_keeps_the_kinds_of_its_layers() -> None:
    import transformers

    from conformance.explain.reproduce import _changes

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = transformers.Gemma3TextConfig(num_hidden_layers=3, layer_types=kinds)
    assert _changes(config, (1, 2), 3) == {"num_hidden_layers": 2, "layer_types": kinds[1:]}
    neo = transformers.GPTNeoConfig(num_layers=4, attention_types=[[["global", "local"], 2]])
    assert _changes(neo, (1,), 4) == {"num_layers": 1, "attention_types": [[["local"], 1]]}
