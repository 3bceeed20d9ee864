"""Mixtures of experts, the plain way: one token and one expert at a time, from the weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

Weights = dict[str, torch.Tensor]

#: Config classes whose routers score each expert by itself.
_SIGMOID = (
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "minimax_m2",
    "deepseek_v3",
    "afmoe",
    "laguna",
    "llama4_text",
    "lfm2_moe",
)
#: Config classes whose routers never renormalise, whatever the config says.
_NEVER_NORMALISED = ("deepseek_v2", "jamba", "llama4_text", "switch_transformers")
#: What is added to the sum of shares before they are divided by it.
_FLOORS = {"lfm2_moe": 1e-6}
#: Config classes whose experts read their share of the input.
_ON_INPUT = ("llama4_text",)
#: Where the bias is stored that is added to scores only to choose.
_CORRECTIONS = ("e_score_correction_bias", "expert_bias")


def mixture(x: torch.Tensor, logits: torch.Tensor, w: Weights, config: Any) -> torch.Tensor:
    """What a block's experts, and those that every token uses, make of ``x`` [token, d_model].

    Args:
        logits: the router's, [token, expert].
        w: the block's weights without ``blocks.{l}.mlp.``.
    """
    out, uses = torch.zeros_like(x), Counter[int]()
    for token in range(x.shape[0]):
        for expert, share in chosen(logits[token], w, config).items():
            uses[expert] += 1
            if uses[expert] > getattr(config, "expert_capacity", len(x)):
                continue
            own = {n.split(".")[-1]: t for n, t in w.items() if n.startswith(f"experts.{expert}.")}
            if config.model_type in _ON_INPUT:
                out[token] += _expert(share * x[token], own, config)
            else:
                out[token] += share * _expert(x[token], own, config)
    out += w.get("bias", 0)
    if "shared.W_in" in w:
        hidden = torch.nn.functional.silu(x @ w["shared.W_gate"]) * (x @ w["shared.W_in"])
        added = hidden @ w["shared.W_out"]
        out += torch.sigmoid(x @ w["W_shared"]) * added if "W_shared" in w else added
    return out


def beside_an_mlp(
    x: torch.Tensor, dense: torch.Tensor, w: Weights, config: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gemma 4's router's logits [token, expert], and what experts and an MLP make together.

    Args:
        x: what the block's second norm reads too, [token, d_model].
        dense: what the MLP returns, [token, d_model].
        w: the block's weights, the MLP's and the experts' without ``mlp.``.
    """

    def normed(value: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
        return (
            value * (value.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * weight
        )

    scaled = normed(x) * w["router.scale"] * x.shape[-1] ** -0.5
    logits = scaled @ w["W_router"]
    read = normed(x, w["pre_feedforward_layernorm_2.weight"])
    out = torch.zeros_like(x)
    for token in range(x.shape[0]):
        for expert, share in chosen(logits[token], w, config).items():
            own = {n.split(".")[-1]: t for n, t in w.items() if n.startswith(f"experts.{expert}.")}
            scale = w["router.per_expert_scale"][expert]
            out[token] += share * scale * _expert(read[token], own, config)
    both = normed(dense, w["post_feedforward_layernorm_1.weight"])
    both = both + normed(out, w["post_feedforward_layernorm_2.weight"])
    return logits, normed(both, w["ln2_post.w"])


def correction(w: Weights) -> torch.Tensor | None:
    """The bias [expert] that is added to scores only to choose, where a mixture has one."""
    return next((t.flatten() for n, t in w.items() if n.endswith(_CORRECTIONS)), None)


def scored(logits: torch.Tensor, w: Weights, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """One token's scores of experts, and what they are chosen by, from the logits [expert]."""
    scores = logits.sigmoid() if config.model_type in _SIGMOID else logits.softmax(-1)
    if config.model_type == "llama4_text":
        return scores, logits
    bias = correction(w)
    return scores, _within_groups(scores if bias is None else scores + bias, config)


def chosen(logits: torch.Tensor, w: Weights, config: Any) -> dict[int, torch.Tensor]:
    """One token's experts and their shares, from the router's logits [expert]."""
    kind = config.model_type
    scores, choice = scored(logits, w, config)
    experts = choice.topk(per_token(config)).indices
    shares = scores[experts]
    if getattr(config, "norm_topk_prob", True) and kind not in _NEVER_NORMALISED:
        shares = shares / (shares.sum() + _FLOORS.get(kind, 0.0))
    factors = ("routed_scaling_factor", "moe_routed_scaling_factor", "route_scale")
    shares = shares * next((f for n in factors if (f := getattr(config, n, None)) is not None), 1.0)
    return dict(zip(experts.tolist(), shares, strict=True))


def per_token(config: Any) -> int:
    """How many experts a token uses: one where the config does not say (Switch Transformers)."""
    return int(getattr(config, "num_experts_per_tok", getattr(config, "top_k_experts", 1)))


def _within_groups(choice: torch.Tensor, config: Any) -> torch.Tensor:
    """Only experts of the best groups can be chosen."""
    groups = getattr(config, "n_group", None) or 1
    if groups == 1:
        return choice
    grouped = choice.unflatten(0, (groups, -1))
    # DeepSeek-V2 ranks a group by its best expert, its successors by the sum of its best two.
    best = (
        grouped.amax(-1) if config.model_type == "deepseek_v2" else grouped.topk(2).values.sum(-1)
    )
    kept = torch.zeros_like(best).scatter(0, best.topk(config.topk_group).indices, 1.0)
    return grouped.masked_fill(kept[:, None] == 0, float("-inf")).flatten()


def _expert(x: torch.Tensor, w: Weights, config: Any) -> torch.Tensor:
    if config.model_type == "switch_transformers":
        return (x @ w["W_in"]).relu() @ w["W_out"]
    gate = x @ w["W_gate"] + w.get("b_gate", 0)
    up = x @ w["W_in"] + w.get("b_in", 0)
    if config.model_type == "gpt_oss":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        hidden = gate * torch.sigmoid(1.702 * gate) * (up + 1)
    elif config.model_type == "gemma4_text":
        hidden = torch.nn.functional.gelu(gate, approximate="tanh") * up
    else:
        hidden = torch.nn.functional.silu(gate) * up
    return hidden @ w["W_out"] + w.get("b_out", 0)
