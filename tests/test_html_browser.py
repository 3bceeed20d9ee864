"""The pages in a real browser: what filters, sorting, search and keys do, and for whom they work.

Screenshots are kept in the folder that ``CONFORMANCE_ARTIFACTS`` names, or in pytest's own.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import ARTIFACTS, Viewer, chromium
from made_report import NAMES, few_ports, write_run

from conformance.checks.names import CHECKS
from conformance.report.html.pages import write

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = ("index.html", "models/beta-twin.html", "models/gamma-real.html", "models/delta-twin.html")
PORTS = ["gamma-real bridge", "alpha-twin bridge", "beta-twin bridge", "beta-twin hooked"]
PORTS += ["delta-twin bridge"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages."""
    records = dataclasses.replace(few_ports(), names=NAMES)
    return write(write_run(records, tmp_path_factory.mktemp("run"))).parent


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    kept = os.environ.get(ARTIFACTS)
    artifacts = Path(kept) if kept else tmp_path_factory.mktemp("artifacts")
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield Viewer(browser, artifacts)


def ports(viewer: Viewer) -> list[str]:
    """Model and subject of each row that is shown, in order."""
    return list(
        viewer.run("""return Array.from(document.querySelectorAll('#matrix tbody tr'))
        .filter(r => !r.hidden).map(r => r.cells[0].querySelector('a').textContent + ' '
        + r.dataset.subject)""")
    )


def focused(viewer: Viewer) -> list[str]:
    """Model and column of the cell that has the focus."""
    return list(
        viewer.run("""const c = document.activeElement.closest('td, th');
        const heads = document.querySelectorAll('#matrix thead th');
        return c ? [c.parentElement.cells[0].querySelector('a').textContent,
                    heads[c.cellIndex].textContent.trim()] : []""")
    )


# --- every page -------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_from_a_disk_without_a_complaint(
    page: str, size: str, dark: bool, site: Path, viewer: Viewer
) -> None:
    viewer.open(site / page, size, dark=dark)
    name = f"{Path(page).stem}-{size}{'-dark' if dark else ''}"
    assert viewer.errors() == []
    assert viewer.run("return document.documentElement.scrollWidth <= innerWidth")
    assert viewer.run(
        "return performance.getEntriesByType('resource').every("
        "e => e.name.startsWith('file:') || e.name.startsWith('data:'))"
    )
    viewer.picture(name)
    viewer.picture(f"{name}-whole", whole=True)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_no_barrier(page: str, size: str, dark: bool, site: Path, viewer: Viewer) -> None:
    from axe_core_python.selenium import Axe

    viewer.open(site / page, size, dark=dark)
    viewer.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
    found = Axe().run(viewer.browser)["violations"]
    told = [(v["id"], [n["html"][:120] for n in v["nodes"][:3]]) for v in found]
    assert told == []


def test_axe_would_find_one(site: Path, viewer: Viewer) -> None:
    from axe_core_python.selenium import Axe

    viewer.open(site / "index.html")
    viewer.run("""document.querySelector('label[for=q]').remove();
        document.querySelector('#q').removeAttribute('placeholder');
        document.querySelector('h1').style.color = '#bbb'""")
    assert {v["id"] for v in Axe().run(viewer.browser)["violations"]} >= {"label", "color-contrast"}


def test_every_link_resolves(site: Path, viewer: Viewer) -> None:
    script = """return Array.from(document.querySelectorAll('a[href]')).map(a => a.href)"""
    seen: set[str] = set()
    for page in PAGES:
        viewer.open(site / page)
        seen |= set(viewer.run(script))
    assert len(seen) > 80
    by_file: dict[str, set[str]] = {}
    for link in seen:
        file, _, fragment = link.partition("#")
        by_file.setdefault(file, set()).add(fragment)
    for file, fragments in by_file.items():
        path = Path(file.removeprefix("file://"))
        assert path.is_file(), file
        viewer.open(path)
        missing = [
            f
            for f in fragments
            if f and not viewer.run("return !!document.getElementById(arguments[0])", f)
        ]
        assert not missing, file


def test_pages_print(site: Path, viewer: Viewer) -> None:
    for page in PAGES[:2]:
        viewer.open(site / page)
        data = viewer.printed(f"{Path(page).stem}-print")
        assert data.startswith(b"%PDF")
    viewer.open(site / "index.html")
    viewer.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = "return getComputedStyle(document.querySelector(arguments[0])).display"
    assert viewer.run(shown, "#filters") == "none"
    assert viewer.run(shown, "#matrix td.c") == "table-cell"
    assert "FAIL" in viewer.texts("#matrix td.c")


# --- the table of models ----------------------------------------------------------------------


def test_the_first_screen_answers_without_scrolling(site: Path, viewer: Viewer) -> None:
    for size in ("desktop", "phone"):
        viewer.open(site / "index.html", size)
        for selector in ("h1", ".tiles", "article.card"):
            top = viewer.run(
                "return document.querySelector(arguments[0]).getBoundingClientRect().top", selector
            )
            assert 0 <= top < viewer.run("return innerHeight") - 60, (size, selector)


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        ({"f-state": "fails"}, ["beta-twin bridge"]),
        ({"f-state": "conforms"}, ["alpha-twin bridge"]),
        ({"f-family": "GPT2"}, ["gamma-real bridge", "alpha-twin bridge"]),
        ({"f-family": "mixture of experts"}, ["beta-twin bridge", "beta-twin hooked"]),
        ({"f-subject": "hooked"}, ["beta-twin hooked"]),
        ({"f-evidence": "real"}, ["gamma-real bridge"]),
        ({"f-word": "CRASH"}, ["gamma-real bridge"]),
        ({"f-word": "n/a"}, ["delta-twin bridge"]),
        ({"f-check": "hooks", "f-word": "xfail"}, ["beta-twin hooked"]),
        ({"f-check": "loss", "f-word": "xfail"}, []),
        ({"f-check": "loss"}, PORTS),
        ({"f-state": "fails", "f-subject": "hooked"}, []),
    ],
    ids=lambda value: (
        "+".join(f"{k[2:]}={v}" for k, v in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_a_filter_leaves_what_it_says(
    chosen: dict[str, str], left: list[str], site: Path, viewer: Viewer
) -> None:
    viewer.open(site / "index.html")
    assert ports(viewer) == PORTS
    for field, text in chosen.items():
        viewer.choose(field, text)
    assert ports(viewer) == left
    said = "5 ports" if len(left) == 5 else f"{len(left)} of 5 ports"
    assert viewer.texts("#shown") == [said]
    assert viewer.run("return document.getElementById('nothing').hidden") == bool(left)
    viewer.click("#filters [type=reset]")
    viewer.run("return new Promise(done => setTimeout(done, 20))")
    assert ports(viewer) == PORTS


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("alpha", ["alpha-twin bridge"]),
        ("GPT2", ["gamma-real bridge", "alpha-twin bridge"]),
        ("twin llama hooked", ["beta-twin hooked"]),
        ("fail logits", ["beta-twin bridge"]),
        ("nothing like it", []),
    ],
)
def test_search_leaves_what_has_every_word(
    text: str, left: list[str], site: Path, viewer: Viewer
) -> None:
    viewer.open(site / "index.html")
    viewer.keys("/", text)
    assert viewer.run("return document.activeElement.id") == "q"
    assert viewer.run("return document.activeElement.value") == text
    assert ports(viewer) == left
    viewer.keys("\ue00c")  # Escape
    assert ports(viewer) == PORTS


def test_columns_sort_both_ways(site: Path, viewer: Viewer) -> None:
    viewer.open(site / "index.html")
    heads = viewer.texts("#matrix thead th")
    assert heads[:3] == ["model", "subject", "verdict"]

    def click(name: str) -> str:
        viewer.run(
            """Array.from(document.querySelectorAll('#matrix thead button'))
            .find(b => b.textContent === arguments[0]).click()""",
            name,
        )
        return str(
            viewer.run("""return Array.from(document.querySelectorAll('#matrix thead th'))
            .filter(h => /ing$/.test(h.getAttribute('aria-sort'))).map(h => h.textContent + ' '
            + h.getAttribute('aria-sort')).join()""")
        )

    assert click("model") == "model ascending"
    assert ports(viewer) == sorted(PORTS)
    assert click("model") == "model descending"
    assert [p.split()[0] for p in ports(viewer)] == sorted(
        (p.split()[0] for p in PORTS), reverse=True
    )
    assert click("verdict") == "verdict ascending"
    assert ports(viewer)[:3] == ["beta-twin bridge", "gamma-real bridge", "beta-twin hooked"]
    assert click("loss") == "loss ascending"
    assert ports(viewer)[0] == "gamma-real bridge"  # CRASH before pass
    click("same function")
    assert ports(viewer)[-1] == "gamma-real bridge"  # nothing measured is last
    click("same function")
    assert ports(viewer)[0] == "beta-twin bridge"  # 5e8 times what is allowed
    assert ports(viewer)[-1] == "gamma-real bridge"
    click("parameters")
    click("parameters")
    assert ports(viewer)[0] == "delta-twin bridge"


def test_a_view_is_kept_in_its_address(site: Path, viewer: Viewer) -> None:
    viewer.open(site / "index.html")
    viewer.choose("f-evidence", "twin")
    viewer.click("#matrix thead th.model button")
    viewer.click("#matrix thead th.model button")
    address = viewer.browser.current_url
    assert address.endswith("#f-evidence=twin&sort=-0")
    shown = ports(viewer)
    assert [p.split()[0] for p in shown] == ["delta-twin", "beta-twin", "beta-twin", "alpha-twin"]
    viewer.open(site / "index.html", at="#" + address.partition("#")[2])
    assert ports(viewer) == shown
    assert viewer.run("return document.getElementById('f-evidence').value") == "twin"


def test_arrow_keys_move_between_cells_that_are_shown(site: Path, viewer: Viewer) -> None:
    down, up, right, left, home, end = "\ue015", "\ue013", "\ue014", "\ue012", "\ue011", "\ue010"
    viewer.open(site / "index.html")
    viewer.choose("f-evidence", "twin")
    viewer.run("document.querySelector('#matrix tbody tr:not([hidden]) th a').focus()")
    assert focused(viewer) == ["alpha-twin", "model"]
    viewer.keys(right, right, down)
    assert focused(viewer) == ["beta-twin", "activations"]
    viewer.keys(left, up)
    assert focused(viewer) == ["alpha-twin", "weights"]
    viewer.keys(up)  # the row above is filtered out
    assert focused(viewer) == ["alpha-twin", "weights"]
    viewer.keys(end)
    assert focused(viewer) == ["alpha-twin", CHECKS[-1]]
    viewer.keys(home)
    assert focused(viewer) == ["alpha-twin", "model"]
    outline = viewer.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_tab_reaches_the_content_first(site: Path, viewer: Viewer) -> None:
    viewer.open(site / "index.html")
    viewer.keys("\ue004")
    assert viewer.texts(":focus") == ["Skip to the content"]
    viewer.keys("\ue007")
    assert viewer.run("return document.activeElement.id") == "main"


def test_a_cell_leads_to_its_verdict(site: Path, viewer: Viewer) -> None:
    viewer.open(site / "index.html")
    viewer.click("#matrix td.c.bad a")
    assert viewer.browser.current_url.endswith("models/gamma-real.html#bridge-weights")
    assert viewer.texts(":target th") == ["weights"]


def test_a_phone_shows_what_is_not_a_pass(site: Path, viewer: Viewer) -> None:
    viewer.open(site / "index.html", "phone")
    shown = viewer.texts("#matrix tbody td.narrow-only")
    assert shown[0] == "CRASH: 17 checks"
    assert shown[2] == "FAIL: weights, activations, logits; 14 pass"
    assert not viewer.texts("#matrix td.c")


# --- looking at activations -------------------------------------------------------------------


def strip(viewer: Viewer, title: str) -> list[str]:
    return viewer.texts(f'#bridge ol[aria-label="{title}"] li span')


def test_a_sample_shows_both_sides_and_their_difference(site: Path, viewer: Viewer) -> None:
    import math

    viewer.open(site / "models" / "beta-twin.html")
    viewer.choose("bridge--sample--site", "blocks.1.mlp_out")
    viewer.choose("bridge--sample--which", "3")
    reference = [float(x) for x in strip(viewer, "Reference")]
    subject = [float(x) for x in strip(viewer, "Port")]
    difference = [float(x) for x in strip(viewer, "Difference")]
    assert len(reference) == 12
    for at, (r, s, d) in enumerate(zip(reference, subject, difference, strict=True)):
        truth = math.sin(at + 3)
        assert r == pytest.approx(truth, rel=2e-3, abs=2e-3)
        assert s == pytest.approx(truth, rel=2e-3, abs=2e-3)
        assert d == pytest.approx(1e-5 * truth, rel=6e-2, abs=2e-8)
    assert viewer.texts('#bridge ol[aria-label="Reference"] li b')[:5] == [
        *("Call", "␣me", "</script>", "↵", "<b>"),
    ]
    viewer.run("document.querySelectorAll('#bridge .look details').forEach(d => { d.open = true })")
    assert viewer.texts("#bridge .look details tbody tr")[0].startswith("0 Call ")
    assert viewer.texts("#bridge .look > .scroll tbody tr")[0] == (
        "0 Call f 5.5 · g 4.5 · h 3.5 · i 2.5 · j 1.5 f 5.5 · g 4.5 · h 3.5 · i 2.5 · j 1.5"
    )


def test_a_pattern_is_looked_at_by_head_and_token(site: Path, viewer: Viewer) -> None:
    viewer.open(site / "models" / "beta-twin.html")
    viewer.choose("bridge--sample--site", "blocks.0.attn.pattern")
    viewer.choose("bridge--sample--which", "2")
    viewer.choose("bridge--sample--query", "3 ↵")
    assert strip(viewer, "Reference") == ["0.25"] * 12
    assert strip(viewer, "Difference") == ["0"] * 12
    assert viewer.errors() == []


def test_all_neurons_of_a_site_are_a_table(site: Path, viewer: Viewer) -> None:
    viewer.open(site / "models" / "beta-twin.html")
    viewer.choose("bridge--sample--which", "all 8 of the 48")
    captions = viewer.texts("#bridge .look caption")
    assert captions[:3] == [
        f"{side} at blocks.0.attn_out" for side in ("Reference", "Port", "Difference")
    ]
    assert len(viewer.texts("#bridge .look table:first-of-type tbody tr")) >= 12
