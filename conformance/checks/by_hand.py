"""Patching of an encoder and a decoder: made by hand through hooks, as its users have to.

The library's sweeps name one stack of blocks. What they would do is done here with its own parts:
values of its own cache, put in through its own hooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.checks.base import Check, is_ours, same, structure
from conformance.checks.sweeps import quiet
from conformance.experiments.patches import along
from conformance.experiments.patching import SWEEPS, metric, routes
from conformance.experiments.rows import project, run_rows
from conformance.experiments.two_stacks import made, row_of, site_of
from conformance.implementations.base import first_tensor, shaped
from conformance.sites import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from conformance.experiments.base import Scope
    from conformance.experiments.rows import Row
    from conformance.experiments.store import Stored
    from conformance.implementations.lens_model import LensModel
    from conformance.prompts import Prompt
    from conformance.records import Comparison

#: What a comparison of the library's sweeps as such is filed under.
SWEPT = "get_act_patch"


def refused(
    check: Check, subject: LensModel, corrupted: Prompt, caches: Sequence[Any]
) -> Iterator[Comparison]:
    """The library's own sweeps: one comparison of them all, for they share what they do not know.

    What they say that they cannot do is not applicable.

    Args:
        caches: the library's own, of the clean and of the corrupted run.
    """
    raised: dict[str, Exception] = {}
    calls = _calls(subject, corrupted, caches)
    for name, call in calls.items():
        with subject.session(), quiet():
            try:
                call()
            except (ValueError, NotImplementedError) as refusal:
                check.not_applicable(name, str(refusal))
            except Exception as error:
                if is_ours(error):
                    raise
                raised[name] = error
            else:
                check.not_applicable(name, "takes two stacks, and does not say how it counts them")
    if raised:
        name, first = next(iter(raised.items()))
        what = f"{type(first).__name__}: {first}"
        note = f"{len(raised)} of {len(calls)} sweeps raise; {name}: {what}"
        yield structure(SWEPT, note, corrupted.name)


def _calls(
    subject: LensModel, corrupted: Prompt, caches: Sequence[Any]
) -> dict[str, Callable[[], Any]]:
    """Each sweep's first patch, by its name."""
    from transformer_lens import patching

    def measure(logits: torch.Tensor) -> torch.Tensor:
        return metric(project(logits.detach())[0])

    model, tokens = subject.model, corrupted.tokens
    calls: dict[str, Callable[[], Any]] = {}
    for name in SWEEPS:
        sweep = getattr(patching, name)
        axes = sweep.keywords["index_axis_names"]
        first = {
            "index_axis_names": None,
            "index_df": patching.make_df_from_ranges([1] * len(axes), axes),
        }
        calls[name] = lambda sweep=sweep, first=first: sweep(  # type: ignore[misc]
            model, tokens, caches[0], measure, **first
        )
    if hasattr(patching, "get_act_patch_direct_path"):
        direct = patching.get_act_patch_direct_path
        calls["get_act_patch_direct_path"] = lambda: direct(
            model, tokens, *caches, measure, 0, 0, "q", verbose=False
        )
    return calls


def by_hand(
    check: Check,
    subject: LensModel,
    stored: Stored,
    scope: Scope,
    corrupted: Prompt,
    cache: Mapping[str, torch.Tensor],
) -> Iterator[Comparison]:
    """Values of the library's cache of the clean run, put into the corrupted one.

    Against the same patches of the reference: by position, by head, of patterns by query and key,
    in each layer of either stack that has them.
    """
    import torch

    editable = subject.editable()
    clean: dict[str, torch.Tensor] = {}
    rows: list[Row] = []
    of: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for name, chosen in made(subject.dims, scope, subject.family).items():
        hidden = {site for index in chosen if (site := site_of(name, index)) not in editable}
        if hidden:
            why = f"no hook of the library shows {', '.join(sorted(hidden))}"
            check.not_applicable(f"{name}, by hand", why)
        for number, index in enumerate(chosen):
            site = site_of(name, index)
            if site in hidden:
                continue
            if site not in clean:
                if editable[site] not in cache:
                    hidden.add(site)
                    yield structure(site, f"run_with_cache leaves out {editable[site]}", "clean")
                    continue
                clean[site] = _laid_out(subject, site, cache[editable[site]], corrupted)
            of.setdefault((name, site), []).append((number, len(rows)))
            rows.append(row_of(name, index, clean[site]))
    found: list[torch.Tensor] = []
    with check.port("patches by hand"):
        found = [value for _, value in run_rows(subject, corrupted, rows)]
    if not found:
        return
    for (name, site), places in of.items():
        truth, spread = stored[f"hand/{name}"], stored.spread(f"hand/{name}")
        theirs = torch.stack([truth[number] for number, _ in places])
        ours = torch.stack([found[at] for _, at in places])
        yield same(theirs, ours, spread, site=site, on=f"corrupted ({name}, by hand)")


def _laid_out(subject: LensModel, site: str, value: torch.Tensor, prompt: Prompt) -> torch.Tensor:
    """What a cache holds of a site, laid out along its axes, without batch."""
    convert = subject.layout(parse(site).kind)
    tensor = first_tensor(value)
    shown: list[torch.Tensor] = []
    show = shaped(lambda _, value: shown.append(value), prompt, subject.family)
    show(site, tensor if convert is None else convert(tensor))
    return shown[0][0]


def along_by_hand(
    check: Check,
    subject: LensModel,
    stored: Stored,
    scope: Scope,
    corrupted: Prompt,
    clean: Mapping[str, torch.Tensor],
) -> Iterator[Comparison]:
    """One head's output in what each later head alone reads, within a stack and across.

    Args:
        clean: site -> its value in the clean run, no batch.
    """
    dims, fam, editable = subject.dims, subject.family, subject.editable()
    found = routes(dims, scope, fam)
    if not found:
        why = "what a head writes goes through a norm of the stream before a later head reads it"
        check.not_applicable("direct paths", why)
    for name, path in found.items():
        source = [f"blocks.{path.layer}.{kind}" for kind in ("attn.z", "attn_out")]
        sites = {*source, *path.reads, *path.reads.values()}
        if hidden := sorted(sites - editable.keys()):
            check.not_applicable(
                f"direct path, {name}", f"no hook of the library shows {hidden[0]}"
            )
            continue
        logits = None
        with check.port(f"direct path, {name}", next(iter(path.reads))):
            logits = along(subject, path, clean[source[0]], corrupted)[:, -1]
        if logits is None:
            continue
        key = f"path/{name}"
        each = dims.n_heads
        for number, site in enumerate(path.reads):
            part = slice(number * each, (number + 1) * each)
            on = f"corrupted (direct path, {name}, by hand)"
            yield same(stored[key][part], logits[part], stored.spread(key), site=site, on=on)
