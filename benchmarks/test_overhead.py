"""How much longer the harness takes than a bare script on the same real model.

``make bench`` prints the times; the ratio of their medians is the figure to quote. The bare script
loads SmolLM2 in both libraries in float32 and runs each once, with a full cache, on the prompts
that the harness uses. The harness is timed twice: with the reference's trace present (a re-run
after a change to the port) and without it (a first run, which also computes the float64 truth).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

ROOT = Path(__file__).parent.parent
MODEL = "smollm2-135m-instruct"

BARE = """
import sys, torch, transformers
from transformer_lens.model_bridge import TransformerBridge
from conformance.families import dims
from conformance.prompts import build
checkpoint = sys.argv[1]
tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
reference = transformers.AutoModelForCausalLM.from_pretrained(
    checkpoint, dtype=torch.float32, attn_implementation="eager"
).eval()
subject = TransformerBridge.boot_transformers(checkpoint, dtype=torch.float32, device="cpu")
prompts, _ = build(dims(reference.config), tokenizer)
with torch.no_grad():
    for p in prompts:
        out = reference(
            p.tokens, attention_mask=p.mask, output_hidden_states=True, output_attentions=True
        )
        logits, cache = subject.run_with_cache(p.tokens, attention_mask=p.mask)
        print(p.name, float((logits - out.logits).abs().max()))
"""


def _checkpoint() -> Path:
    from conformance.checkpoints import cache_dir, resolve
    from conformance.spec import load_spec

    spec = load_spec(ROOT / "models.toml")
    model = next(m for m in spec.models if m.id == MODEL)
    return resolve(model, cache_dir()).path


def _harness(out: Path) -> None:
    command = [sys.executable, "-m", "conformance", "run", "--models", str(ROOT / "models.toml")]
    command += ["--model", MODEL, "--subject", "bridge", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.benchmark(group="smollm2")
def test_bare_script(benchmark: BenchmarkFixture) -> None:
    command = [sys.executable, "-c", BARE, str(_checkpoint())]
    benchmark.pedantic(
        lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), rounds=3
    )


@pytest.mark.benchmark(group="smollm2")
def test_harness_with_the_reference_trace_present(
    benchmark: BenchmarkFixture, tmp_path: Path
) -> None:
    _checkpoint()
    benchmark.pedantic(lambda: _harness(tmp_path), rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="smollm2")
def test_harness_from_scratch(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    from conformance.checkpoints import cache_dir

    def forget() -> None:
        for trace in (cache_dir() / "traces").glob(f"{MODEL}-*"):
            if trace.is_dir():
                shutil.rmtree(trace)

    benchmark.pedantic(lambda: _harness(tmp_path), setup=forget, rounds=2)
