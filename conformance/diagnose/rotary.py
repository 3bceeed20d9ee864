"""Rotary positions (Su et al. 2021): frequencies, their scaling, and which dimensions they turn."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from conformance.families import Dims, Family

#: Which dimensions make a pair: i and i + n, or 2i and 2i + 1.
Layout = Literal["halves", "adjacent"]


@dataclass(frozen=True)
class Rope:
    """One rotation.

    Attributes:
        frequencies: radians a position, [pair].
        radius: what cosines and sines are multiplied by (yarn), else 1.
        pairing: which dimensions make a pair.
        table: which dimensions have which frequency; the same, in a right port.
        direction: 1 or -1.
        shift: added to every position.
        stretch: positions are multiplied by it.
        count_padding: positions count padding too.
        growth: (beta, context): what is rotated is multiplied by 1 + beta log(1 + position //
            context), as Llama 4 scales queries; None for no such factor.
    """

    frequencies: torch.Tensor
    radius: float = 1.0
    pairing: Layout = "halves"
    table: Layout = "halves"
    direction: int = 1
    shift: float = 0.0
    stretch: float = 1.0
    count_padding: bool = False
    growth: tuple[float, float] | None = None

    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotate ``x`` [batch, pos, head, d_head]; dimensions past the pairs stay."""
        if self.count_padding:
            positions = torch.arange(positions.shape[1]).expand(positions.shape)
        turns = (positions.double() + self.shift)[:, :, None] * self.stretch * self.frequencies
        cos, sin = (self._spread(t)[:, :, None] for t in (turns.cos(), turns.sin()))
        width = cos.shape[-1]
        turned, rest = x[..., :width], x[..., width:]
        other = self._partners(turned)
        turned = (turned * cos + self.direction * other * sin) * self.radius
        whole = torch.cat([turned, rest], dim=-1)
        if self.growth is None:
            return whole
        beta, context = self.growth
        factor = 1 + beta * torch.log1p((positions.double() / context).floor())
        return whole * factor[:, :, None, None]

    def _spread(self, table: torch.Tensor) -> torch.Tensor:
        if self.table == "halves":
            return torch.cat([table, table], dim=-1)
        return table.repeat_interleave(2, dim=-1)

    def _partners(self, x: torch.Tensor) -> torch.Tensor:
        if self.pairing == "halves":
            a, b = x.chunk(2, dim=-1)
            return torch.cat([-b, a], dim=-1)
        return torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)


@dataclass(frozen=True)
class Setting:
    """What a config says about the rotation of one layer.

    Attributes:
        base: ``rope_theta``.
        dim: how many dimensions are rotated.
        kind: how frequencies are scaled: ``default``, ``linear``, ``llama3``, ``yarn``.
        parameters: the scaling's own.
        layout, direction: which dimensions make a pair, and the sense of its turning.
    """

    base: float
    dim: int
    kind: str
    parameters: dict[str, Any]
    layout: Layout
    direction: int = 1

    def rope(self, base: float | None = None, dim: int | None = None) -> Rope:
        """The rotation, with another base or dimension if given.

        Raises:
            KeyError: the scaling is of a kind that has no formula here.
        """
        plain = frequencies(base or self.base, dim or self.dim)
        if self.kind == "default":
            scaled, radius = plain, 1.0
        elif self.kind == "linear":
            scaled, radius = plain / float(self.parameters["factor"]), 1.0
        elif self.kind == "proportional":  # the fastest turn, the others stay (Gemma 4)
            part = float(self.parameters.get("partial_rotary_factor", 1.0))
            turned = torch.arange(len(plain)) < int(part * (dim or self.dim) // 2)
            scaled, radius = plain * turned / float(self.parameters.get("factor", 1.0)), 1.0
        elif self.kind == "llama3":
            scaled, radius = _llama3(plain, self.parameters), 1.0
        elif self.kind == "dynamic" and self.parameters.get("alpha"):  # Hunyuan's
            n, alpha = dim or self.dim, float(self.parameters["alpha"])
            scaled, radius = frequencies((base or self.base) * alpha ** (n / (n - 2)), n), 1.0
        elif self.kind == "yarn":
            scaled, radius = _yarn(plain, base or self.base, dim or self.dim, self.parameters)
        else:
            raise KeyError(f"no formula of rotary scaling {self.kind!r}")
        return Rope(scaled, radius, self.layout, self.layout, self.direction)

    def of_queries(self) -> Rope:
        """The rotation of queries, which may grow with their position."""
        beta = self.parameters.get("llama_4_scaling_beta")
        if beta is None:
            return self.rope()
        context = float(self.parameters["original_max_position_embeddings"])
        return dataclasses.replace(self.rope(), growth=(float(beta), context))

    def unscaled(self) -> Rope:
        """The rotation with its scaling left out."""
        return dataclasses.replace(
            self.rope(), frequencies=frequencies(self.base, self.dim), radius=1.0
        )


def frequencies(base: float, dim: int) -> torch.Tensor:
    """base^(-2i/dim) for each pair i."""
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def _llama3(f: torch.Tensor, parameters: dict[str, Any]) -> torch.Tensor:
    """Long waves are stretched by ``factor``, short ones kept, between them a blend."""
    factor, low, high = (
        float(parameters[n]) for n in ("factor", "low_freq_factor", "high_freq_factor")
    )
    turns = float(parameters["original_max_position_embeddings"]) * f / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return f * (blend + (1 - blend) / factor)


def _yarn(
    f: torch.Tensor, base: float, dim: int, parameters: dict[str, Any]
) -> tuple[torch.Tensor, float]:
    """Yarn (Peng et al. 2023): a ramp over dimensions between kept and stretched frequencies."""
    factor = float(parameters["factor"])
    context = float(parameters["original_max_position_embeddings"])

    def dimension(rotations: float) -> float:
        return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = dimension(float(parameters.get("beta_fast") or 32))
    high = dimension(float(parameters.get("beta_slow") or 1))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    radius = parameters.get("attention_factor")
    if radius is None:
        m, m_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
        radius = _mscale(factor, m) / _mscale(factor, m_all) if m and m_all else _mscale(factor, 1)
    return f * (1 - ramp) + f / factor * ramp, float(radius)


def _mscale(factor: float, m: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0


def setting(config: Any, fam: Family, d: Dims, layer: int) -> Setting | None:
    """The rotation of one layer, or None if queries are not rotated."""
    if not fam.of(layer).rotary:
        return None
    layout: Layout = "adjacent" if fam.of(layer).rotary_adjacent else "halves"
    parameters = _parameters(config, layer)
    if fam.architecture in ("GPTJForCausalLM", "CodeGenForCausalLM"):
        return Setting(10000.0, int(config.rotary_dim or d.d_head), "default", {}, layout)
    part = float(parameters.get("partial_rotary_factor") or 1.0)
    if parameters.get("rope_type") == "proportional":
        part = 1.0
    return Setting(
        float(parameters.get("rope_theta", 10000.0)),
        int(d.d_head * part),
        str(parameters.get("rope_type", "default")),
        parameters,
        layout,
        -1 if fam.architecture == "NanoChatForCausalLM" else 1,
    )


def _parameters(config: Any, layer: int) -> dict[str, Any]:
    found = getattr(config, "rope_parameters", None) or {}
    kinds = getattr(config, "layer_types", None)
    if kinds and kinds[layer] in found:
        found = found[kinds[layer]]
    return dict(found)


def other_bases(config: Any, own: float) -> list[float]:
    """The bases that the config has for other kinds of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [p for p in found.values() if isinstance(p, dict) and "rope_theta" in p]
    return sorted({float(p["rope_theta"]) for p in kinds} - {own})
