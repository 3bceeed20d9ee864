"""Writes the pages: templates, filled from records alone, and what lies beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.errors import RecordsError
from conformance.records import read
from conformance.report import PAGES
from conformance.report.html import words
from conformance.report.html.beside import explained, look
from conformance.report.html.catalogue import catalogue
from conformance.report.html.figures import fact_rows, figures
from conformance.report.html.ports import BOTH, models_of
from conformance.report.terminal import state

if TYPE_CHECKING:
    import jinja2

    from conformance.records import Records

_HERE = Path(__file__).parent
_INDEX = Path(PAGES).name
#: The folder of the pages that a table of models leads to.
_MODELS = "models"
_STATIC = ("report.css", "report.js", "look.js")


def write(records_file: Path, out: Path | None = None) -> Path:
    """Write the pages of a run.

    Args:
        records_file: the records; samples and explanations are looked for in its folder.
        out: the folder of the pages; ``report`` beside the records by default. Pages of an
            earlier report there are replaced.

    Returns:
        The first page.

    Raises:
        RecordsError: the records cannot be read, or the pages not be written.
    """
    records = read(records_file)
    folder = out or (records_file.parent / PAGES).parent
    pages = render(records, records_file.parent)
    try:
        (folder / _MODELS).mkdir(parents=True, exist_ok=True)
        for old in (folder / _MODELS).glob("*.html"):
            old.unlink()
        for name, text in pages.items():
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise RecordsError(
            f"{error.filename or folder}: {error.strerror}", "give a folder you can write to"
        ) from error
    return folder / _INDEX


def render(records: Records, folder: Path) -> dict[str, str]:
    """Path in the folder of pages -> its text, the same for the same records.

    Args:
        records: of a run.
        folder: where its samples and explanations are.
    """
    environment = _environment()
    models = models_of(records, _models_toml(records))
    found = {
        (p.model, p.subject): explained(folder, p.model, p.subject) for m in models for p in m.ports
    }
    causes = {port: one.causes for port, one in found.items() if one is not None}
    run = _run(records)
    first = environment.get_template("index.html.j2")
    pages = {
        _INDEX: first.render(run=run, **catalogue(records, models, causes)),
        **{name: (_HERE / "static" / name).read_text(encoding="utf-8") for name in _STATIC},
    }
    template = environment.get_template("model.html.j2")
    for before, model, after in zip([None, *models], models, [*models[1:], None], strict=False):
        ports = [
            {
                "port": port,
                "figures": figures(port.anchor, port.verdicts),
                "explained": found[port.model, port.subject],
                "look": look(folder, port.verdicts),
            }
            for port in model.ports
        ]
        pages[f"{_MODELS}/{model.page}"] = template.render(
            run=run,
            model=model,
            ports=ports,
            before=before,
            after=after,
            facts=fact_rows(model.facts),
            names=[n.hub for n in records.names if n.model == model.id],
        )
    return pages


def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    for name in ("sci", "value", "percent", "count", "size", "duration", "badge"):
        environment.filters[name] = getattr(words, name)
    environment.globals.update(JUDGEMENTS=words.JUDGEMENTS, BOTH=BOTH)
    return environment


def _models_toml(records: Records) -> str | None:
    """What to pass with ``--models``: nothing where the file has the name that is the default."""
    name = records.header.models_toml
    return None if Path(name).name == "models.toml" else name


def _run(records: Records) -> dict[str, Any]:
    """What every page says of the run."""
    versions = records.header.versions
    return {
        "versions": versions,
        "libraries": [
            f"{name} {versions[name]}"
            for name in ("transformer-lens", "transformers", "torch", "python")
            if name in versions
        ],
        "header": records.header,
        "footer": records.footer,
        "incomplete": state(records),
    }
