"""``[[tier]]`` in models.toml, ``--tier`` and ``--fit``: what does not fit is skipped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from fakes import fake_model
from typer.testing import CliRunner

from conformance.cli import app
from conformance.errors import DoesNotFit, SpecError
from conformance.footprint.fitting import footprint_facts, limit_of_tier, with_tier
from conformance.footprint.predict import predict
from conformance.footprint.shapes import of_name
from conformance.isolation import Isolation, Outcome
from conformance.jobs import Limit
from conformance.runner import Runner
from conformance.selection import Case, SelectionError, tier_named
from conformance.spec import DEFAULT_TIERS, Spec, load_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conformance.jobs import Job

MODEL = """
schema = 1
[[model]]
id = "m"
architecture = "GPT2LMHeadModel"
source = { twin = "gpt2" }
"""
SMALL = Limit("tier small", 1000)


def spec_of(tmp_path: Path, text: str) -> Spec:
    path = tmp_path / "models.toml"
    path.write_text(MODEL + text)
    return load_spec(path)


def test_tiers_are_the_usual_ones_and_those_of_the_file_smallest_first(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        '[[tier]]\nname = "mine"\nmemories = [{ kind = "cpu", bytes = 64_000_000_000 }]\n'
        '[[tier]]\nname = "free"\nmemories = [{ kind = "cpu", bytes = 1_000 }]\n',
    )
    assert [tier.name for tier in spec.tiers] == [
        "free",
        "paid-gpu",
        "mine",
        "gpu-80",
        "paid-cpu",
        "gpu-141",
    ]
    assert spec.tiers[0].largest("cpu") == 1000
    assert spec.tiers[0].largest("gpu") == 0
    assert spec_of(tmp_path, "").tiers == tuple(sorted(DEFAULT_TIERS, key=lambda t: t.size))


def test_every_problem_of_tiers_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(
            tmp_path,
            '[[tier]]\nname = "beyond"\nmemories = []\n'
            '[[tier]]\nname = "a"\nmemories = [{ kind = "tpu", bytes = 0 }]\n'
            '[[tier]]\nname = "a"\nmemory = 1\n',
        )
    said = str(caught.value)
    for part in (
        "'beyond' is what fits no tier",
        "is empty",
        "'tpu' is not allowed",
        "0 is too small",
        "already named by tier[1]",
        "unknown key",
        "missing",
        "line 7: tier[0]",
    ):
        assert part in said, part


def test_an_unknown_tier_is_a_usage_error(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "")
    assert tier_named(spec, "free").name == "free"
    with pytest.raises(SelectionError, match="unknown tier 'fre'"):
        tier_named(spec, "fre")
    said = CliRunner().invoke(
        app, ["run", "--models", str(spec.path), "--tier", "x", "--out", str(tmp_path / "o")]
    )
    assert said.exit_code == 2
    both = ["run", "--models", str(spec.path), "--tier", "free", "--fit"]
    assert CliRunner().invoke(app, [*both, "--out", str(tmp_path / "o")]).exit_code == 2


class Children:
    """Stands for processes: answers what it was told to, and remembers the jobs."""

    def __init__(self, answer: Outcome) -> None:
        self.jobs: list[Job] = []
        self._answer = answer

    def run(self, jobs: Sequence[Job], **_: Any) -> Outcome:
        self.jobs += jobs
        return self._answer


def skipped(source: dict[str, str] | None, answer: Outcome) -> tuple[Any, Children]:
    fields = {"source": source} if source else {}
    children = Children(answer)
    spec = Spec(
        models=(fake_model("m", **fields),),
        subjects={},
        path=Path("models.toml"),
        sha256="0" * 64,
        tiers=DEFAULT_TIERS,
    )
    case = Case("m", "bridge", "weights")
    runner = Runner(
        spec, [case], cast("Isolation", children), cache=Path("/c"), timeout=1, limit=SMALL
    )
    return runner.verdict(case), children


def test_a_known_name_that_does_not_fit_is_not_even_fetched() -> None:
    verdict, children = skipped({"hub": "EleutherAI/pythia-6.9b"}, Outcome("ok"))
    assert verdict.outcome == "skipped"
    assert not children.jobs
    assert verdict.metrics["limit"]["there_bytes"] == 1000
    assert verdict.metrics["limit"]["needed_bytes"] > 6_857_302_016 * 8
    assert verdict.metrics["facts"]["tier"] == "beyond"
    assert "tier small has 0 MB of RAM" in verdict.reason


def test_what_a_child_finds_too_large_is_skipped_with_its_figures() -> None:
    shape = of_name("gpt2")
    assert shape is not None
    error = DoesNotFit("needs much", "buy some", {"facts": footprint_facts(predict(shape))})
    bases = tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    answer = Outcome(
        "raised", error_bases=bases, message=error.message, hint=error.hint, facts=error.facts
    )
    verdict, children = skipped(None, answer)
    assert children.jobs[1].limit == SMALL
    assert verdict.outcome == "skipped"
    assert verdict.reason == "needs much\nhint: buy some"
    assert verdict.metrics["facts"]["tier"] == "free"


def test_facts_without_a_footprint_get_no_tier() -> None:
    assert with_tier({"facts": {"layers": 1}}, DEFAULT_TIERS) == {"facts": {"layers": 1}}
    assert with_tier({}, DEFAULT_TIERS) == {}


def test_a_tier_of_a_gpu_needs_no_ram() -> None:
    tier = next(tier for tier in DEFAULT_TIERS if tier.name == "gpu-80")
    assert limit_of_tier(tier) == Limit("tier gpu-80", 0, (80_000_000_000,), anywhere=True)
