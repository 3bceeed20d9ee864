"""A small part of both sides' activations, for people to look at: few sites, positions, neurons.

A sample is of one port, in promoted float64 on one short prompt, and has an upper size
(:data:`LARGEST`): it is kept beside ``records.jsonl`` and never decides anything.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conformance.sites import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

#: Prompts to sample, the first that a model has: real text reads best.
PROMPTS = ("text", "sixteen")
#: What is sampled, at most: 4 kinds of site with neurons and one with heads in each layer, two
#: more sites, a number taking 2 bytes on each side in base 64, come to some 16 kB.
POSITIONS, LAYERS, NEURONS, HEADS, GUESSES = 12, 3, 8, 3, 3
#: Characters of a token that are shown.
_LETTERS = 12
#: Bytes of a sample as JSON, at most.
LARGEST = 24_000

#: What stands for a logit that is none; JSON has no NaN.
_NO_NUMBER = -1e30
_IN_LAYERS = ("attn.pattern", "attn_out", "mixer_out", "mlp.post", "mlp_out", "resid_post")
_GLOBAL = ("embed", "ln_final")


@dataclass
class Sample:
    """Collects one port's sample while its sites fire.

    Attributes:
        n_layers: how many layers the model has.
        failing: the first layer that was found to differ; it is among those sampled.
    """

    prompt: str
    tokens: torch.Tensor
    n_layers: int
    failing: int | None = None
    sites: list[dict[str, Any]] = field(default_factory=list)
    guesses: dict[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        """The layers sampled: where it fails, the first, the last, one between."""
        last = self.n_layers - 1
        wanted = [*([] if self.failing is None else [self.failing]), 0, last, last // 2]
        return sorted(list(dict.fromkeys(wanted))[:LAYERS])

    def wants(self, site: str) -> bool:
        """Whether a site is sampled."""
        where = parse(site)
        if where.layer is None:
            return where.kind in _GLOBAL
        return where.kind in _IN_LAYERS and where.layer in self.layers

    def see(self, site: str, truth: torch.Tensor, value: torch.Tensor) -> None:
        """Both sides of a site, [batch, pos, neuron] or [batch, head, query, key]; of the batch,
        the first."""
        reference, subject = truth[0].double(), value[0].double()
        apart = (subject - reference).nan_to_num(posinf=0.0, neginf=0.0).abs()
        if parse(site).kind == "attn.pattern":
            chosen = _chosen(apart.amax(dim=(1, 2)), HEADS)
            part: Any = (chosen, slice(POSITIONS), slice(POSITIONS))
            axes = ["head", "query", "key"]
        else:
            chosen = _chosen(apart.amax(dim=0), NEURONS)
            part = (slice(POSITIONS), chosen)
            axes = ["pos", "neuron"]
        if len(self.sites) < LAYERS * (len(_IN_LAYERS) - 1) + len(_GLOBAL):
            self.sites.append(
                {
                    "site": site,
                    "axes": axes,
                    "of": reference.shape[0 if axes[0] == "head" else 1],
                    "index": chosen,
                    "reference": _packed(reference[part]),
                    "difference": _packed((subject - reference)[part]),
                }
            )

    def see_logits(self, truth: torch.Tensor, value: torch.Tensor) -> None:
        """The likeliest next tokens of both sides, from logits [batch, pos, d_vocab]."""
        for name, logits in (("reference", truth), ("subject", value)):
            best = (
                logits[0, :POSITIONS]
                .double()
                .nan_to_num(nan=_NO_NUMBER, neginf=_NO_NUMBER, posinf=-_NO_NUMBER)
            )
            values, ids = best.topk(min(GUESSES, best.shape[-1]), dim=-1)
            self.guesses[name] = {
                "ids": ids.tolist(),
                "logits": [[float(f"{x:.5g}") for x in row] for row in values.tolist()],
            }

    def plain(self, word: Callable[[int], str] | None) -> dict[str, Any]:
        """As JSON has it.

        Args:
            word: what a token id stands for; None where there is no tokenizer.
        """
        ids = self.tokens[0, :POSITIONS].tolist()
        words: dict[str, str] = {}
        if word is not None:
            seen = {
                *ids,
                *(i for side in self.guesses.values() for row in side["ids"] for i in row),
            }
            words = {str(i): word(i)[:_LETTERS] for i in sorted(seen)}
        return {
            "prompt": self.prompt,
            "length": self.tokens.shape[1],
            "ids": ids,
            "words": words,
            "guesses": self.guesses,
            "sites": self.sites,
        }


def _chosen(sizes: torch.Tensor, most: int) -> list[int]:
    """Which of many to keep: all, or the first half and those of the largest size."""
    count = sizes.shape[0]
    if count <= most:
        return list(range(count))
    first = list(range(most // 2))
    by_size: Sequence[int] = sizes.argsort(descending=True, stable=True).tolist()
    rest = [i for i in by_size if i >= len(first)]
    return sorted([*first, *rest[: most - len(first)]])


def _packed(tensor: torch.Tensor) -> dict[str, Any]:
    """float16 in base 64, little-endian, and what to multiply it by: so 1e-15 keeps its digits."""
    import torch

    finite = tensor.nan_to_num(posinf=0.0, neginf=0.0)
    scale = float(finite.abs().max()) if tensor.numel() else 0.0
    small = (tensor / scale if scale > 0 else tensor).to(torch.float16)
    return {
        "scale": scale,
        "data": base64.b64encode(small.contiguous().numpy().astype("<f2").tobytes()).decode(),
    }
