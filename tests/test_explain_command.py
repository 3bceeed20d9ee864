"""``conformance explain``, as a user runs it: a real defect, a port that dies, wrong usage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PICTURES = {"error-by-layer.png", "differences.png", "heat-map.png"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    twins = {"llama": "LlamaForCausalLM", "falcon-40b": "FalconForCausalLM"}
    entries = "".join(
        f'[[model]]\nid = "{name}-twin"\narchitecture = "{architecture}"\n'
        f'source = {{ twin = "{name}" }}\nprompts = ["sixteen", "padded_left", "long"]\n'
        for name, architecture in twins.items()
    )
    declared = '[subjects.dies]\nloader = "declared_to_die:load"\n'
    (tmp_path / "models.toml").write_text(f"schema = 1\n{entries}{declared}")
    (tmp_path / "declared_to_die.py").write_text(
        "import os\n\n\ndef load(checkpoint, *, dtype, device):\n    os.abort()\n"
    )
    return tmp_path


def _command(folder: Path, cache: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        # As the installed command does: the current directory is not on the path by itself.
        [sys.executable, "-P", "-m", "conformance", "explain", *args],
        cwd=folder,
        env={**os.environ, "CONFORMANCE_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_the_command_explains_a_real_defect(folder: Path, twin_cache: Path) -> None:
    """Grouped Falcon: docs/findings/001-falcon-grouped-qkv-split.md."""
    from conformance.explain.explanations import Explanation

    done = _command(folder, twin_cache, "falcon-40b-twin", "--out", "out", "--json")
    assert done.returncode == 1, done.stderr
    found = Explanation.from_dict(json.loads(done.stdout))
    assert found.location.site == "blocks.0.attn.W_Q"
    assert found.others[0].site == "blocks.0.attn.q"
    assert found.minimal is not None
    assert found.minimal.verified
    assert (found.minimal.n_tokens, found.minimal.layers) == (1, 1)
    assert "blocks.0.attn.q" in found.minimal.shows
    assert found.next_command == "python out/reproduce.py"
    assert {p.name for p in (folder / "out").iterdir()} == {
        *PICTURES,
        "reproduce.py",
        "explanation.txt",
        "explanation.json",
    }
    assert "Traceback" not in done.stderr


def test_the_script_of_a_declared_port_runs_from_the_folder_of_its_loader(
    folder: Path, twin_cache: Path
) -> None:
    """One weight of the port is wrong; ``python out/reproduce.py`` says so, as it was told to."""
    with (folder / "models.toml").open("a") as stream:
        stream.write('[subjects.bent]\nloader = "bends:load"\n')
    (folder / "bends.py").write_text(
        "from transformer_lens.model_bridge import TransformerBridge\n\n\n"
        "def load(checkpoint, *, dtype, device):\n"
        "    path = str(checkpoint)\n"
        "    port = TransformerBridge.boot_transformers(path, dtype=dtype, device=device)\n"
        "    port.blocks[1].mlp.out.original_component.weight.data[3] += 0.01\n"
        "    return port\n"
    )
    done = _command(folder, twin_cache, "llama-twin", "--subject", "bent", "--out", "out")
    assert done.returncode == 1, done.stderr
    assert "blocks.1.mlp.W_out" in done.stdout
    script = subprocess.run(
        [sys.executable, "out/reproduce.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert script.returncode == 1, script.stderr
    assert "blocks.1.mlp_out" in script.stdout


def test_a_port_that_dies_is_a_message(folder: Path, twin_cache: Path) -> None:
    done = _command(folder, twin_cache, "llama-twin", "--subject", "dies")
    assert done.returncode == 1
    assert done.stderr.startswith("conformance: llama-twin, dies: the port crashed: SIGABRT")
    assert "hint: " in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["lama-twin"], "unknown model 'lama-twin'; did you mean 'llama-twin'?"),
        (["llama-twin", "--subject", "brige"], "unknown subject 'brige'; did you mean 'bridge'?"),
        (["*-twin"], "'*-twin' names 2 models: llama-twin, falcon-40b-twin"),
        (["llama-twin", "--models", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_usage_errors(
    args: list[str], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from conformance.cli import app

    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, ["explain", *args])
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert not (folder / "conformance-out").exists()
