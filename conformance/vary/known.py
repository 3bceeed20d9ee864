"""Failures of variants that the ledger knows, and what it knows wrongly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from conformance.ledger.judging import holds, installed
from conformance.spec import EVERY_CHECK, TwinSource

if TYPE_CHECKING:
    from conformance.spec import ExpectedFailure, Spec, Variant
    from conformance.vary.records import Difference, Judged

_ABSENT = object()


class Known:
    """What the ledger expects of one architecture and subject: its variants, and the twin itself.

    Args:
        twin: whose own failures are those of the model that it is in ``models.toml``.
        versions: of the packages that conditions are about; the installed ones unless given.
    """

    def __init__(
        self,
        spec: Spec,
        architecture: str,
        subject: str,
        twin: str = "",
        versions: Mapping[str, str] | None = None,
    ) -> None:
        entries = spec.ledger.variants if spec.ledger else ()
        at = installed() if versions is None else versions
        self.entries: tuple[Variant, ...] = tuple(
            entry
            for entry in entries
            if architecture in entry.architectures and entry.subject == subject and holds(entry, at)
        )
        self._own: tuple[ExpectedFailure, ...] = tuple(
            entry
            for model in spec.models
            if isinstance(model.source, TwinSource)
            and (model.source.twin, model.source.config) == (twin, None)
            for entry in model.expected_failures
            if entry.subject == subject and holds(entry, at)
        )

    def link(
        self, config: Mapping[str, Any], difference: Difference, *, own: bool = False
    ) -> str | None:
        """Where this difference is described; None if nobody expects it.

        Args:
            own: the configuration is the twin's own.
        """
        entry = self.entry(config, difference)
        if entry is not None or not own:
            return None if entry is None else entry.link
        # What a run calls `logits` has those of processed weights in it.
        checks = {difference.check, EVERY_CHECK}
        checks |= {"logits"} if difference.check == "processing" else set()
        kinds = {difference.kind}
        return next(
            (
                e.link
                for e in self._own
                if e.check in checks and (e.kinds is None or kinds & set(e.kinds))
            ),
            None,
        )

    def entry(self, config: Mapping[str, Any], difference: Difference) -> Variant | None:
        """What expects this difference in this config (all fields of it); None if nothing does."""
        return next((e for e in self._of(config) if difference.check in e.checks), None)

    def contradicted(
        self, judged: Iterable[tuple[str, Mapping[str, Any], Judged]]
    ) -> tuple[str, ...]:
        """Entries that expect a failure where a configuration passed.

        Args:
            judged: a configuration in words, all of its fields, and what came of it.
        """
        found: dict[str, str] = {}
        for words, config, one in judged:
            if one.outcome != "passed":
                continue
            for entry in self._of(config):
                when = ", ".join(f"{name} = {value!r}" for name, value in entry.when.items())
                found.setdefault(f"{entry.link} (when {when})", words)
        return tuple(f"{entry} passes with {words}" for entry, words in found.items())

    def _of(self, config: Mapping[str, Any]) -> list[Variant]:
        return [entry for entry in self.entries if meets(config, entry.when)]


def meets(config: Mapping[str, Any], when: Mapping[str, Any]) -> bool:
    """Whether a config has every value that a condition states.

    Args:
        when: field, dotted where it is nested -> a value, several of which one will do, or
            ``{"not": [...]}``.
    """
    return all(_is(_at(config, name), wanted) for name, wanted in when.items())


def _at(config: Mapping[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _is(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return value is not _ABSENT and not any(_same(value, one) for one in wanted["not"])
    return any(_same(value, one) for one in (wanted if isinstance(wanted, list) else [wanted]))


def _same(value: Any, wanted: Any) -> bool:
    """Equal, and both or neither a boolean; ``"none"`` is what TOML has no word for."""
    if wanted == "none":
        return value is None
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)
