"""Passes of one loaded port, judged site by site as the checks judge them, each made once.

``conformance explain`` makes as few of them as it can: short prompts first, and none after the
first that shows a divergence.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from conformance.checks.base import Context, Pass, PassMode, judge, structure
from conformance.checks.choosing import judge_choices
from conformance.checks.sharing import SharedJudge
from conformance.choices import watched
from conformance.explain.explanations import Margin, SiteError
from conformance.variants import teacher
from conformance.verdicts import margin

if TYPE_CHECKING:
    import torch

    from conformance.implementations.lens_model import LensModel
    from conformance.prompts import Prompt
    from conformance.records import Comparison
    from conformance.reference import Reference

Progress = Callable[[str], None]

#: Sites that a pass with forced inputs does not judge: the sum is the block's before.
_NOT_FORCED = "resid_pre"


@dataclass
class Survey:
    """What was measured of a port so far.

    Attributes:
        exact: the port in promoted float64.
        comparisons: (dtype, mode, prompt) -> one comparison a site, in order of firing.
        weights: the comparisons of the loaded weights, once asked for.
    """

    reference: Reference
    exact: LensModel
    progress: Progress = lambda _: None
    comparisons: dict[tuple[str, PassMode, str], list[Comparison]] = field(default_factory=dict)
    _weights: list[Comparison] | None = None

    def prompt(self, name: str) -> Prompt:
        """One of the reference's prompts."""
        return next(p for p in self.reference.prompts if p.name == name)

    def weights(self) -> list[Comparison]:
        """The weights check's comparisons."""
        if self._weights is None:
            from conformance.checks.weights import Weights
            from conformance.engine import Running, read_weights

            self.progress("loaded weights")
            check = Weights()
            read_weights(Running([check]), Context(self.reference, self.exact))
            self._weights = check.comparisons
        return self._weights

    def run(
        self, mode: PassMode, prompt: str, subject: LensModel | None = None
    ) -> list[Comparison]:
        """One pass, judged; what the port raises is a comparison that does not hold.

        Args:
            mode: ``plain``, ``blocks``, ``components``; or ``processed``, for a port whose
                weights have been processed: centred logits only.
            subject: the port in another dtype; None for the one in promoted float64.
        """
        port = subject or self.exact
        dtype = str(port.dtype).removeprefix("torch.")
        key = (dtype, mode, prompt)
        if key not in self.comparisons:
            self.progress(f"{port.name}: {dtype}, {mode}, prompt {prompt}")
            self.comparisons[key] = self._judge(port, Pass(dtype, mode, self.prompt(prompt)))
        return self.comparisons[key]

    def _judge(self, port: LensModel, run: Pass) -> list[Comparison]:
        context = Context(self.reference, port)
        shared = SharedJudge(context, run)
        found: list[Comparison] = []
        fired: dict[str, int] = {}
        ours: list[BaseException] = []

        def on_site(name: str, value: torch.Tensor) -> None:
            fired[name] = fired.get(name, 0) + 1
            if ours or fired[name] > 1 or run.mode == "processed":
                return
            if run.mode != "plain" and name.endswith(_NOT_FORCED):
                return
            try:
                if name not in self.reference.sites:
                    note = "fired, but the reference has no such site"
                    found.append(structure(name, note, str(run)))
                else:
                    found.append(judge(context, run, name, value))
                    found.extend(shared.see(name, value, found[-1].ok))
            except Exception as error:
                ours.append(error)

        replay = {} if run.exact else self.reference.choices(run.mode, run.prompt.name)
        try:
            with contextlib.nullcontext() if run.exact else watched(port, replay) as watch:
                logits = port.run(run.prompt, on_site, force=self._force(port, run))
        except Exception as error:
            if ours:
                raise ours[0] from error
            tail = "".join(traceback.format_exception(error)).rstrip().splitlines()[-6:]
            note = f"the forward pass raised {type(error).__name__}: {error}\n" + "\n".join(tail)
            return [*found, structure(None, note, str(run))]
        if ours:
            raise ours[0]
        if watch is not None:
            found += judge_choices(context, run, watch, ())
        if run.mode == "processed":
            return [judge(context, run, "logits", logits, centre=True)]
        if run.mode != "blocks":
            found.append(judge(context, run, "logits", logits))
        if run.mode == "plain":
            found += self._silent(port, run, fired)
        return found

    def _silent(self, port: LensModel, run: Pass, fired: dict[str, int]) -> Iterable[Comparison]:
        expected, _ = port.expected_hooks()
        for name, hook in expected.items():
            times = fired.get(name, 0)
            if name in self.reference.sites and times != 1:
                what = "never fired" if times == 0 else f"fired {times} times"
                yield structure(name, f"hook {hook!r} {what}", str(run))

    def _force(self, port: LensModel, run: Pass) -> Callable[[str], torch.Tensor | None] | None:
        if run.mode in ("plain", "processed"):
            return None

        def get(name: str) -> torch.Tensor | None:
            return self.reference.input(run.prompt.name, name)

        return teacher(run.mode, get, port.dtype)

    def values(
        self,
        mode: PassMode,
        prompt: str,
        wanted: Iterable[str],
        subject: LensModel | None = None,
        inputs: bool = False,
    ) -> dict[str, torch.Tensor]:
        """What the port shows at some sites of one pass; ``logits`` too, if wanted.

        Args:
            inputs: also what each component takes, under ``in:`` and its name.
        """
        port = subject or self.exact
        run = Pass("float64", mode, self.prompt(prompt))
        names = frozenset(wanted)
        kept: dict[str, torch.Tensor] = {}

        def on_site(name: str, value: torch.Tensor) -> None:
            if name in names and name not in kept:
                kept[name] = value.clone()

        def on_input(name: str, value: torch.Tensor) -> None:
            kept.setdefault(f"in:{name}", value.clone())

        logits = port.run(
            run.prompt,
            on_site,
            force=self._force(port, run),
            on_input=on_input if inputs else None,
        )
        if "logits" in names:
            kept["logits"] = logits
        return kept

    def margins(self) -> tuple[Margin, ...]:
        """How near to its bound each judgement of each kind of pass came."""
        groups: dict[tuple[str, str], list[Comparison]] = {}
        for (_, mode, _), comparisons in self.comparisons.items():
            what = {"plain": "activations", "processed": "processed logits"}.get(mode, "components")
            for c in comparisons:
                name = "logits" if c.site == "logits" and mode == "plain" else what
                groups.setdefault((name, c.judgement), []).append(c)
        for c in self._weights or ():
            groups.setdefault(("weights", c.judgement), []).append(c)
        found = []
        for (name, judgement), comparisons in sorted(groups.items()):
            worst = max(comparisons, key=margin)
            found.append(Margin(name, judgement, len(comparisons), margin(worst), worst.site))
        return tuple(found)

    def errors(self) -> tuple[SiteError, ...]:
        """Every measurement of every site."""
        return tuple(
            SiteError(c.site, mode, prompt, dtype, c.measured, c.allowed, c.ok)
            for (dtype, mode, prompt), comparisons in self.comparisons.items()
            if mode != "processed"
            for c in comparisons
            if c.site is not None and c.allowed is not None and c.judgement != "structure"
        )


def failures(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Those that do not hold."""
    return [c for c in comparisons if not c.ok]
