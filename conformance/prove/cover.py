"""A covering selection: every fault in a few ports, those first that differ most.

A fault needs one port that has what it breaks; that it is caught in a second port of the same
build says little more. Ports are taken greedily by what their architectures have that the ports
before them had not (grouped heads, a window, experts, scaled rotary positions, ...), and each is
given the faults that are still wanted. Read from configs alone: no weight is made or loaded.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from conformance.families import Dims, Family
    from conformance.faults import Fault
    from conformance.prove.command import Task
    from conformance.spec import ModelSpec

Feature = tuple[str, object]

#: In how many ports each fault is put where nothing narrows the choice: one more than shows that it
#: can be caught, so that no port's own ways decide.
PORTS_EACH = 2


class Cover:
    """Gives each port, in turn, the faults that fewer ports than wanted have had.

    Attributes:
        proven: (subject, fault) -> in how many ports it was put.
    """

    def __init__(self, tasks: Sequence[Task], faults: Sequence[Fault], times: int) -> None:
        """
        Args:
            tasks: one for each port and seed; of two ports that bring as much, the first is taken.
            times: in how many ports each fault is wanted.
        """
        self._tasks, self._times = tasks, times
        dtypes = {task.model.dtype for task in tasks}
        self._faults = tuple(f.name for f in faults if f.dtypes is None or f.dtypes & dtypes)
        self.proven: Counter[tuple[str, str]] = Counter()
        self._seen: Counter[tuple[str, Feature]] = Counter()
        self._features: dict[tuple[str, str], frozenset[Feature]] = {}

    def __iter__(self) -> Iterator[Task]:
        """The tasks, each with what is still wanted when it is asked for.

        First what has the most that fewer ports than wanted had, as long as there is any. Subjects
        are apart: what one has been given, another has not.
        """
        left = [task for task in self._tasks if task.seed is None]
        self._features = {(t.model.id, t.subject): _features_of(t.model) for t in left}
        while left and self._new(best := max(left, key=self._new)) > 0:
            left.remove(best)
            self._count(best.model.id, best.subject, 1)
            if wanted := self.wanted(best.subject):
                yield dataclasses.replace(best, faults=wanted)
        yield from (task for task in self._tasks if task.seed is not None)

    def _new(self, task: Task) -> int:
        """How much of this port fewer ports than wanted had."""
        own = self._features[task.model.id, task.subject]
        return sum(self._seen[task.subject, feature] < self._times for feature in own)

    def _count(self, model: str, subject: str, by: int) -> None:
        for feature in self._features.get((model, subject), ()):
            self._seen[subject, feature] += by

    def wanted(self, subject: str) -> tuple[str, ...]:
        """Faults that are in fewer ports than wanted, in the catalogue's order."""
        return tuple(f for f in self._faults if self.proven[subject, f] < self._times)

    def add(self, model: str, subject: str, faults: Iterable[str], *, ran: bool) -> None:
        """Count what was put into one port.

        Args:
            faults: those that could be put in.
            ran: whether the port could be run; one that could not covers nothing.
        """
        if not ran:
            self._count(model, subject, -1)
        self.proven.update((subject, fault) for fault in faults)

    def said(self) -> list[str]:
        """What was covered, and what was not: a line for each subject."""
        lines = []
        for subject in sorted({task.subject for task in self._tasks}):
            few = [f"{name} ({self.proven[subject, name]})" for name in self.wanted(subject)]
            enough = len(self._faults) - len(few)
            said = f"{subject}: {enough} of {len(self._faults)} entries in {self._times} port(s)"
            lines.append(said + (f"; in fewer: {', '.join(few)}" if few else ""))
        return lines


def _features_of(model: ModelSpec) -> frozenset[Feature]:
    from conformance.families import dims, family

    config = _config(model)
    return features(family(model.architecture, config), dims(config), config.to_dict())


def _config(model: ModelSpec) -> Any:
    """The HuggingFace config that the twin will have."""
    from conformance.checkpoints.shrink import shrink
    from conformance.checkpoints.twin_catalogue import TWINS
    from conformance.spec import TwinSource

    assert isinstance(model.source, TwinSource)
    twin = TWINS[model.source.twin]
    config = shrink(twin.model_type, {**twin.config, **(model.source.config or {})})
    config.architectures = [twin.architecture]
    return config


#: What a layer has or has not, of all that a family's description says, that a fault may break.
_PARTS = (
    *("attn", "mixer", "mlp", "cross", "kv_latent", "ln1", "ln1_post", "ln2", "ln2_post"),
    *("qk_norm", "qk_norm_rotated", "rotary", "alibi", "relative", "sinks", "q_gated", "attn_gate"),
    *("gated", "experts", "shared", "shared_gate", "parallel", "mlp_reads_ln1", "post_norm"),
    *("norm_offset", "conv1d", "ln_final", "embed_ln", "embed_scaled", "pos_embed", "pos_offset"),
    *("ln_pre", "mlp_shifted", "receptance"),
    *("head", "encoder", "causal", "regular", "v_norm", "kv_from", "per_layer", "stream_scale"),
    *("reads", "pooled"),
)
_MULTIPLIERS = ("embed_multiplier", "residual_multiplier")
#: What a config may state besides.
_SETTINGS = (
    *("hidden_act", "hidden_activation", "activation_function", "clip_qkv", "swiglu_limit"),
    *("attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "logits_scaling"),
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "norm_topk_prob"),
)


def features(fam: Family, d: Dims, config: Mapping[str, Any]) -> frozenset[Feature]:
    """What an architecture has, as pairs of a name and a value; where it is called is none."""
    slopes = any(own.alibi for own in (fam, *fam.every))
    found: set[Feature] = {
        ("grouped", 1 < d.n_kv_heads < d.n_heads),
        ("one key head", d.n_kv_heads == 1),
        ("slopes of a power of two", slopes and d.n_heads & (d.n_heads - 1) == 0),
        ("slopes of another number", slopes and d.n_heads & (d.n_heads - 1) != 0),
        *(("window", width is not None) for width in d.windows),
    }
    for own in (fam, *fam.every):
        found |= {(name, bool(getattr(own, name))) for name in _PARTS}
        found |= {(name, getattr(own, name) != 1.0) for name in _MULTIPLIERS}
        if own.experts:  # how the chosen are weighted is another module beside latent attention
            found.add(("experts", (bool(own.kv_latent), config.get("norm_topk_prob"))))
        if own.relative:  # where attention is local, its table cannot be told from the mask
            found.add(("relative", (own.causal, "attn.pattern" in own.notes)))
    return frozenset(found | set(_settings(config)))


def _settings(config: Mapping[str, Any]) -> Iterator[Feature]:
    text = config.get("text_config")
    config = text if isinstance(text, dict) else config
    for name in _SETTINGS:
        if (value := config.get(name)) is not None:
            yield name, value if isinstance(value, (bool, str)) else value != 1.0
    rope = config.get("rope_parameters") or {}
    tables = [rope, *(v for v in rope.values() if isinstance(v, dict))]
    kinds = [str(t["rope_type"]) for t in tables if "rope_type" in t]
    yield from (("rope_type", kind) for kind in kinds)
    yield "rotary bases", len(kinds) > 1
