"""``conformance vary`` on real ports: a fault of one field is found, made small and reproduced."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fakes import models_toml

from conformance.spec import load_spec
from conformance.vary.bench import Bench
from conformance.vary.command import Options, explore
from conformance.vary.explaining import explained
from conformance.vary.records import Failure, Run, read
from conformance.vary.space import Space, space_of

if TYPE_CHECKING:
    from collections.abc import Mapping

TESTS = Path(__file__).parent


def some(twin: str, **fields: tuple[str, ...]) -> Space:
    """A twin's configurations, of a few fields and values only."""
    space = space_of(twin)
    named = {name.replace("__", "."): labels for name, labels in fields.items()}
    factors = tuple(
        dataclasses.replace(f, values={label: f.values[label] for label in named[f.name]})
        for f in space.factors
        if f.name in named
    )
    assert len(factors) == len(named)
    return dataclasses.replace(space, factors=factors)


def run(
    space: Space,
    out: Path,
    loader: str | None = None,
    *,
    explaining: bool = True,
    limit: int | None = None,
) -> Run:
    (out / "models.toml").write_text(models_toml(["one"]))
    with Bench(space, "mine" if loader else "bridge", loader=loader) as bench:

        def explain(failure: Failure, logits_only: bool) -> Failure:
            if not explaining:
                return failure
            return explained(failure, bench, out, logits_only=logits_only)

        said: list[str] = []
        options = Options(bench.subject, limit=limit)
        spec = load_spec(out / "models.toml")
        explore(spec, space, options, out, said.append, bench.judge, explain)
    return read(out / "vary.jsonl")


def reproduced(script: Path) -> tuple[int, str]:
    """A script in a fresh interpreter, with nothing of ours but the declared subjects."""
    text = script.read_text()
    assert "import conformance" not in text
    assert "from conformance" not in text
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env={**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_flag_that_the_port_ignores_is_found_alone_and_reproduced(tmp_path: Path) -> None:
    space = some(
        "llama", attention_bias=("True",), mlp_bias=("True",), tie_word_embeddings=("True",)
    )
    found = run(space, tmp_path, "declared_subjects:without_attention_bias")
    (failure,) = found.failures
    assert failure.choice == {"attention_bias": "True"}
    assert failure.config == {"attention_bias": True}
    assert failure.minimal
    assert failure.difference.kind.startswith("attn.b_")
    assert found.result is not None
    assert found.result.open == 0
    assert failure.verified
    assert failure.script is not None
    code, output = reproduced(tmp_path / failure.script)
    assert code == 1
    assert "first diverging site: blocks.0.attn." in output


def test_positions_that_the_port_does_not_scale_are_found_in_one_value(tmp_path: Path) -> None:
    space = some("llama", rope_parameters__rope_type=("linear", "dynamic"), mlp_bias=("True",))
    found = run(space, tmp_path, "declared_subjects:with_plain_positions", explaining=False)
    (failure,) = found.failures
    assert failure.choice == {"rope_parameters.rope_type": "linear"}
    assert failure.difference.kind in ("attn.rot_q", "attn.rot_k")
    assert found.result is not None
    # Within the context that it was trained on, a dynamic base is the plain one.
    assert found.result.effectless == {"rope_parameters.rope_type": ("dynamic",)}


def test_a_right_port_passes_and_what_transformers_refuses_is_no_failure(tmp_path: Path) -> None:
    space = some("qwen3", num_key_value_heads=("1",), attention_bias=("True",), head_dim=("12",))
    odd = dataclasses.replace(space.factors[0], name="odd", values={"7": {"head_dim": 7}})
    found = run(dataclasses.replace(space, factors=(*space.factors, odd)), tmp_path, limit=9)
    assert not found.failures
    refused = [c for c in found.configurations if c.judged.outcome != "passed"]
    assert [c.choice for c in refused] == [{"odd": "7"}]
    assert (refused[0].judged.outcome, refused[0].judged.by) == ("refused", "transformers")
    assert "even rotary dimension" in refused[0].judged.reason
    assert found.result is not None
    assert found.result.exit_code == 0


def test_a_layout_that_no_description_fits_is_judged_by_its_logits(tmp_path: Path) -> None:
    """Norms after the additions: OPT 350M."""
    space = some("opt", do_layer_norm_before=("False",))
    found = run(space, tmp_path, explaining=False)
    assert found.configurations[-1].choice == {"do_layer_norm_before": "False"}
    assert found.configurations[-1].judged.logits_only


@pytest.mark.parametrize("config", [{"attention_bias": True}, None])
def test_a_variant_is_a_model_like_any_other(config: Mapping[str, object], tmp_path: Path) -> None:
    from conformance.checkpoints import resolve
    from conformance.spec import ModelSpec, TwinSource

    source = TwinSource(twin="llama", config=config)
    model = ModelSpec(id="x", architecture="LlamaForCausalLM", source=source)
    text = (resolve(model, tmp_path).path / "config.json").read_text()
    assert ('"attention_bias": true' in text) == bool(config)
    assert hash(source) != hash(TwinSource(twin="llama", seed=1))


def test_only_what_the_port_raises_on_purpose_is_a_refusal() -> None:
    from conformance.vary.judging import refuses

    def error_in(text: str, file: str) -> BaseException:
        try:
            exec(compile(text, file, "exec"), {})
        except Exception as error:
            return error
        raise AssertionError

    import linecache

    for text, file, expected in (
        ("raise NotImplementedError('no')", "/x/transformer_lens/a.py", True),
        ("{}['key']", "/x/transformer_lens/b.py", False),
        ("raise ValueError('no')", "/x/transformers/c.py", False),
        ("assert 0, 'must be one of'", "/x/transformer_lens/d.py", True),
        ("assert 0", "/x/transformer_lens/e.py", False),
    ):
        linecache.cache[file] = (len(text), None, [text], file)
        assert refuses(error_in(text, file)) is expected, text


def test_logits_alone_are_judged_after_processing_too(tmp_path: Path) -> None:
    """docs/findings/104-opt-final-norm-and-projection.md"""
    space = some("opt", word_embed_proj_dim=("40",))
    found = run(space, tmp_path)
    failure = found.failures[-1]
    assert failure.choice == {"word_embed_proj_dim": "40"}
    assert found.configurations[-1].judged.logits_only
    assert failure.difference.check == "processing"


def test_what_reads_waves_is_varied_too(tmp_path: Path) -> None:
    """Its bridge is right but for the hook of the scores, which shows the pattern (finding 004)."""
    space = some("hubert", do_stable_layer_norm=("True",), conv_pos_batch_norm=("True",))
    found = run(space, tmp_path, explaining=False)
    assert {f.difference.kind for f in found.failures} == {"attn.scores"}
    assert {c.choice.get("do_stable_layer_norm") for c in found.configurations} == {None, "True"}
