"""The configurations of one twin: its fields that change the mathematics, each with its values."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from conformance.checkpoints.shrink import HEADS, shrink
from conformance.errors import ConformanceError
from conformance.vary.values import ROPE_SHARED, ROPE_TYPES, others, out

#: A configuration: factor -> label of its value; factors at their defaults are not in it.
Choice = Mapping[str, str]
#: The same, to be hashed.
Key = frozenset[tuple[str, str]]

_ROPE = "rope_parameters"
#: Where a field is set with others, the name of the factor is that of the first.
_SET_WITH = {"use_sliding_window": "sliding_window"}


@dataclass(frozen=True, slots=True)
class Factor:
    """One thing that may vary.

    Attributes:
        name: the field, dotted where it is nested.
        default: the twin's own value, in words.
        values: label -> fields to set. A nested configuration's are under its name; rotary
            parameters are merged, see :meth:`Space.config`.
    """

    name: str
    default: str
    values: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Space:
    """All configurations of one twin.

    Attributes:
        base: the twin's own config.
        factors: what varies, in the order of the config's fields.
        left_out: field -> why it changes nothing that is judged.
        not_varied: fields that no rule knows -> what they are.
    """

    twin: str
    architecture: str
    base: Mapping[str, Any]
    factors: tuple[Factor, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    not_varied: Mapping[str, str] = field(default_factory=dict)

    def only(self, names: Sequence[str]) -> Space:
        """The same with the factors that these globs name, in any part of their dotted names.

        Raises:
            ConformanceError: a glob names none.
        """
        found: set[str] = set()
        for name in names:
            fitting = {
                f.name
                for f in self.factors
                if any(fnmatchcase(part, name) for part in (f.name, *f.name.split(".")))
            }
            if not fitting:
                known = ", ".join(f.name for f in self.factors)
                raise ConformanceError(f"no field {name!r} varies in {self.twin}", f"{known} do")
            found |= fitting
        return dataclasses.replace(self, factors=tuple(f for f in self.factors if f.name in found))

    def labels(self) -> dict[str, tuple[str, ...]]:
        """Factor -> the labels of its values, the default's left out."""
        return {f.name: tuple(f.values) for f in self.factors}

    def config(self, choice: Choice) -> dict[str, Any]:
        """The arguments of the config class that a configuration changes.

        Rotary parameters keep what all of their types share where the type changes.
        """
        by_name = {f.name: f for f in self.factors}
        changes: dict[str, Any] = {}
        rope: list[tuple[tuple[str, ...], Mapping[str, Any]]] = []
        for f in self.factors:
            if f.name not in choice:
                continue
            values = by_name[f.name].values[choice[f.name]]
            for name, value in values.items():
                if name.startswith(_ROPE):
                    rope.append((tuple(name.split(".")[1:]), value))
                elif "." in name:
                    outer, inner = name.split(".", 1)
                    nested = changes.setdefault(outer, dict(self.base[outer]))
                    nested[inner] = value
                else:
                    changes[name] = value
        if rope:
            changes[_ROPE] = self._rope(rope)
        if _ROPE in changes:
            changes[_ROPE] = _filled(changes[_ROPE], {**self.base, **changes})
        return self._heads(changes) | changes

    def _heads(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The twin's own heads and their size where some of them change.

        A config with some of them stated has all others as the class has them, not as the twin.
        """
        if not set(HEADS) & set(changes):
            return {}
        own = {n: self.base.get(n) for n in (*HEADS, "head_dim")}
        return {n: v for n, v in own.items() if isinstance(v, int)}

    def _rope(self, changed: list[tuple[tuple[str, ...], Mapping[str, Any]]]) -> dict[str, Any]:
        whole = {k: dict(v) if isinstance(v, dict) else v for k, v in self.base[_ROPE].items()}
        # A type first: it clears what belongs to another.
        for at, values in sorted(changed, key=lambda one: "rope_type" not in one[1]):
            own = whole[at[0]] if at else whole
            if "rope_type" in values:
                for name in [n for n in own if n not in ROPE_SHARED]:
                    del own[name]
            own.update(values)
        return whole

    def whole(self, choice: Choice) -> dict[str, Any]:
        """The config's fields in that configuration, as far as they are stated and not derived."""
        return {**self.base, **self.config(choice)}

    def words(self, choice: Choice) -> str:
        """``attention_bias=True, num_key_value_heads=1``."""
        said = (f"{f.name}={choice[f.name]}" for f in self.factors if f.name in choice)
        return ", ".join(said) or "the twin as it is"


def key(choice: Choice) -> Key:
    """A configuration, to be hashed."""
    return frozenset(choice.items())


def _filled(rope: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters with longrope's factors, one for each pair of dimensions rotated."""
    if not isinstance(rope.get("short_factor"), str):
        return {
            k: _filled(v, config) if isinstance(v, Mapping) and v else v for k, v in rope.items()
        }
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    pairs = int(size * rope.get("partial_rotary_factor", 1.0)) // 2
    return {
        **rope,
        "short_factor": [1 + i / 8 for i in range(pairs)],
        "long_factor": [2 + i / 4 for i in range(pairs)],
    }


# --- which twin -----------------------------------------------------------------------------------


def twin_of(name: str) -> str:
    """The twin that an architecture's name, or a twin's, stands for: its first.

    Raises:
        ConformanceError: there is none.
    """
    from conformance.checkpoints.twin_catalogue import TWINS

    if name in TWINS:
        return name
    found = next((twin for twin, entry in TWINS.items() if entry.architecture == name), None)
    if found is None:
        known = {*TWINS, *(entry.architecture for entry in TWINS.values())}
        near = difflib.get_close_matches(name, sorted(known), n=3)
        raise ConformanceError(
            f"no architecture or twin named {name!r}",
            f"did you mean {' or '.join(near)}?" if near else "see twin_catalogue/ for them",
        )
    return found


def space_of(twin: str) -> Space:
    """The configurations of a twin, from its config class.

    Raises:
        ConformanceError: there is no such twin.
    """
    from conformance.checkpoints.twin_catalogue import TWINS

    entry = TWINS[twin_of(twin)]
    config = shrink(entry.model_type, entry.config)
    base = config.to_dict()
    nested = tuple(name for name in config.sub_configs if isinstance(base.get(name), dict))
    return space_from(twin, entry.architecture, base, nested)


def space_from(
    twin: str, architecture: str, base: Mapping[str, Any], nested: tuple[str, ...] = ()
) -> Space:
    """The configurations about a config given as a dictionary.

    Args:
        nested: fields that hold a config of their own.
    """
    factors: dict[str, Factor] = {}
    left_out: dict[str, str] = {}
    not_varied: dict[str, str] = {}
    for name, own in base.items():
        if name == _ROPE:
            factors |= {f.name: f for f in _rope_factors(own, base)}
        elif name in nested:
            inner = space_from(twin, architecture, own)
            factors |= {f"{name}.{f.name}": _inside(name, f) for f in inner.factors}
            left_out |= {f"{name}.{k}": v for k, v in inner.left_out.items()}
            not_varied |= {f"{name}.{k}": v for k, v in inner.not_varied.items()}
        elif why := out(name):
            left_out[name] = why
        elif _SET_WITH.get(name) in base:
            left_out[name] = f"set with {_SET_WITH[name]}"
        elif values := others(name, own, base):
            factors[name] = Factor(name, str(own), values)
        else:
            not_varied[name] = _kind(own)
    return Space(twin, architecture, base, tuple(factors.values()), left_out, not_varied)


def _inside(name: str, f: Factor) -> Factor:
    values = {
        label: {f"{name}.{k}": v for k, v in fields.items()} for label, fields in f.values.items()
    }
    return Factor(f"{name}.{f.name}", f.default, values)


def _rope_factors(own: Any, base: Mapping[str, Any]) -> list[Factor]:
    """Type, base and share of rotary positions; for each kind of layer that has its own."""
    if not isinstance(own, Mapping) or not own:
        return []
    kinds = [k for k, v in own.items() if isinstance(v, Mapping)]
    if kinds:
        return [f for k in kinds for f in _rope_of(own[k], f"{_ROPE}.{k}", base)]
    return _rope_of(own, _ROPE, base)


def _rope_of(own: Mapping[str, Any], at: str, base: Mapping[str, Any]) -> list[Factor]:
    kind = own.get("rope_type", "default")
    # Phi 3 keeps the context that it was trained on beside the rotary parameters, and reads that.
    beside = "original_max_position_embeddings"
    types = {}
    for label, values in ROPE_TYPES.items():
        if label != kind:
            types[label] = {at: values}
            if beside in base and beside in values:
                types[label] = {at: values, beside: values[beside]}
    found = [Factor(f"{at}.rope_type", str(kind), types)]
    if isinstance(own.get("rope_theta"), (int, float)):
        theta = 500000.0 if own["rope_theta"] < 100000.0 else 10000.0
        changed = {str(theta): {at: {"rope_theta": theta}}}
        found.append(Factor(f"{at}.rope_theta", str(own["rope_theta"]), changed))
    if "partial_rotary_factor" in own:
        share = own["partial_rotary_factor"]
        shares = {str(s): {at: {"partial_rotary_factor": s}} for s in (0.5, 1.0) if s != share}
        found.append(Factor(f"{at}.partial_rotary_factor", str(share), shares))
    return found


def _kind(own: Any) -> str:
    names = {dict: "a table", list: "a list", str: "text", type(None): "unset"}
    return names.get(type(own), "a number")
