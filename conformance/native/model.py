"""The reference for models of TransformerLens's own format, from their papers.

A transformer with norms before attention and MLP (Radford et al. 2019, the GPT-2 paper), with
these variants:

- *attention-only*: blocks without an MLP (Elhage et al. 2021, "A Mathematical Framework for
  Transformer Circuits");
- *shortformer*: positions are added to what queries and keys are made of in every layer, and not
  to the stream (Press, Smith and Lewis 2021, "Shortformer", section 4);
- *SoLU*: ``x * softmax(x)`` over the neurons; *SoLU-LN*: and a LayerNorm of that (Elhage et al.
  2022, "Softmax Linear Units").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

from conformance.native.config import NativeConfig


def solu(x: torch.Tensor) -> torch.Tensor:
    """Softmax Linear Units of [..., d_mlp] (Elhage et al. 2022)."""
    return x * x.softmax(dim=-1)


def norm(config: NativeConfig, size: int | None = None) -> nn.Module:
    """A LayerNorm (Ba et al. 2016) over ``d_model`` entries, or what stands in its place.

    Args:
        size: over so many neurons instead, where there is always one.
    """
    if size is None and config.normalization is None:
        return nn.Identity()
    weights = config.normalization == "LN"
    return nn.LayerNorm(size or config.d_model, eps=config.eps, elementwise_affine=weights)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: NativeConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        width = config.n_heads * config.d_head
        self.q = nn.Linear(config.d_model, width)
        self.k = nn.Linear(config.d_model, width)
        self.v = nn.Linear(config.d_model, width)
        self.o = nn.Linear(width, config.d_model)

    def forward(
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor | None,
        mask: torch.Tensor | None,
        past: Cache | None,
    ) -> torch.Tensor:
        """[batch, pos, d_model].

        Args:
            positions: [batch, pos, d_model], added to what queries and keys are made of.
            mask: added to scores, [batch, 1, query, key].
            past: keys and values of tokens before these, which are added to it.
        """
        at = hidden_states if positions is None else hidden_states + positions
        q, k, v = (
            made.unflatten(-1, (self.config.n_heads, self.config.d_head)).transpose(1, 2)
            for made in (self.q(at), self.k(at), self.v(hidden_states))
        )
        if past is not None:
            k, v = past.update(k, v, self.layer)
        scale = self.config.d_head**-0.5
        if self.config._attn_implementation == "sdpa":
            alone = mask is None and q.shape[-2] > 1
            z = nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=alone, scale=scale
            )
        else:
            scores = torch.matmul(q, k.transpose(-1, -2)) * scale
            if mask is not None:
                scores = scores + mask
            z = torch.matmul(torch.softmax(scores, dim=-1), v)
        out: torch.Tensor = self.o(z.transpose(1, 2).flatten(-2))
        return out


class MLP(nn.Module):
    """Two projections and an activation between them."""

    def __init__(self, config: NativeConfig) -> None:
        super().__init__()
        self.fc_in = nn.Linear(config.d_model, config.d_mlp)
        self.fc_out = nn.Linear(config.d_mlp, config.d_model)
        self.act = solu if config.act_fn.startswith("solu") else ACT2FN[config.act_fn]
        self.ln = norm(config, config.d_mlp) if config.act_fn == "solu_ln" else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[batch, pos, d_model]."""
        neurons = self.act(self.fc_in(hidden_states))
        if self.ln is not None:
            neurons = self.ln(neurons)
        out: torch.Tensor = self.fc_out(neurons)
        return out


class Block(nn.Module):
    """Attention, and an MLP unless the model has none; both read a norm of the stream."""

    def __init__(self, config: NativeConfig, layer: int) -> None:
        super().__init__()
        self.ln1, self.attn = norm(config), Attention(config, layer)
        self.attn_only = config.attn_only
        if not config.attn_only:
            self.ln2, self.mlp = norm(config), MLP(config)

    def forward(self, hidden_states: torch.Tensor, *given: Any) -> torch.Tensor:
        """[batch, pos, d_model]; ``given`` is what :class:`Attention` is given besides."""
        hidden_states = hidden_states + self.attn(self.ln1(hidden_states), *given)
        if self.attn_only:
            return hidden_states
        out: torch.Tensor = hidden_states + self.mlp(self.ln2(hidden_states))
        return out


class TransformerLensNative(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # the same
    """A model of TransformerLens's own format, as a class of transformers."""

    config_class = NativeConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012 - transformers declares it so

    def __init__(self, config: NativeConfig) -> None:
        super().__init__(config)
        self.tok_embed = nn.Embedding(config.vocab_size, config.d_model)
        self.pos = nn.Embedding(config.n_ctx, config.d_model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.ln_out = norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=config.unembed_bias)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tok_embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [batch, pos, d_vocab].

        Args:
            input_ids: [batch, pos]; or ``inputs_embeds`` [batch, pos, d_model].
            attention_mask: [batch, pos of past and present], 0 at padding.
            position_ids: [batch, pos]; by default counted from the first token.
            logits_to_keep: give the last positions' only; 0 for all.

        Raises:
            ValueError: neither tokens nor embeddings.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("neither input_ids nor inputs_embeds is given")
            inputs_embeds = self.tok_embed(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            there = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
            position_ids = (there + seen)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        positions = self.pos(position_ids)
        short = self.config.positions == "shortformer"
        hidden_states = inputs_embeds if short else inputs_embeds + positions
        for block in self.layers:
            given = (positions if short else None, mask, past_key_values)
            hidden_states = block(hidden_states, *given)
        hidden_states = self.ln_out(hidden_states)
        logits = self.head(hidden_states[:, -logits_to_keep or None :])
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)
