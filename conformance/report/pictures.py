"""Pictures of a divergence, as PNG files: error by layer, histogram, heat map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conformance.sites import KINDS, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from conformance.explain.explanations import SiteError

#: The files.
NAMES = ("error-by-layer.png", "differences.png", "heat-map.png")

_FLOOR = 1e-18
_INPUT, _OUTPUT, _ALONE = "#7f7f7f", "#1f77b4", "#d62728"


@dataclass(frozen=True)
class Data:
    """What is drawn.

    Attributes:
        title: model and subject.
        site: the site of the histogram and the heat map; None for neither.
        prompt, dtype: of all three.
        errors: every site of the passes made.
        relative: differences at the site, entry by entry, relative to their row.
        heat: their largest by [row, position], and what rows are.
        allowed: the bound there.
    """

    title: str
    prompt: str
    dtype: str
    errors: Sequence[SiteError]
    n_layers: int
    site: str | None = None
    relative: NDArray[np.float64] | None = None
    heat: NDArray[np.float64] | None = None
    rows: str = "head"
    allowed: float = 0.0


def draw(data: Data, out: Path) -> tuple[str, ...]:
    """Write the pictures that the data allow and return their paths."""
    import matplotlib

    matplotlib.use("Agg")

    drawn: list[str] = []
    make_each: tuple[Callable[[Data, Path], bool], ...] = (_by_layer, _histogram, _heat)
    out.mkdir(parents=True, exist_ok=True)
    for name, make in zip(NAMES, make_each, strict=True):
        if make(data, out / name):
            drawn.append(str(out / name))
    return tuple(drawn)


def _save(figure: Any, path: Path) -> bool:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=100)
    return True


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _by_layer(data: Data, path: Path) -> bool:
    """Error of what each component takes and gives, and of what it gives on its own."""
    own = [e for e in data.errors if e.prompt == data.prompt and e.dtype == data.dtype]
    panels = [
        (name, before, after)
        for name, before, after in (
            ("attention", ("ln1", "resid_pre"), ("attn_out",)),
            ("MLP", ("ln2", "resid_mid", "ln1"), ("mlp_out",)),
        )
        if any(parse(e.site).kind in after for e in own)
    ]
    if not panels:
        return False
    figure = _figure(5.2 * len(panels), 4.2)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, before, after) in zip(axes, panels, strict=True):
        for kinds, mode, label, colour, marker in (
            (before, "plain", "what it takes", _INPUT, "o"),
            (after, "plain", "what it gives", _OUTPUT, "s"),
            (after, "components", "what it gives, fed the reference's input", _ALONE, "^"),
        ):
            points = _points(own, kinds, mode)
            if points:
                layers, values = zip(*points, strict=True)
                axis.plot(layers, values, marker=marker, color=colour, label=label, ms=5, lw=1.2)
        bound = [(parse(e.site).layer, e.allowed) for e in own if parse(e.site).kind in after]
        if bound:
            axis.axhline(max(a for _, a in bound), color="black", ls="--", lw=0.8, label="allowed")
        axis.set(title=f"{name} of each layer", xlabel="layer", yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    handles = {
        label: h for a in axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize=8)
    measure = "relative difference" if data.dtype == "float64" else "relative rms error"
    axes[0].set_ylabel(f"{measure} from the reference\n(none at all: {_FLOOR:g})")
    figure.suptitle(f"{data.title}: {data.dtype}, prompt {data.prompt}", fontsize=11)
    return _save(figure, path)


def _points(
    errors: Sequence[SiteError], kinds: Sequence[str], mode: str
) -> list[tuple[int, float]]:
    for kind in kinds:
        found = [
            (layer, max(e.measured, _FLOOR))
            for e in errors
            if e.mode == mode
            and parse(e.site).kind == kind
            and (layer := parse(e.site).layer) is not None
            and math.isfinite(e.measured)
        ]
        if found:
            return sorted(found)
    return []


def _histogram(data: Data, path: Path) -> bool:
    """How many entries of the site differ by how much."""
    import numpy as np

    if data.relative is None or data.site is None:
        return False
    values = data.relative.reshape(-1)
    values = values[np.isfinite(values)]
    same, different = int((values == 0).sum()), values[values > 0]
    if not len(different):
        return False
    figure = _figure(6.4, 4.0)
    axis = figure.subplots()
    logs = np.log10(np.maximum(different, _FLOOR))
    axis.hist(logs, bins=min(60, max(10, len(logs) // 8)), color=_OUTPUT)
    if data.allowed > 0:
        axis.axvline(math.log10(data.allowed), color="black", ls="--", lw=0.9, label="allowed")
        axis.legend(fontsize=8)
    axis.set(
        title=f"{data.title}\n{data.site}: {len(values)} entries, {same} of them equal",
        xlabel="log10 of the difference relative to the largest entry of its row",
        ylabel="entries",
    )
    axis.title.set_fontsize(10)
    axis.grid(alpha=0.3)
    return _save(figure, path)


def _heat(data: Data, path: Path) -> bool:
    """Where the largest differences are: head (or layer) by position."""
    import numpy as np

    if data.heat is None or data.site is None:
        return False
    finite = np.where(np.isfinite(data.heat), data.heat, np.nan)
    if not bool((finite > 0).any()):
        return False
    rows, columns = finite.shape
    figure = _figure(min(12.0, 3.2 + 0.25 * columns), min(8.0, 2.2 + 0.28 * rows))
    axis = figure.subplots()
    logs = np.log10(np.maximum(finite, _FLOOR))
    image = axis.imshow(logs, aspect="auto", cmap="magma", interpolation="nearest")
    figure.colorbar(image, ax=axis, label="log10 of the difference")
    what = "query position" if "query" in KINDS[parse(data.site).kind].axes else "position"
    axis.set(
        title=f"{data.title}\n{data.site}, prompt {data.prompt}", xlabel=what, ylabel=data.rows
    )
    axis.title.set_fontsize(9)
    for locator in (axis.xaxis.get_major_locator(), axis.yaxis.get_major_locator()):
        locator.set_params(integer=True)
    return _save(figure, path)
