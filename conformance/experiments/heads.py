"""What is known of the reference's heads: detection scores, and a circuit that people study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from conformance import SEEDS
from conformance.experiments.base import Experiment
from conformance.prompts import Prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch

    from conformance.experiments.base import Apparatus
    from conformance.families import Dims, Family

#: ``detect_head``'s names, and what it may leave out: (the first token, the current token).
NAMES = ("previous_token_head", "duplicate_token_head", "induction_head")
LEFT_OUT = ((False, False), (True, False), (True, True))

#: Half of a sequence of repeated random tokens: on twins, and on models that have learned.
_REPEATED, _REPEATED_LONG = 8, 24

FACT = ("The capital of France is", " Paris")
#: The answer is the name that is said once (Wang et al. 2022, arXiv:2211.00593).
OBJECTS = (
    ("When Mary and John went to the store, John gave a drink to", " Mary", " John"),
    ("When Mary and John went to the store, Mary gave a drink to", " John", " Mary"),
    ("When James and Anna went to the park, Anna gave a book to", " James", " Anna"),
    ("When James and Anna went to the park, James gave a book to", " Anna", " James"),
)


@dataclass(frozen=True)
class Told:
    """Prompts in tokens: a fact [1, pos] and its answer; objects [4, pos], right and wrong [4]."""

    fact: torch.Tensor
    answer: int
    objects: torch.Tensor
    right: torch.Tensor
    wrong: torch.Tensor


class Heads(Experiment):
    """Results:

    * ``repeated`` [1, pos]: random tokens, twice; ``read``, what the layers are given of them.
      ``mul``, ``abs`` [9, layer, head]: the scores of ``detect_head``, ``abs`` before it is
      rounded; 9 is :data:`NAMES` x :data:`LEFT_OUT`. Of an encoder and a decoder the decoder's
      layers.
    * where the tokenizer knows the words: ``fact``, ``objects``, ``right``, ``wrong`` (tokens);
      ``curve`` [layer + 1], the answer's log-probability through HuggingFace's own head at each
      layer; ``attribution`` [layer, head, prompt], what each head adds to the logit difference at
      the last position, as ``logit_attrs`` defines it (the norm's scale frozen, its weight left
      out); ``patched`` [layer of the scope, head], the logit difference of the second prompt with
      one head's ``z`` taken from the first.
    """

    uses: ClassVar[tuple[str, ...]] = (
        "conformance.diagnose.facts",
        "conformance.families.base",
        "conformance.weights",
    )

    def run(self, on: Apparatus) -> Iterator[tuple[str, torch.Tensor]]:
        import torch

        from conformance.implementations.base import one_back

        fam, layers = on.model.family, causal_layers(on.model.family, on.model.dims)
        if any("attn.pattern" in fam.absent(i) for i in layers):
            return
        tokens = _repeated(on)
        yield "repeated", tokens
        patterns: dict[str, torch.Tensor] = {}

        def keep(name: str, value: torch.Tensor) -> None:
            if name.endswith(".attn.pattern"):
                patterns[name] = value[0].clone()

        on.model.run(Prompt("repeated", tokens), keep)
        whole = torch.stack([patterns[f"blocks.{i}.attn.pattern"] for i in layers])
        read = one_back(tokens, on.model.model.config) if fam.encoder else tokens
        yield "read", read
        yield from scores(whole, read[0]).items()
        told = _told(on)
        if isinstance(told, Told):
            yield from _circuit(on, told)

    def facts(self, on: Apparatus) -> dict[str, Any]:
        from conformance.diagnose import facts

        told = _told(on)
        config = on.model.config
        cap = facts.first(config, "final_logit_softcapping", "logits_soft_cap")
        return {
            "untold": told if isinstance(told, str) else None,
            "answer": None if isinstance(told, str) else told.answer,
            "scale": facts.logit_scale(config)[0],
            "cap": None if cap is None else float(cap),
        }


def _repeated(on: Apparatus) -> torch.Tensor:
    import torch

    d = on.model.dims
    half = min(_REPEATED_LONG if on.scope.large else _REPEATED, (d.n_ctx - 2) // 2)
    generator = torch.Generator().manual_seed(SEEDS["prompts"])
    tokens = torch.randint(min(4, d.n_ids - 1), d.n_ids, (1, half), generator=generator)
    return tokens.repeat(1, 2)


def detections(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Where each kind of head looks: float [query, key] of zeros and ones."""
    import torch

    n = torch.arange(len(tokens))
    query, key = n[:, None], n[None, :]
    same = tokens[:, None] == tokens[None, :]
    before = torch.cat([torch.zeros_like(same[:, :1]), same[:, :-1]], dim=1)
    found = {
        "previous_token_head": key == query - 1,
        "duplicate_token_head": same & (key < query),
        "induction_head": before & (key <= query),
    }
    return {name: where.double() for name, where in found.items()}


def causal_layers(fam: Family, d: Dims) -> range:
    """The layers in which a token sees no later one: all, or a decoder's."""
    return range(fam.encoder, d.n_layers)


def scores(patterns: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """``mul`` and ``abs`` [9, layer, head], ``abs`` not rounded.

    Args:
        patterns: [layer, head, query, key].
        tokens: what the layers were given, [pos].
    """
    import torch

    due = detections(tokens)
    return {
        measure: torch.stack(
            [score(patterns, due[name], *out) for name in NAMES for out in LEFT_OUT]
        )
        for measure, score in (("mul", _mul), ("abs", _abs))
    }


def _without(p: torch.Tensor, first: bool, current: bool) -> torch.Tensor:
    p = p.clone()
    if first:
        p[..., 0] = 0
    if current:
        p.diagonal(dim1=-2, dim2=-1).zero_()
    return p


def _mul(p: torch.Tensor, due: torch.Tensor, first: bool, current: bool) -> torch.Tensor:
    p = _without(p, first, current)
    return (p * due).sum((-1, -2)) / p.sum((-1, -2))


def _abs(p: torch.Tensor, due: torch.Tensor, first: bool, current: bool) -> torch.Tensor:
    away = _without((p - due).abs(), first, current)
    return 1 - away.sum((-1, -2)) / p.shape[-1]


def _told(on: Apparatus) -> Told | str:
    """The prompts in tokens, or why there are none."""
    import torch

    tokenizer = on.tokenizer
    if on.model.family.encoder:
        return "their answers are the next token of one text, and a decoder begins another"
    if tokenizer is None:
        return "the checkpoint has no tokenizer"
    if not on.scope.large:
        return "the model has learned no language"

    def ids(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    def word(text: str) -> int | None:
        found = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return found[0] if len(found) == 1 else None

    right = [word(answer) for _, answer, _ in OBJECTS]
    wrong = [word(other) for _, _, other in OBJECTS]
    answer = word(FACT[1])
    texts = [ids(text) for text, _, _ in OBJECTS]
    if answer is None or None in (*right, *wrong) or len({len(t) for t in texts}) > 1:
        return "the tokenizer splits the words of the prompts"
    return Told(
        torch.tensor([ids(FACT[0])]),
        answer,
        torch.tensor(texts),
        torch.tensor(right),
        torch.tensor(wrong),
    )


def _circuit(on: Apparatus, told: Told) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    from conformance.diagnose import facts
    from conformance.weights import canonical

    model, d = on.model, on.model.dims
    yield "fact", told.fact
    yield "objects", told.objects
    yield "right", told.right
    yield "wrong", told.wrong
    last = f"blocks.{d.n_layers - 1}.resid_post"
    streams = _sites(on, told.fact, lambda s: s.endswith("resid_pre") or s == last)
    rows = torch.cat(
        [*(streams[f"blocks.{i}.resid_pre"] for i in range(d.n_layers)), streams[last]]
    )
    put = Prompt("fact", told.fact.repeat(len(rows), 1))
    logits = model.run(put, lambda *_: None, edits={last: lambda _: rows})
    yield "curve", logits[:, -1].log_softmax(-1)[:, told.answer]

    seen = _sites(on, told.objects, lambda s: s.endswith("attn.z") or s == last)
    weights = canonical(model.parameters(), model.family, d)
    norm = facts.norm(model.config, model.family)
    w_u = weights["unembed.W_U"].tensor.double()
    direction = (w_u[:, told.right] - w_u[:, told.wrong]).T
    x = seen[last][:, -1]
    if norm.centred:
        x = x - x.mean(-1, keepdim=True)
        direction = direction - direction.mean(-1, keepdim=True)
    scale = (x.square().mean(-1) + norm.eps).sqrt()
    found = []
    for layer in range(d.n_layers):
        w_o = weights[f"blocks.{layer}.attn.W_O"].tensor.double()
        ways = torch.einsum("hem,pm->phe", w_o, direction)
        z = seen[f"blocks.{layer}.attn.z"][:, -1]
        found.append(((z * ways).sum(-1) / scale[:, None]).T)
    yield "attribution", torch.stack(found) * model.family.residual_multiplier
    yield (
        "patched",
        torch.stack(
            [
                patched(
                    lambda prompt, edits: model.run(prompt, lambda *_: None, edits=edits),
                    told.objects,
                    layer,
                    seen[f"blocks.{layer}.attn.z"][0],
                    (int(told.right[1]), int(told.wrong[1])),
                )
                for layer in on.scope.layers
            ]
        ),
    )


def patched(
    run: Callable[[Prompt, Mapping[str, Callable[[torch.Tensor], torch.Tensor]]], torch.Tensor],
    objects: torch.Tensor,
    layer: int,
    clean: torch.Tensor,
    pair: tuple[int, int],
) -> torch.Tensor:
    """Logit difference of the second prompt [head], row h of a batch with head h of ``clean``.

    Args:
        run: a forward pass of a prompt with edits.
        clean: ``z`` of the first prompt in this layer, [pos, head, d_head].
        pair: the second prompt's right and wrong answer.
    """
    heads = clean.shape[1]

    def edit(z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        for head in range(heads):
            z[head, :, head] = clean[:, head]
        return z

    prompt = Prompt("objects", objects[1:2].repeat(heads, 1))
    logits = run(prompt, {f"blocks.{layer}.attn.z": edit})[:, -1]
    return logits[:, pair[0]] - logits[:, pair[1]]


def _sites(
    on: Apparatus, tokens: torch.Tensor, wanted: Callable[[str], bool]
) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str, value: torch.Tensor) -> None:
        if wanted(name):
            seen[name] = value.clone()

    on.model.run(Prompt("told", tokens), keep)
    return seen


EXPERIMENT = Heads()
