"""Caches: a whole one is what hooks saw; one in part is that part of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.checks.base import Context, identical, is_ours, structure
from conformance.checks.hook_table import is_site
from conformance.sites import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from conformance.checks.hook_runs import Fired
    from conformance.implementations.lens_model import LensModel
    from conformance.prompts import Prompt
    from conformance.records import Comparison


def caches(
    context: Context, two: Prompt, one: Prompt, fired: Fired, sites: Mapping[str, str]
) -> Iterator[Comparison]:
    """A whole cache is what fired; caches in part are parts of it."""
    subject = context.subject
    model, last = subject.model, subject.dims.n_layers - 1
    points = model.hook_dict  # the bridge makes it anew each time

    def cached(prompt: Prompt, **options: Any) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        with subject.session():
            result: tuple[torch.Tensor, Any] = model.run_with_cache(
                prompt.tokens, **options, **subject.run_options(prompt)
            )
        return result

    _, whole = cached(two)
    for name, site in sites.items():
        if name not in whole:
            yield structure(site, f"run_with_cache leaves out {name}", "sixteen twice")
            continue
        yield identical(fired.copies[name], whole[name], site=site, on="sixteen twice, cached")
    names = [n for n, s in sites.items() if n in whole]
    chosen = [n for n in names if f".{last}." in n][::2] or names[::2]
    _, part = cached(two, names_filter=chosen)
    yield from _parts(whole, part, chosen, sites, "names_filter", lambda t, _: t)
    for name in part.keys() - set(chosen):
        if not any(points.get(name) is points[n] for n in chosen):
            yield structure(sites.get(name, name), "cached, though names_filter leaves it out")
    stopped, part = cached(two, stop_at_layer=last)
    before = [n for n in names if not n.startswith((f"blocks.{last}.", "ln_final", "unembed"))]
    yield from _parts(whole, part, before, sites, "stop_at_layer", lambda t, _: t)
    pre = subject.hook_table()["resid_pre"].format(l=last)
    if pre in whole:
        site = f"blocks.{last}.resid_pre"
        yield identical(whole[pre], stopped, site=site, on="sixteen twice, stop_at_layer returns")
    pos = one.tokens.shape[1] // 2
    how = f"pos_slice={pos}"

    def sliced(of: Sequence[str]) -> Iterator[Comparison]:
        """If the library cannot, then what it cannot slice is found by halving."""
        try:
            _, part = cached(two, pos_slice=pos, names_filter=list(of))
        except Exception as error:
            if is_ours(error):
                raise
            if len(of) == 1:
                note = f"{how} raised {type(error).__name__}: {error}"
                yield structure(sites[of[0]], note, "sixteen twice")
                return
            yield from sliced(of[: len(of) // 2])
            yield from sliced(of[len(of) // 2 :])
            return
        full = {name: _laid_out(subject, sites[name], whole[name]) for name in of}
        part = {n: _laid_out(subject, sites[n], t) for n, t in part.items() if n in full}
        yield from _parts(full, part, of, sites, how, _at(pos))

    yield from sliced(names)
    # Last: where it raises, nothing that could be compared is lost.
    _, alone = cached(one)
    _, part = cached(one, remove_batch_dim=True)
    yield from _parts(alone, part, names, sites, "remove_batch_dim", _first_of_batch)


def _parts(
    whole: Mapping[str, torch.Tensor],
    part: Mapping[str, torch.Tensor],
    names: Sequence[str],
    sites: Mapping[str, str],
    how: str,
    of: Callable[[torch.Tensor, str], torch.Tensor],
) -> Iterator[Comparison]:
    for name in names:
        site = sites[name]
        if name not in part:
            yield structure(site, f"not cached with {how}", "sixteen")
        else:
            yield identical(of(whole[name], site), part[name], site=site, on=f"sixteen, {how}")


def _axes(site: str) -> tuple[str, ...]:
    """A hook's axes; what is no site of ours is a norm's inside."""
    return parse(site).axes if is_site(site) else ("batch", "pos", "d_model")


def _laid_out(subject: LensModel, site: str, tensor: torch.Tensor) -> torch.Tensor:
    convert = subject.layout(parse(site).kind) if is_site(site) else None
    return tensor if convert is None else convert(tensor)


def _first_of_batch(tensor: torch.Tensor, site: str) -> torch.Tensor:
    return tensor[0] if _axes(site)[0] == "batch" else tensor


def _at(pos: int) -> Callable[[torch.Tensor, str], torch.Tensor]:
    """One position (of the query), its axis kept."""

    def select(tensor: torch.Tensor, site: str) -> torch.Tensor:
        axes = _axes(site)
        if axes[0] == "token":  # batch and position in one
            return tensor.unflatten(0, (2, -1))[:, pos]
        return tensor.narrow(axes.index("query" if "query" in axes else "pos"), pos, 1)

    return select
