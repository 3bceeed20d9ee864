"""The QK and OV circuits as the library forms them, against products of the reference's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.checks.base import Check, Context, agree, structure
from conformance.experiments.lens import power_sums, projection

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from conformance.experiments.store import Stored
    from conformance.records import Comparison


def circuits(check: Check, context: Context, made: Stored) -> Iterator[Comparison]:
    """Products, singular values and eigenvalues of ``model.QK`` and ``model.OV``, by layer."""
    for name in ("QK", "OV"):
        found: dict[str, torch.Tensor] = {}
        with check.port(f"model.{name}", f"blocks.0.attn.{name}"):
            found = _read(name, getattr(context.subject.model, name), context)
        for key, value in found.items():
            due = made[key]
            if value.shape != due.shape:
                note = f"{key}: shape {tuple(value.shape)}, expected {tuple(due.shape)}"
                yield structure(f"blocks.0.attn.{name}", note)
                continue
            for layer in range(len(due)):
                yield agree(
                    made,
                    key,
                    value[layer],
                    truth=due[layer],
                    site=f"blocks.{layer}.attn.{name}",
                    on="weights",
                    row_dims=2,
                    note=key,
                )


def _read(name: str, product: Any, context: Context) -> dict[str, torch.Tensor]:
    """What the experiment has of a product, of a ``FactoredMatrix`` [layer, head, ., .]."""
    d_model = context.reference.dims.d_model
    sides = projection(2 * d_model)
    left, right = sides[:d_model], sides[d_model:]
    # (x A) (B y): the matrix itself would be [layer, head, d_model, d_model].
    bilinear = ((left.T @ product.A).transpose(-1, -2) * (product.B @ right)).sum(-2)
    singular = product.S
    return {
        name: bilinear,
        f"{name} singular": singular,
        f"{name} powers": power_sums(product.eigenvalues, singular[..., 0]),
    }
