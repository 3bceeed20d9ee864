"""A run explains the first ports that fail; its report shows what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from made_report import parse, write_run
from made_runs import run

from conformance.errors import ConformanceError
from conformance.explain import command
from conformance.explain.explanations import Cause, Explanation, Location
from conformance.explain.failing import MOST, explain_failing, failing
from conformance.explain.reproduce import FILE_NAME
from conformance.records import read
from conformance.report.html.pages import render

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.spec import Spec

FOUND = Explanation(
    "m",
    "bridge",
    "LlamaForCausalLM",
    "twin",
    False,
    Location(
        "component",
        "blocks.1.ln1",
        "blocks.1.ln1",
        "norm before attention",
        measured=6e-5,
        allowed=1e-12,
        sentence="in layer 1",
    ),
    causes=(Cause("norm_eps", "blocks.1.ln1 behaves as if eps were 0.001", "x", 0.0, 1.0, True),),
    diagnosed="One formula reproduces the port.",
)
SPEC: Any = None


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were asked about."""
    asked: list[str] = []

    def answer(spec: Spec, model: str, subject: str, *, cache: Path, out: Path) -> Explanation:
        asked.append(model)
        if model.startswith("dead"):
            raise ConformanceError("it died\nlong story", "look")
        out.mkdir(parents=True)
        out.joinpath(FILE_NAME).write_text("print('<differs>')\n")
        return FOUND

    monkeypatch.setattr(command, "run", answer)
    monkeypatch.setattr("conformance.explain.failing.with_named", lambda spec, models: spec)
    return asked


def test_ports_with_a_wrong_forward_pass_are_explained() -> None:
    records = run(
        [
            ("a", "bridge", "hooks", "failed"),  # not of the forward pass
            ("b", "bridge", "hooks", "failed"),
            ("b", "bridge", "logits", "failed"),
            ("c", "bridge", "logits", "xfailed"),
            ("d", "hooked", "weights", "failed"),
            ("e", "bridge", "logits", "crashed"),
        ]
    )
    assert failing(records) == [("b", "bridge"), ("d", "hooked")]


def test_the_report_shows_where_and_why(tmp_path: Path, explained: list[str]) -> None:
    file = write_run(run([("m", "bridge", "logits", "failed")]), tmp_path)
    told = explain_failing(SPEC, read(file), tmp_path, tmp_path)
    assert told == {
        "m, bridge": "blocks.1.ln1 (norm before attention) is wrong by itself: given the "
        "reference's own input, blocks.1.ln1 does not give what the reference gives. "
        "blocks.1.ln1 behaves as if eps were 0.001"
    }
    pages = render(read(file), tmp_path)
    card = parse(pages["index.html"]).one("article")
    assert "blocks.1.ln1 behaves as if eps were 0.001" in card.words
    page = parse(pages["models/m.html"])
    card = page.one("div", cls="card")
    assert "is wrong by itself" in card.words
    assert "In the tensor: in layer 1." in card.words
    assert "blocks.1.ln1 behaves as if eps were 0.001" in card.words
    assert card.one("pre", cls="code").text == "print('<differs>')\n"
    assert "conformance explain" not in page.one("main").words


def test_what_cannot_be_explained_does_not_stop_the_rest(
    tmp_path: Path, explained: list[str]
) -> None:
    models = ["dead", *(f"m{n}" for n in range(MOST))]
    records = run([(m, "bridge", "logits", "failed") for m in models])
    told = explain_failing(SPEC, records, tmp_path, tmp_path)
    assert explained == models[:MOST]
    assert told["dead, bridge"] == "not explained: it died"
    last = f"m{MOST - 1}"
    assert told[f"{last}, bridge"] == (
        f"not explained; `conformance explain {last} --subject bridge` does"
    )


def test_a_damaged_explanation_is_as_good_as_none(tmp_path: Path) -> None:
    file = write_run(run([("m", "bridge", "logits", "failed")]), tmp_path)
    folder = tmp_path / "explain" / "m-bridge"
    folder.mkdir(parents=True)
    folder.joinpath(command.JSON).write_text('{"schema_version": 1}')
    page = parse(render(read(file), tmp_path)["models/m.html"])
    assert "conformance explain m --subject bridge" in page.one("main").words
