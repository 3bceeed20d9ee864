"""What a HuggingFace config says about the formulas of its architecture.

Sources: the modelling files of ``transformers``. A fact that is wrong here does no harm but to
leave a cause unnamed: a formula that does not reproduce the reference is not believed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.families import Dims, Family


def first(config: Any, *names: str, default: Any = None) -> Any:
    """The first of these settings that the config has and that is not None."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    return default


# --- norms ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Norm:
    """y = offset w + w x' + b, with x' centred or not, over sqrt(mean x'^2 + eps).

    Attributes:
        eps: added to the variance.
        centred: LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019).
        offset: 1 where the weight is stored less one (Gemma), else 0.
    """

    eps: float
    centred: bool
    offset: float

    def __call__(
        self, x: torch.Tensor, w: torch.Tensor | None = None, b: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Over the last dimension of ``x``."""
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        y = x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()
        if w is not None:
            y = y * (self.offset + w)
        return y if b is None else y + b


#: Architectures whose config calls the epsilon of their RMSNorm that of a LayerNorm.
_RMS_UNSAID = frozenset(
    [f"{name}ForCausalLM" for name in ("Mamba", "Mamba2", "FalconMamba", "NemotronH")]
    + [f"{name}ForConditionalGeneration" for name in ("T5", "MT5", "LongT5", "SwitchTransformers")]
)


#: Architectures whose ``norm_eps`` is that of LayerNorms; in others it is an RMSNorm's.
_LAYER_NORMS = ("ModernBertDecoderForCausalLM", "NemotronForCausalLM")


def norm(config: Any, fam: Family) -> Norm:
    """The norms of a model: all of one kind in every architecture described."""
    plain = () if fam.architecture in _LAYER_NORMS else ("norm_eps",)
    eps = first(config, "rms_norm_eps", *plain)
    if fam.architecture in _RMS_UNSAID:
        eps = config.layer_norm_epsilon
    centred = eps is None
    if centred:
        # OPT and OLMo state none: torch's own default.
        names = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", "eps")
        eps = first(config, *names, default=1e-5)
    return Norm(float(eps), centred, 1.0 if fam.norm_offset else 0.0)


# --- activations ------------------------------------------------------------------------------


def _tanh_gelu(root: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: 0.5 * x * (1 + torch.tanh(root * (x + 0.044715 * x**3)))


#: Differs from gelu_tanh by 4e-12: tried where that does not fit.
TEN_DIGITS = "gelu_tanh with sqrt(2/pi) = 0.7978845608"

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": _tanh_gelu(math.sqrt(2 / math.pi)),
    # Bloom and others write sqrt(2 / pi) with eight or ten digits.
    "gelu_tanh with sqrt(2/pi) = 0.79788456": _tanh_gelu(0.79788456),
    TEN_DIGITS: _tanh_gelu(0.7978845608),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.relu,
    "relu squared": lambda x: torch.relu(x).square(),
    "relu6": lambda x: x.clamp(0, 6),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "mish": lambda x: x * torch.tanh(torch.log1p(torch.exp(-x.abs())) + x.clamp_min(0)),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "solu": lambda x: x * torch.softmax(x, dim=-1),  # over the neurons
    "no activation": lambda x: x,
}

_ALIASES = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": TEN_DIGITS,
    "swish": "silu",
    "relu2": "relu squared",
    "gelu_quick": "quick_gelu",
    "gelu_python": "gelu",
    "solu_ln": "solu",  # the norm after it is another matter
}

#: Architectures that state no activation: it is in the modelling file.
_UNSTATED = {
    "BloomForCausalLM": "gelu_tanh with sqrt(2/pi) = 0.79788456",
    "MptForCausalLM": "gelu",
    "Lfm2ForCausalLM": "silu",
}


def activation(config: Any, fam: Family) -> str:
    """Name of the MLP's activation, a key of :data:`ACTIVATIONS`.

    Raises:
        KeyError: it is none of them.
    """
    found = _UNSTATED.get(fam.architecture)
    if found is None:
        names = (
            *("mlp_hidden_act", "hidden_activation", "hidden_act"),
            *("activation_function", "activation", "act_fn"),
        )
        stated = first(config, *names, default="")
        found = _ALIASES.get(stated, stated)
    if found not in ACTIVATIONS:
        raise KeyError(f"no formula of activation {found!r}")
    return found


# --- attention --------------------------------------------------------------------------------


def attention_scale(config: Any, fam: Family, d: Dims, layer: int) -> tuple[float, str]:
    """What products of queries and keys are multiplied by, and how that is written."""
    scalar = first(config, "query_pre_attn_scalar")
    if scalar is not None:
        return float(scalar) ** -0.5, f"1/sqrt(query_pre_attn_scalar = {scalar})"
    if fam.unscaled:
        return 1.0, "1: products are not scaled"
    if fam.relative:
        return 1.0, "1: products are not scaled, the initial weights are"
    if fam.architecture == "GPTNeoForCausalLM" or getattr(config, "scale_attn_weights", True) in (
        False,
    ):
        return 1.0, "1: products are not scaled"
    inner = getattr(config, "attn_config", None)
    stated = first(inner, "softmax_scale") if inner is not None else None
    if stated is not None:
        return float(stated), f"softmax_scale = {stated}"
    stated = first(config, "attention_multiplier")
    if stated is not None:
        return float(stated), f"attention_multiplier = {stated}"
    if fam.kv_latent and (factor := _yarn_factor(config)) != 1.0:
        return factor * d.d_head**-0.5, f"{factor:.4f}/sqrt({d.d_head}): yarn's mscale_all_dim"
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        return d.d_head**-0.5 / (layer + 1), "1/sqrt(d_head)/(layer + 1)"
    return d.d_head**-0.5, f"1/sqrt({d.d_head})"


def temperature(config: Any, fam: Family) -> tuple[float, float] | None:
    """How Llama 4 sharpens attention of layers without rotation: tokens a step, and the slope."""
    if fam.rotary or not first(config, "attn_temperature_tuning"):
        return None
    return float(config.floor_scale), float(config.attn_scale)


def _yarn_factor(config: Any) -> float:
    """What DeepSeek multiplies scores by where its rotary embedding is scaled."""
    rope = first(config, "rope_parameters", default={})
    dims, factor = rope.get("mscale_all_dim", 0), rope.get("factor", 1.0)
    if not dims or factor <= 1 or rope.get("rope_type") == "default":
        return 1.0
    return float((0.1 * dims * math.log(factor) + 1.0) ** 2)


def logit_scale(config: Any) -> tuple[float, str]:
    """What logits are multiplied by, and how the config says so."""
    stated = first(config, "logits_scaling")
    if stated is not None:
        return 1 / float(stated), f"logits_scaling = {stated}"
    stated = first(config, "lm_head_multiplier")
    if stated is not None:
        return float(stated), f"lm_head_multiplier = {stated}"
    stated = first(config, "output_multiplier")
    if stated is not None:
        return float(stated), f"output_multiplier = {stated}"
    stated = first(config, "logit_scale")
    return (1.0, "") if stated is None else (float(stated), f"logit_scale = {stated}")


def readout_scale(config: Any) -> float:
    """What the unembedding's input is multiplied by, after the final norm: T5's, where it is tied
    (its first checkpoints; ``config`` is transformers 5's)."""
    scaled = bool(getattr(config, "scale_decoder_outputs", False))
    return float(config.d_model) ** -0.5 if scaled else 1.0


def clip(config: Any) -> float | None:
    """Queries, keys and values are clamped to plus and minus this."""
    inner = getattr(config, "attn_config", None)
    found = first(config, "clip_qkv")
    if found is None and inner is not None:
        found = first(inner, "clip_qkv")
    return None if found is None else float(found)


@dataclass(frozen=True)
class Buckets:
    """T5's relative positions (Raffel et al. 2020, section 2.1): distances in buckets.

    Attributes:
        count: of buckets.
        furthest: the distance from which on all are in the last one.
        both_ways: half of the buckets are those of later keys, which else are in the first.
        table: the weight [bucket, head] that is looked up.
    """

    count: int
    furthest: int
    both_ways: bool
    table: str

    def of(self, ahead: torch.Tensor) -> torch.Tensor:
        """The buckets of keys so many tokens ahead of their query (integers of any shape).

        Half of them are single distances, the others grow in proportion to the distance.
        """
        count, start = self.count, torch.zeros_like(ahead)
        if self.both_ways:
            count //= 2
            start = (ahead > 0) * count
        away = ahead.abs() if self.both_ways else (-ahead).clamp_min(0)
        single = count // 2
        part = (away.clamp_min(1).double() / single).log() / math.log(self.furthest / single)
        grown = single + (part * (count - single)).long()
        return start + torch.where(away < single, away, grown.clamp_max(count - 1))


def buckets(config: Any, fam: Family, layer: int) -> Buckets | None:
    """The relative positions of a layer, or None if positions enter otherwise.

    Args:
        fam: the whole model's.
    """
    own = fam.of(layer)
    if own.relative is None:
        return None
    first = 0 if layer < fam.encoder else fam.encoder
    return Buckets(
        int(config.relative_attention_num_buckets),
        int(config.relative_attention_max_distance),
        not own.causal,
        f"blocks.{first}.{own.relative}.weight",
    )


def slopes(config: Any, fam: Family, d: Dims) -> torch.Tensor | None:
    """Alibi slopes [head] (Press et al. 2022), or None if positions enter otherwise."""
    if not fam.alibi:
        return None
    n = d.n_heads
    if fam.architecture == "MptForCausalLM":
        bias_max = float(first(config.attn_config, "alibi_bias_max", default=8))
        power = 2 ** math.ceil(math.log2(n))
        found = [2.0 ** (-bias_max * (i + 1) / power) for i in range(power)]
        if power != n:
            found = (found[1::2] + found[::2])[:n]
        return torch.tensor(found, dtype=torch.float64)
    power = 2 ** math.floor(math.log2(n))
    found = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    if power != n:
        found += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(n - power)]
    slopes = torch.tensor(found[:n], dtype=torch.float64)
    if fam.architecture == "FalconForCausalLM":
        # Before scores are scaled; and in eager attention twice: with the mask, and by itself
        # (modeling_falcon.py of transformers 5.23).
        return slopes * 2 * d.d_head**-0.5
    return slopes
