"""The report as pages: what stands on them is what the records hold."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest
from made_report import (
    ALLOWED,
    NAMES,
    Element,
    catalogue,
    embedded,
    few_ports,
    made,
    parse,
    write_run,
)
from made_runs import run
from typer.testing import CliRunner

from conformance.checks.names import CHECKS
from conformance.cli import app
from conformance.records import OUTCOMES, Name, Records, Stale, read
from conformance.report.html.pages import render, write
from conformance.report.html.words import CLASSES, MEANINGS, NOTHING, SIGNS

if TYPE_CHECKING:
    from pathlib import Path


def pages(records: Records, folder: Path) -> dict[str, Element]:
    """Every page of a run, read back."""
    file = write_run(records, folder)
    made = render(read(file), folder)
    return {name: parse(text) for name, text in made.items() if name.endswith(".html")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Element]:
    records = few_ports()
    return pages(dataclasses.replace(records, names=NAMES), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def beta(site: dict[str, Element]) -> Element:
    """A model that fails, from layer 1 on."""
    return site["models/beta-twin.html"]


def near(page: Element, heading: str) -> list[Element]:
    """The figures and tables between a heading and the next."""
    parent = page.one("h3", id=heading).parent
    assert parent is not None
    found, seen = [], False
    for child in parent.children:
        if isinstance(child, Element):
            if child.tag == "h3":
                seen = child.attributes.get("id") == heading
            elif seen:
                found += [child, *child.all("*")]
    return found


# --- the first page ---------------------------------------------------------------------------


def test_there_is_a_page_for_each_model_and_none_besides(site: dict[str, Element]) -> None:
    names = ("alpha-twin", "beta-twin", "delta-twin", "gamma-real")
    assert set(site) == {"index.html", *(f"models/{name}.html" for name in names)}


def test_the_first_screen_says_whether_it_conforms_and_what_does_not(
    site: dict[str, Element],
) -> None:
    first = site["index.html"]
    assert first.one("h1").words == "✗ 2 ports of 5 do not conform"
    cards = first.all("article")
    assert [card.one("h3").all("a")[0].words for card in cards] == ["gamma-real", "beta-twin"]
    beta = cards[1]
    assert [p.words for p in beta.all("p", cls="checks-of")] == [
        "✗ FAIL weights, activations, logits"
    ]
    assert beta.one("p", cls="reason").words == "weights: 1 of 9 comparisons failed"
    tiles = [tile.words for tile in first.all("li", cls="tile")]
    assert tiles == [
        "1 ✗ fails",
        "1 ✗ crashes",
        "1 ◇ known defect",
        f"1 {NOTHING} skipped",
        "1 ✓ conforms",
    ]


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (["passed"], "✓ Every port that was judged conforms"),
        (["passed", "not_applicable"], "✓ Every port that was judged conforms"),
        (["xfailed"], "✓ Every port that was judged conforms, known defects of 1 of 1 aside"),
        (["failed"], "✗ 1 port of 1 does not conform"),
        (["xpassed"], "✗ 1 port of 1 does not conform"),
        (["timeout", "passed"], "✗ 1 port of 1 does not conform"),
        (["error", "passed"], "? 1 port could not be judged"),
        (["not_applicable"], f"{NOTHING} Nothing was judged"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_the_headline_is_that_of_the_verdicts(
    outcomes: list[str], said: str, tmp_path: Path
) -> None:
    made = run([("m", "bridge", check, o) for check, o in zip(CHECKS, outcomes, strict=False)])
    assert pages(made, tmp_path)["index.html"].one("h1").words == said


def test_an_incomplete_run_says_so_first(tmp_path: Path) -> None:
    cut = pages(run([("m", "bridge", "loss", "passed")], cut=True), tmp_path / "cut")
    early = pages(run([("m", "bridge", "loss", "passed")], selected=3), tmp_path / "early")
    for name, page in [*cut.items(), *early.items()]:
        banner = page.one("main").all("p", cls="banner")[0]
        assert banner.words.startswith("! This run is incomplete."), name
    assert cut["index.html"].one("h1").words == "… No verdict of the 1 port judged so far is wrong"
    assert "2 of 3 verdicts were not reached" in early["index.html"].one("main").words


def test_a_failure_outweighs_an_incomplete_run(tmp_path: Path) -> None:
    first = pages(run([("m", "bridge", "loss", "failed")], cut=True), tmp_path)["index.html"]
    assert first.one("h1").words == "✗ 1 port of 1 does not conform"
    assert first.all("p", cls="banner")


def test_the_matrix_has_each_verdict_with_a_link_to_it(site: dict[str, Element]) -> None:
    matrix = site["index.html"].one("table", id="matrix")
    rows = [r for r in matrix.all("tr") if r.attributes.get("data-subject")]
    ports = [(r.one("th").all("a")[0].words, r.attributes["data-subject"]) for r in rows]
    assert ports == [
        ("gamma-real", "bridge"),
        ("alpha-twin", "bridge"),
        ("beta-twin", "bridge"),
        ("beta-twin", "hooked"),
        ("delta-twin", "bridge"),  # hooked does not apply to it at all
    ]
    beta = rows[2]
    cells = dict(zip(CHECKS, beta.all("td", cls="c"), strict=True))
    found = {check: td.one("a") for check, td in cells.items()}
    assert {c: a.words for c, a in found.items()} == {
        c: "FAIL" if c in BAD else "pass" for c in CHECKS
    }
    assert {c: a.attributes["href"] for c, a in found.items()} == {
        c: f"models/beta-twin.html#bridge-{c}" for c in CHECKS
    }
    margin = beta.all("td", cls="num")[0]
    assert margin.attributes["data-v"] == str(3 * 2 * 3e-5 / ALLOWED)
    assert margin.words == "1.8e8"


BAD = ("weights", "activations", "logits")


def test_filters_offer_what_there_is(site: dict[str, Element]) -> None:
    first = site["index.html"]

    def options(name: str) -> list[str]:
        return [o.words for o in first.one("select", id=name).all("option")]

    assert options("f-state") == ["any", "fails", "crashes", "known defect", "skipped", "conforms"]
    assert options("f-family") == [
        *("any", "dense", "latent attention", "mixture of experts"),
        *("GPT2", "Llama"),
    ]
    assert options("f-subject") == ["any", "bridge", "hooked"]
    assert options("f-evidence") == ["any", "real", "twin"]
    assert options("f-check") == ["any", *CHECKS]
    assert options("f-word") == ["anything", "pass", "FAIL", "CRASH", "skip", "n/a", "xfail"]
    assert not first.all("select", id="f-tier")  # no record has one


def test_a_tier_that_records_have_is_shown_and_filtered(tmp_path: Path) -> None:
    verdict = made("m", "bridge", "weights", "passed")
    facts = {**verdict.metrics["facts"], "tier": "laptop", "footprint_bytes": 3 * 2**29}
    verdict = dataclasses.replace(verdict, metrics={**verdict.metrics, "facts": facts})
    found = pages(run([verdict, ("n", "bridge", "weights", "passed")]), tmp_path)
    tiers = found["index.html"].one("select", id="f-tier").all("option")
    assert [tier.words for tier in tiers] == ["any", "laptop"]
    assert found["index.html"].one("table", id="matrix").words.count("not computed") == 2
    shown = found["models/m.html"].one("dl", cls="facts").words
    assert "footprint1.50 GiB" in shown
    assert "tierlaptop" in shown


def test_what_is_known_not_applicable_and_named_is_listed(site: dict[str, Element]) -> None:
    first = site["index.html"]
    assert "known (docs/findings/1.md)" in first.one("details", cls="known-defect").words
    assert "beta-twin hooked: hooks" in first.one("details", cls="known-defect").words
    names = first.all("table")[-1]
    assert (
        names.all("th", scope="row")[0].all("a")[0].attributes["href"] == "models/alpha-twin.html"
    )
    assert "Not judged: no twin yet (1): org/nobody" in first.one("main").words
    assert "stands fororg/alpha" in site["models/alpha-twin.html"].one("dl", cls="facts").words


# --- a model's page ---------------------------------------------------------------------------


def test_facts_are_those_of_the_records(beta: Element) -> None:
    facts = {
        div.one("dt").words: div.one("dd").words for div in beta.one("dl", cls="facts").all("div")
    }
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["parameters"] == "128 k (128,352)"
    assert facts["kind"] == "mixture of experts"
    assert facts["sizes"].startswith("3 layers, 48 wide, 6 heads, 2 key/value heads, 8 per head")
    assert facts["weights"].startswith("twin")
    assert facts["footprint"] == facts["tier"] == "not computed"
    assert facts["versions"] == "transformer-lens 4.3.0, transformers 5, torch 2.13, python 3.11"


def test_each_check_has_its_row_and_is_what_the_matrix_leads_to(beta: Element) -> None:
    header, rows = beta.all("table", cls="checks")[0].table()
    assert list(rows) == list(CHECKS)
    assert header[1] == "verdict"
    assert rows["loss"][:2] == ["✓ pass", "6.0e-15 (0.006) blocks.2.attn.q"]
    assert rows["logits"][:2] == ["✗ FAIL", "1.8e-4 (1.8e8) blocks.2.attn.q"]
    assert rows["logits"][4:] == ["3", "blocks.1.attn.q", "1.5"]
    assert beta.one("tr", id="bridge-logits").all("th")[0].words == "logits"


def test_what_differs_shows_comparisons_that_do_not_hold(beta: Element) -> None:
    found = [e for e in near(beta, "bridge--why") if e.tag == "details"]
    assert [d.one("summary").words for d in found] == [
        f"✗ FAIL {check}, first at blocks.1.attn.q"
        for check in ("weights", "activations", "logits")
    ]
    _, rows = found[0].one("table").table()
    assert rows == {
        "blocks.1.attn.q": [
            *("sixteen", "same function", "1.20e-4", "1.0e-12", "[0, 1, 2]", "1.5", "1.50012"),
            "floor 1e-12 of promoted float64",
        ],
        "blocks.2.attn.q": [
            *("sixteen", "same function", "1.80e-4", "1.0e-12", "[0, 2, 2]", "1.5", "1.50018"),
            "floor 1e-12 of promoted float64",
        ],
    }


def test_without_an_explanation_the_page_says_how_to_get_one(beta: Element) -> None:
    commands = [e.words for e in near(beta, "bridge--why") if e.tag == "pre"]
    assert "conformance explain beta-twin --subject bridge" in commands
    assert any(c.startswith("conformance run --model beta-twin --subject bridge") for c in commands)


def test_error_by_layer_is_drawn_and_tabled_for_both_judgements(beta: Element) -> None:
    figures = [e for e in near(beta, "bridge--stream") if e.tag == "figure"]
    captions = [figure.one("figcaption").words for figure in figures]
    assert captions == [
        "Residual-stream error by layer, same function (promoted float64)",
        "Residual-stream error by layer, same precision (float32, as users run it)",
    ]
    header, rows = figures[0].one("table").table()
    assert header[:3] == ["layer", "resid_post", "resid_post, allowed"]
    assert rows["0"][:4] == ["1.0e-15", "1.0e-12", "2.0e-15", "1.0e-12"]
    assert rows["1"][:2] == ["✗ 6.0e-5", "1.0e-12"]
    chart = figures[0].one("svg")
    assert len(chart.all("circle")) == 1
    assert len(chart.all("path", cls="cross")) == 2
    assert "Beyond what is allowed in layers 1, 2." in chart.one("desc").words
    assert chart.attributes["role"] == "img"


def test_components_are_tabled_with_what_is_beyond_marked(beta: Element) -> None:
    tables = [e for e in near(beta, "bridge--components") if e.tag == "table"]
    assert not tables or tables[0].one("caption").words.startswith("Each component on its own")
    header, rows = tables[0].table()
    assert header == [
        *("layer", "ln1", "attention", "ln2", "MLP", "whole block", "unembedding"),
    ]
    assert rows["whole model"] == ["", "", "", "", "", "2.0e-13"]
    assert rows["0"][:2] == ["1.0e-15", "2.0e-15"]


def test_heads_are_a_map_of_what_the_records_hold(beta: Element) -> None:
    tables = [e for e in near(beta, "bridge--heads") if e.tag == "table"]
    assert [t.one("caption").words.split(":")[0] for t in tables] == ["attn.pattern", "attn.z"]
    header, rows = tables[0].table()
    assert header == ["layer", *(f"head {n}" for n in range(6))]
    assert rows["0"] == ["1.0e-15", "2.0e-15", "3.0e-15", "4.0e-15", "5.0e-15", "6.0e-15"]
    assert rows["2"][5] == "✗ 5.4e-4"
    beyond = tables[0].all("td", cls="s5")
    assert len(beyond) == 12
    assert all("✗" in cell.words for cell in beyond)


def test_the_histogram_counts_every_entry(beta: Element) -> None:
    figures = [e for e in near(beta, "bridge--sizes") if e.tag == "figure"]
    caption = figures[0].one("figcaption").words
    # Four kinds of site with 40 equal and 44 different each, and logits: 7, 13 and one NaN.
    assert caption.endswith(": 167 of 357 equal, 1 not finite")
    assert len(figures[0].one("svg").all("rect")) == len({-32, -31, -30, -29, -28})
    header, rows = figures[0].one("table").table()
    assert header == ["site", "equal", "1e-16", "1e-15", "1e-14"]
    assert rows["resid_post"] == ["40", "12", "27", "5"]
    assert rows["logits"] == ["7", "", "13", ""]


def test_logits_are_tabled_by_prompt(beta: Element) -> None:
    table = next(e for e in near(beta, "bridge--logits") if e.tag == "table")
    header, *rows = table.all("tr")
    names = [c.words for c in header.all("th")]
    found = [
        dict(zip(names, [c.words for c in row.children if isinstance(c, Element)], strict=True))
        for row in rows
    ]
    assert [(f["prompt"], f["weights"]) for f in found] == [
        ("sixteen", "as loaded"),
        ("long", "as loaded"),
        ("sixteen", "processed"),
    ]
    assert found[0] == {
        **{"prompt": "sixteen", "weights": "as loaded", "positions": "7"},
        **{"MSE": "2.5e-13", "max abs": "1.3e-6", "mean abs": "4.0e-7", "1 - cosine": "9.1e-13"},
        **{"KL r,s mean": "1.0e-13", "KL r,s max": "3.0e-13", "KL s,r max": "6.0e-13"},
        **{"top-1": "99.9 %", "top-1 decided": "100 %", "top-5 overlap": "87.5 %"},
    }


def test_the_sample_is_on_the_page_whole(beta: Element, tmp_path: Path) -> None:
    write_run(few_ports(), tmp_path)
    kept = json.loads(tmp_path.joinpath("samples", "beta-twin--bridge.json").read_text())
    assert embedded(beta, "bridge--sample") == kept
    assert kept["words"]["2"] == "</script>"


def test_a_sample_that_is_gone_or_of_another_run_is_said(tmp_path: Path) -> None:
    file = write_run(few_ports(), tmp_path)
    tmp_path.joinpath("samples", "alpha-twin--bridge.json").unlink()
    tmp_path.joinpath("samples", "beta-twin--bridge.json").write_text("{}")
    made = render(read(file), tmp_path)
    gone, other = (parse(made[f"models/{name}.html"]).words for name in ("alpha-twin", "beta-twin"))
    assert "Nothing to look at: samples/alpha-twin--bridge.json is not beside the records" in gone
    assert "Nothing to look at: samples/beta-twin--bridge.json is not the one of this run" in other


def test_what_died_together_is_told_once(tmp_path: Path) -> None:
    reason = "SIGABRT (Aborted)\nits last output: none"
    crashed = [made("m", "bridge", c, "crashed", reason=reason) for c in CHECKS]
    page = parse(render(run(crashed), tmp_path)["models/m.html"])
    (why,) = page.all("details", cls="why")
    assert why.one("summary").words == f"‼ CRASH {', '.join(CHECKS)}"


def test_a_port_that_does_not_apply_says_why(site: dict[str, Element]) -> None:
    hooked = site["models/delta-twin.html"].one("section", id="hooked").words
    assert hooked == f"hooked {NOTHING} n/a Not applicable: because it is not_applicable"


# --- all pages --------------------------------------------------------------------------------


def test_every_link_leads_somewhere(site: dict[str, Element]) -> None:
    ids = {
        name: {e.attributes["id"] for e in page.all("*") if "id" in e.attributes}
        for name, page in site.items()
    }
    files = {*site, "report.css", "report.js", "look.js"}
    links = 0
    for name, page in site.items():
        for element in page.all("*"):
            target = element.attributes.get("href") or element.attributes.get("src")
            if not target or target.startswith("data:"):
                continue
            parts = urlsplit(target)
            assert not parts.scheme, f"{name}: {target} needs a network"
            assert not parts.netloc
            base = name.rpartition("/")[0]
            path = f"{base}/{parts.path}" if base else parts.path
            path = re.sub(r"[^/]+/\.\./", "", path) if parts.path else name
            assert path in files, f"{name}: {target}"
            assert not parts.fragment or unquote(parts.fragment) in ids[path], f"{name}: {target}"
            links += 1
    assert links > 100


def test_ids_are_unique(site: dict[str, Element]) -> None:
    for name, page in site.items():
        ids = [e.attributes["id"] for e in page.all("*") if "id" in e.attributes]
        assert len(ids) == len(set(ids)), name


def test_tables_have_captions_and_scopes_and_fields_labels(site: dict[str, Element]) -> None:
    for name, page in site.items():
        for table in page.all("table"):
            assert table.one("caption").words, name
            assert all(th.attributes.get("scope") in ("col", "row") for th in table.all("th"))
        labels = {label.attributes["for"] for label in page.all("label")}
        fields = [e for tag in ("input", "select") for e in page.all(tag)]
        assert {e.attributes["id"] for e in fields} == labels
        assert len(page.all("h1")) == 1
        for region in page.all("div", cls="scroll"):
            assert region.attributes["aria-label"]
            assert region.attributes["tabindex"] == "0"
        for svg in page.all("svg"):
            assert svg.one("title").words
            assert svg.one("desc").words


def test_text_of_a_record_is_never_markup(tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)">&amp;'
    bad = made(
        "m",
        "bridge",
        "activations",
        "failed",
        reason=evil,
        architecture=evil,
        first_divergence=evil,
    )
    for page in pages(run([bad]), tmp_path).values():
        assert not page.all("img")
        assert evil in page.text


def test_ids_that_no_file_could_have(tmp_path: Path) -> None:
    models = ["org/name", "org_name", "a b", "ü"]
    found = pages(run([(m, "bridge", "loss", "passed") for m in models]), tmp_path)
    assert len(found) == 1 + len(models)
    assert all(re.fullmatch(r"(models/)?[A-Za-z0-9._-]+\.html", name) for name in found)


def test_the_same_records_give_the_same_pages(tmp_path: Path) -> None:
    file = write_run(few_ports(), tmp_path)
    assert render(read(file), tmp_path) == render(read(file), tmp_path)


def test_records_of_schema_1_have_pages_too(tmp_path: Path) -> None:
    pairs = [[1e-15, 1e-12], [2e-15, 1e-12], [3e-5, 1e-12]]
    old = made(
        "m", "bridge", "activations", "passed", metrics={"resid_post_error": {"float64": pairs}}
    )
    file = write_run(run([old]), tmp_path)
    lines = file.read_text().splitlines()
    header = {**json.loads(lines[0]), "schema_version": 1}
    file.write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    page = parse(render(read(file), tmp_path)["models/m.html"])
    table = next(e for e in near(page, "bridge--stream") if e.tag == "table")
    assert table.table()[1] == {
        "0": ["1.0e-15", "1.0e-12"],
        "1": ["2.0e-15", "1.0e-12"],
        "2": ["✗ 3.0e-5", "1.0e-12"],
    }
    assert "parametersnot computed" in page.one("dl", cls="facts").words


def test_numbers_that_are_none_are_told(tmp_path: Path) -> None:
    rows = [[0, 0.0, 1e-12, "a"], [1, "nan", 1e-12, "a"], [2, "inf", 1e-12, "a"]]
    odd = made(
        "m",
        "bridge",
        "activations",
        "passed",
        metrics={"by_layer": {"float64": {"resid_post": rows}}},
    )
    page = pages(run([odd]), tmp_path)["models/m.html"]
    figure = next(e for e in near(page, "bridge--stream") if e.tag == "figure")
    assert [row[0] for row in figure.one("table").table()[1].values()] == ["0", "✗ NaN", "✗ ∞"]
    assert len(figure.all("path", cls="cross")) == 2


def test_every_outcome_has_a_sign_of_its_own() -> None:
    assert set(SIGNS) == set(MEANINGS) == set(OUTCOMES)
    assert len(set(SIGNS.values())) == len(OUTCOMES)
    assert set(CLASSES) < set(OUTCOMES)


def test_the_catalogue_of_all_architectures_is_small(tmp_path: Path) -> None:
    first = write(write_run(catalogue(), tmp_path))
    sizes = {p: p.stat().st_size for p in first.parent.rglob("*") if p.is_file()}
    assert len(sizes) == 4 + 136
    assert sum(sizes.values()) < 15_000_000
    assert sizes[first] < 2_000_000


# --- the command ------------------------------------------------------------------------------


def test_the_command_writes_pages_beside_the_records(tmp_path: Path) -> None:
    write_run(few_ports(), tmp_path)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 0
    assert done.stdout == f"report: {tmp_path}/report/index.html\n"
    assert tmp_path.joinpath("report", "models", "beta-twin.html").is_file()


def test_pages_of_models_that_are_gone_go_too(tmp_path: Path) -> None:
    old = write(write_run(run([("old", "bridge", "loss", "passed")]), tmp_path))
    write(write_run(run([("new", "bridge", "loss", "passed")]), tmp_path))
    assert [p.name for p in old.parent.joinpath("models").iterdir()] == ["new.html"]


def test_a_run_that_was_cut_short_has_pages_but_no_success(tmp_path: Path) -> None:
    write_run(few_ports(cut=True), tmp_path)
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "there")])
    assert done.exit_code == 3
    assert done.stderr.startswith("conformance: TRUNCATED: the file has no footer")
    assert tmp_path.joinpath("there", "index.html").is_file()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "records.jsonl: no such file"),
        ("", "empty"),
        ("nonsense\n", "records.jsonl:1:"),
        ('{"kind": "header", "schema_version": 99}\n', "line 1 is not a header of schema version"),
    ],
    ids=["missing", "empty", "no JSON", "another schema"],
)
def test_records_that_cannot_be_read_are_refused(
    text: str | None, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "records.jsonl"
    if text is not None:
        file.write_text(text)
    done = CliRunner().invoke(app, ["report", str(file)])
    assert done.exit_code == 2
    assert said in done.stderr
    assert "hint: " in done.stderr
    assert not tmp_path.joinpath("report").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    write_run(few_ports(), tmp_path)
    tmp_path.joinpath("file").write_text("")
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "file")])
    assert done.exit_code == 2
    assert "give a folder you can write to" in done.stderr


def test_stale_entries_are_listed(tmp_path: Path) -> None:
    records = run([("m", "bridge", "loss", "passed")])
    assert records.footer is not None
    stale = Stale("known.toml", 8, "bridge", "loss", "docs/x.md", "entry", ("m",))
    footer = dataclasses.replace(records.footer, stale=(stale,))
    first = pages(dataclasses.replace(records, footer=footer), tmp_path)["index.html"]
    assert first.one("h1").words.endswith("but the ledger of known defects is stale")
    assert stale.describe() in first.one("main").words


def test_a_name_without_a_model_has_no_link(tmp_path: Path) -> None:
    records = run([("m", "bridge", "loss", "passed")])
    name = Name("org/x", "X", "twin", "not-in-this-run")
    found = pages(dataclasses.replace(records, names=(name,)), tmp_path)
    assert "org/x" in found["index.html"].one("main").words
