"""Models and ports as their pages and the first page show them: words and links, no layout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from conformance.recorder import file_name
from conformance.report.html import figures, words
from conformance.report.terminal import WORDS, ordered, run_command
from conformance.standing import Standing, in_order, standing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from conformance.records import JudgementSummary, Records, Verdict

#: The two judgements that every port is held to.
BOTH = ("same_function", "same_precision")
#: More checks than this are counted where there is little room.
_LISTED_CHECKS = 5
#: Outcomes whose comparisons a page lists.
_LISTED = frozenset({"failed", "xfailed", "error", "crashed", "timeout", "oom", "xpassed"})


@dataclass(frozen=True)
class Port:
    """One subject of one model.

    Attributes:
        verdicts: check -> verdict, in the order of reports.
        page: file of the model's page, in ``models/``.
        models: the ``models.toml`` to name in commands; None for the default.
    """

    model: str
    subject: str
    verdicts: Mapping[str, Verdict]
    page: str
    models: str | None = None

    @cached_property
    def any(self) -> Verdict:
        return next(iter(self.verdicts.values()))

    @cached_property
    def standing(self) -> Standing:
        return standing(self.verdicts.values())

    @property
    def state(self) -> dict[str, str]:
        return words.standing_badge(self.standing.state)

    @property
    def rank(self) -> int:
        return words.rank(self.standing.state)

    @property
    def excused(self) -> bool:
        """Whether nothing of it was to be judged."""
        return all(v.outcome == "not_applicable" for v in self.verdicts.values())

    @property
    def anchor(self) -> str:
        return file_name(self.subject)

    def link(self, check: str) -> str:
        """From the first page to a verdict."""
        return f"models/{self.page}#{self.anchor}-{check}"

    @cached_property
    def closest(self) -> dict[str, tuple[JudgementSummary, str] | None]:
        """judgement -> the summary nearest to its bound, and its check."""
        found: dict[str, tuple[JudgementSummary, str] | None] = {}
        for judgement in BOTH:
            summaries = [
                (s, v.check)
                for v in self.verdicts.values()
                if (s := v.verdict.get(judgement)) is not None and s.margin is not None
            ]
            found[judgement] = max(summaries, key=lambda x: _margin(x[0]), default=None)
        return found

    @cached_property
    def summary(self) -> str:
        """What is not a pass, and how much is; to be searched."""
        return self._summary(len(self.verdicts))

    @property
    def short(self) -> str:
        """The same for a narrow screen: long lists are counted."""
        return self._summary(_LISTED_CHECKS)

    def _summary(self, most: int) -> str:
        by_word: dict[str, list[str]] = {}
        for check, verdict in self.verdicts.items():
            by_word.setdefault(WORDS[verdict.outcome], []).append(check)
        passed = by_word.pop(WORDS["passed"], [])
        parts = [
            f"{word}: {', '.join(checks) if len(checks) <= most else f'{len(checks)} checks'}"
            for word, checks in by_word.items()
        ]
        return "; ".join([*parts, *([f"{len(passed)} {WORDS['passed']}"] if passed else [])])

    @property
    def bad(self) -> list[Verdict]:
        """Verdicts that are explained at length."""
        return [v for v in self.verdicts.values() if v.outcome in _LISTED]

    @property
    def explained_together(self) -> list[list[Verdict]]:
        """The same, those that died of one thing together."""
        groups: dict[tuple[str, ...], list[Verdict]] = {}
        for v in self.bad:
            # A reason of several lines, without comparisons, is the end of a process.
            shared = not v.worst and "\n" in (v.reason or "")
            groups.setdefault((v.outcome, v.reason or "" if shared else v.check), []).append(v)
        return list(groups.values())

    @property
    def commands(self) -> dict[str, str]:
        """What to type: explain it, judge again what is not right."""
        models = f" --models {self.models}" if self.models else ""
        checks = [v.check for v in self.bad]
        return {
            "explain": f"conformance explain {self.model} --subject {self.subject}{models}",
            "run": run_command(self.model, self.subject, checks, self.models),
        }

    def outcomes(self, outcome: str) -> list[str]:
        """The checks that ended so."""
        return [check for check, v in self.verdicts.items() if v.outcome == outcome]

    @property
    def cost(self) -> Mapping[str, Any] | None:
        """Time and memory of the two processes."""
        return next(
            (v.metrics["cost"] for v in self.verdicts.values() if "cost" in v.metrics), None
        )

    @property
    def excuses(self) -> list[tuple[str, str, str]]:
        """check, what of it does not apply, why."""
        return [
            (check, what, " ".join(str(reason).split()))
            for check, verdict in self.verdicts.items()
            for what, reason in verdict.metrics.get("not_applicable", {}).items()
        ]


def _margin(summary: JudgementSummary) -> float:
    margin = summary.margin
    return float("inf") if margin is None or margin != margin else margin


@dataclass(frozen=True)
class Model:
    """A model and its ports, those that do not apply at all last."""

    id: str
    page: str
    ports: tuple[Port, ...]

    @cached_property
    def any(self) -> Verdict:
        return self.ports[0].any

    @cached_property
    def facts(self) -> dict[str, Any]:
        return figures.facts([v for port in self.ports for v in port.verdicts.values()])

    @property
    def commit(self) -> str | None:
        return next((v.commit for p in self.ports for v in p.verdicts.values() if v.commit), None)

    @property
    def contradictions(self) -> list[str]:
        """Where the reference's own variants compute different functions."""
        return list(
            dict.fromkeys(
                line
                for port in self.ports
                for v in port.verdicts.values()
                for line in v.metrics.get("reference_contradicts_itself", ())
            )
        )

    @property
    def family(self) -> str:
        """The architecture's name without what its head does: ``Llama``, ``GPT2``."""
        name = self.any.architecture
        for end in ("ForCausalLM", "LMHeadModel", "LMHead", "ForConditionalGeneration", "Model"):
            name = name.removesuffix(end)
        return name or "unknown"


def models_of(records: Records, models_toml: str | None) -> list[Model]:
    """The models of a run, trained weights first."""
    found: dict[str, dict[str, list[Verdict]]] = {}
    for verdict in ordered(records.verdicts):
        found.setdefault(verdict.model, {}).setdefault(verdict.subject, []).append(verdict)
    made = []
    for model, subjects in found.items():
        page = f"{file_name(model)}.html"
        ports = [
            Port(model, subject, _in_order(verdicts), page, models_toml)
            for subject, verdicts in subjects.items()
        ]
        made.append(Model(model, page, tuple(sorted(ports, key=lambda p: p.excused))))
    return made


def _in_order(verdicts: Iterable[Verdict]) -> dict[str, Verdict]:
    by_check = {v.check: v for v in verdicts}
    return {check: by_check[check] for check in in_order(by_check)}


def checks_of(models: Iterable[Model]) -> list[str]:
    """Every check of the run, in the order of reports."""
    return in_order(check for m in models for port in m.ports for check in port.verdicts)
