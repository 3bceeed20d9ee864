"""What attention's scores are made of, as the checkpoint's config says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from conformance.classes import read_config
from conformance.experiments.base import Experiment

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from conformance.experiments.base import Apparatus


class Patterns(Experiment):
    """The constants of the scores' formula; needs no run, for the trace has every tensor.

    Results: ``scale`` [layer]; ``temperature/{layer}`` where a layer has one; and ``slopes``
    [head] where positions enter as alibi. Facts: ``cap``, ``clip`` and ``o_norm_eps``, each a
    number or None; ``buckets``, for each layer what :class:`conformance.diagnose.facts.Buckets` is
    made of, or None.
    """

    uses: ClassVar[tuple[str, ...]] = ("conformance.diagnose.facts", "conformance.families.base")
    needs_model: ClassVar[bool] = False

    def run(self, on: Apparatus) -> Iterator[tuple[str, torch.Tensor]]:
        import torch

        from conformance.diagnose import facts
        from conformance.families import dims, family

        whole = _config(on)
        config = whole.get_text_config()
        fam, d = family(whole.architectures[0], whole), dims(whole)
        scales = [
            facts.attention_scale(config, fam.of(i), d.of(i), i)[0] for i in range(d.n_layers)
        ]
        yield "scale", torch.tensor(scales, dtype=torch.float64)
        for i in range(d.n_layers):
            found = facts.temperature(config, fam.of(i))
            if found is not None:
                yield f"temperature/{i}", torch.tensor(found, dtype=torch.float64)
        slopes = facts.slopes(config, fam, d)
        if slopes is not None:
            yield "slopes", slopes

    def facts(self, on: Apparatus) -> dict[str, Any]:
        import dataclasses

        from conformance.diagnose import facts
        from conformance.families import dims, family

        whole = _config(on)
        config = whole.get_text_config()
        cap = facts.first(config, "attn_logit_softcapping")
        fam = family(whole.architectures[0], whole)
        placed = [facts.buckets(config, fam, i) for i in range(dims(whole).n_layers)]
        return {
            "buckets": [None if b is None else dataclasses.asdict(b) for b in placed],
            "cap": None if cap is None else float(cap),
            "clip": facts.clip(config),
            "o_norm_eps": facts.norm(config, fam).eps if any(f.o_norm for f in fam.every) else None,
        }


def _config(on: Apparatus) -> Any:

    return read_config(on.checkpoint)


EXPERIMENT = Patterns()
