"""The twins: a real architecture each, shrunk; plain data, no torch.

Sizes are chosen so that a transposition shows (no two dimensions of a matrix equal where the
architecture allows it), grouped heads come in threes (so that tiling and repeating differ), a
sliding window is a fraction of the context, and flags that change the mathematics are on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checkpoints import catalogue_encoders, catalogue_multimodal, catalogue_seq2seq
from conformance.checkpoints.twin import Twin

if TYPE_CHECKING:
    from collections.abc import Mapping


_IDS = {"vocab_size": 113, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
#: Context length of every twin that has one.
N_CTX = 96
WINDOW = 12
_GQA = {
    **_IDS,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": N_CTX,
}
_HEAD = {**_GQA, "head_dim": 10}
_MHA = {**_IDS, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_MHA_CTX = {**_MHA, "max_position_embeddings": N_CTX}
_PYTHIA = {**_MHA_CTX, "hidden_size": 64, "intermediate_size": 80, "rotary_pct": 0.25}
_GPT = {**_IDS, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": N_CTX}
_EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}
#: As published: yarn where attention is full, plain rotary positions where it slides.
_OLMO3 = {
    "num_hidden_layers": 4,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
        "full_attention": {
            "rope_type": "yarn",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "original_max_position_embeddings": N_CTX // 8,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "attention_factor": 1.2079441541679836,
        },
    },
}
#: Grouped as published, where the config class is not by default.
_GROUPED = {"num_attention_heads": 6, "num_key_value_heads": 2}
_SIX_HEADS = {"num_attention_heads": 6, "num_key_value_heads": 6}
_GROUPS = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2}
_DEEPSEEK_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 32,
}
_FALCON = {
    **_IDS,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": N_CTX,
    "bias": False,
    "alibi": False,
}

_MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 12, "mamba_n_groups": 2}
_DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 7,
    "linear_value_head_dim": 9,
}
_LINEAR_LAYERS = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
#: Half of a head of ten is odd: a head of sixteen, a quarter of which is rotated.
_PARTIAL_ROPE = {
    "head_dim": 16,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
    },
}

TWINS: Mapping[str, Twin] = {
    "gpt2": Twin("GPT2LMHeadModel", "gpt2", {**_GPT, "n_ctx": N_CTX}),
    # Stanford's GPT-2s: the scale of layer l is divided by l + 1.
    "gpt2-scaled-by-layer": Twin(
        "GPT2LMHeadModel",
        "gpt2",
        {
            **_GPT,
            "n_ctx": N_CTX,
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
        },
    ),
    "llama": Twin("LlamaForCausalLM", "llama", {**_GQA, "rms_norm_eps": 1e-5}),
    # Llama 1 and 2 below 70B: one key and value per query head.
    "llama-2": Twin(
        "LlamaForCausalLM", "llama", {**_GQA, "num_key_value_heads": 6, "rms_norm_eps": 1e-5}
    ),
    "llama3-rope": Twin(
        "LlamaForCausalLM",
        "llama",
        {
            **_GQA,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    # Llama 3.2 and its constants as published, which HookedTransformer has built in; tied.
    "llama-3.2": Twin(
        "LlamaForCausalLM",
        "llama",
        {
            **_GQA,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "llama-linear-rope": Twin(
        "LlamaForCausalLM",
        "llama",
        {
            **_GQA,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
    "llama-yarn-rope": Twin(
        "LlamaForCausalLM",
        "llama",
        {
            **_GQA,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 24,
            },
        },
    ),
    "llama-bias": Twin(
        "LlamaForCausalLM",
        "llama",
        {**_GQA, "rms_norm_eps": 1e-5, "attention_bias": True, "mlp_bias": True},
    ),
    "mistral": Twin("MistralForCausalLM", "mistral", {**_HEAD, "sliding_window": WINDOW}),
    # Mistral since 0.3, Nemo and Small: no window.
    "mistral-nemo": Twin(
        "MistralForCausalLM",
        "mistral",
        {
            **_HEAD,
            "sliding_window": None,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "mixtral": Twin("MixtralForCausalLM", "mixtral", {**_GQA, **_EXPERTS}),
    "qwen2": Twin("Qwen2ForCausalLM", "qwen2", dict(_GQA)),
    "qwen2-tied": Twin("Qwen2ForCausalLM", "qwen2", {**_GQA, "tie_word_embeddings": True}),
    # Qwen1.5 up to 14B: one key and value per query head.
    "qwen1.5": Twin("Qwen2ForCausalLM", "qwen2", {**_GQA, "num_key_value_heads": 6}),
    "qwen1.5-tied": Twin(
        "Qwen2ForCausalLM",
        "qwen2",
        {**_GQA, "num_key_value_heads": 6, "tie_word_embeddings": True},
    ),
    "qwen2-moe": Twin(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        {
            **_GQA,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 28,
            "shared_expert_intermediate_size": 36,
            "norm_topk_prob": False,
        },
    ),
    "granite": Twin(
        "GraniteForCausalLM",
        "granite",
        {
            **_GQA,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.21,
            "logits_scaling": 8.0,
        },
    ),
    "qwen3": Twin("Qwen3ForCausalLM", "qwen3", dict(_HEAD)),
    "qwen3-tied": Twin("Qwen3ForCausalLM", "qwen3", {**_HEAD, "tie_word_embeddings": True}),
    "qwen3-moe": Twin(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        {
            **_HEAD,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 28,
            "decoder_sparse_step": 1,
            "norm_topk_prob": True,
        },
    ),
    "gemma": Twin("GemmaForCausalLM", "gemma", dict(_HEAD)),
    # Gemma 2B has one key and value for all heads, 7B one for each.
    "gemma-2b": Twin("GemmaForCausalLM", "gemma", {**_HEAD, "num_key_value_heads": 1}),
    "gemma-7b": Twin("GemmaForCausalLM", "gemma", {**_HEAD, "num_key_value_heads": 6}),
    "gemma2": Twin(
        "Gemma2ForCausalLM",
        "gemma2",
        {
            **_HEAD,
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 14,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": Twin(
        "Gemma3ForCausalLM",
        "gemma3_text",
        {
            **_HEAD,
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 14,
            "layer_types": [
                "sliding_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
            ],
        },
    ),
    # HookedTransformer hard-codes the constants of the official Gemma 2 and 3 checkpoints; only a
    # twin that carries them can show its port right or wrong.
    "gemma2-official": Twin(
        "Gemma2ForCausalLM",
        "gemma2",
        {
            **_HEAD,
            "num_hidden_layers": 4,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    # Gemma 2 27B scales attention by d_model / heads instead of the size of a head.
    "gemma2-27b": Twin(
        "Gemma2ForCausalLM",
        "gemma2",
        {
            **_HEAD,
            "num_hidden_layers": 4,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 144,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3-official": Twin(
        "Gemma3ForCausalLM",
        "gemma3_text",
        {
            **_HEAD,
            "num_hidden_layers": 7,
            "max_position_embeddings": 640,
            "sliding_window": 512,
            "query_pre_attn_scalar": 10,
        },
    ),
    # Gemma 3 270M and 1B: one key and value for all heads.
    "gemma3-1b": Twin(
        "Gemma3ForCausalLM",
        "gemma3_text",
        {
            **_HEAD,
            "num_key_value_heads": 1,
            "num_hidden_layers": 7,
            "max_position_embeddings": 640,
            "sliding_window": 512,
            "query_pre_attn_scalar": 10,
        },
        {"q_norm.weight": 2.0},
    ),
    # MedGemma 27B: queries scaled by d_model / heads, positions of full attention by 1/8.
    "gemma3-27b": Twin(
        "Gemma3ForCausalLM",
        "gemma3_text",
        {
            **_HEAD,
            "num_key_value_heads": 3,
            "num_hidden_layers": 7,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 8,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            },
        },
    ),
    "gpt-neox": Twin(
        "GPTNeoXForCausalLM", "gpt_neox", {**_MHA_CTX, "intermediate_size": 80, "rotary_pct": 0.5}
    ),
    # Pythia and the first StableLM rotate a quarter of each head; 20B has another gelu besides.
    "pythia": Twin("GPTNeoXForCausalLM", "gpt_neox", {**_PYTHIA, "hidden_act": "gelu"}),
    "gpt-neox-20b": Twin("GPTNeoXForCausalLM", "gpt_neox", {**_PYTHIA, "hidden_act": "gelu_fast"}),
    "gpt-neo": Twin(
        "GPTNeoForCausalLM",
        "gpt_neo",
        {
            **_IDS,
            "hidden_size": 48,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": WINDOW,
            "max_position_embeddings": N_CTX,
        },
    ),
    "gptj": Twin("GPTJForCausalLM", "gptj", {**_GPT, "rotary_dim": 6}),
    "opt": Twin("OPTForCausalLM", "opt", {**_MHA_CTX, "ffn_dim": 80, "word_embed_proj_dim": 48}),
    "bloom": Twin(
        "BloomForCausalLM", "bloom", {**_IDS, "hidden_size": 48, "n_layer": 3, "n_head": 8}
    ),
    # ALiBi's slopes are a rule of their own where heads are no power of two (as in Bloom 560m's
    # larger relatives: 176B has 112).
    "bloom-six-heads": Twin(
        "BloomForCausalLM", "bloom", {**_IDS, "hidden_size": 48, "n_layer": 3, "n_head": 6}
    ),
    # Published without its head, which is the embedding.
    "bloom-headless": Twin(
        "BloomModel", "bloom", {**_IDS, "hidden_size": 48, "n_layer": 3, "n_head": 8}
    ),
    "falcon-7b": Twin(
        "FalconForCausalLM",
        "falcon",
        {
            **_FALCON,
            "new_decoder_architecture": False,
            "multi_query": True,
            "parallel_attn": True,
        },
    ),
    "falcon-40b": Twin(
        "FalconForCausalLM",
        "falcon",
        {
            **_FALCON,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "multi_query": False,
            "parallel_attn": True,
        },
    ),
    # Falcon-RW: alibi, biases, one key and value per query head, attention before the MLP.
    "falcon-rw": Twin(
        "FalconForCausalLM",
        "falcon",
        {
            **_FALCON,
            "num_attention_heads": 8,
            "bias": True,
            "alibi": True,
            "new_decoder_architecture": False,
            "multi_query": False,
            "parallel_attn": False,
        },
    ),
    # Falcon-40B and 180B with their flags as published: the new architecture ignores multi_query.
    "falcon-180b": Twin(
        "FalconForCausalLM",
        "falcon",
        {
            **_FALCON,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "multi_query": True,
            "parallel_attn": True,
        },
    ),
    # Falcon2-11B: the new architecture with one norm, its other flags as published.
    "falcon-11b": Twin(
        "FalconForCausalLM",
        "falcon",
        {
            **_FALCON,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 1,
            "multi_query": True,
            "parallel_attn": True,
        },
    ),
    "mpt": Twin(
        "MptForCausalLM",
        "mpt",
        {**_IDS, "d_model": 48, "n_heads": 4, "n_layers": 3, "max_seq_len": N_CTX},
    ),
    "phi": Twin(
        "PhiForCausalLM", "phi", {**_MHA_CTX, "intermediate_size": 80, "partial_rotary_factor": 0.5}
    ),
    # Phi-2 rotates 32 of the 80 dimensions of a head.
    "phi-2": Twin(
        "PhiForCausalLM",
        "phi",
        {
            **_MHA_CTX,
            "hidden_size": 60,
            "num_attention_heads": 6,
            "intermediate_size": 80,
            "partial_rotary_factor": 0.4,
        },
    ),
    "phi3": Twin("Phi3ForCausalLM", "phi3", dict(_GQA)),
    # Phi-3 mini: one key and value per query head, and a window.
    "phi3-mini": Twin(
        "Phi3ForCausalLM", "phi3", {**_GQA, "num_key_value_heads": 6, "sliding_window": WINDOW}
    ),
    "olmo": Twin(
        "OlmoForCausalLM",
        "olmo",
        {**_GQA, "num_key_value_heads": 6, "clip_qkv": 1.5, "rope_theta": 10000.0},
    ),
    # OLMo 1B and 7B of 2024-02: nothing is clipped; 1B is tied.
    "olmo-7b": Twin("OlmoForCausalLM", "olmo", {**_GQA, "num_key_value_heads": 6}),
    "olmo-1b": Twin(
        "OlmoForCausalLM", "olmo", {**_GQA, "num_key_value_heads": 6, "tie_word_embeddings": True}
    ),
    "olmo2": Twin(
        "Olmo2ForCausalLM",
        "olmo2",
        {
            **_GQA,
            "num_key_value_heads": 6,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ),
    "gpt-oss": Twin(
        "GptOssForCausalLM",
        "gpt_oss",
        {
            **_HEAD,
            **_EXPERTS,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 3,
            },
        },
        # Pre-activations of the experts must pass the limit of 7 that clamps them.
        {"gate_up_proj": 2.5, "sinks": 3.0},
    ),
    "stablelm": Twin(
        "StableLmForCausalLM",
        "stablelm",
        {**_GQA, "partial_rotary_factor": 0.5, "use_qkv_bias": True},
    ),
    "cohere": Twin("CohereForCausalLM", "cohere", {**_GQA, "logit_scale": 0.25}),
    "smollm3": Twin("SmolLM3ForCausalLM", "smollm3", {"no_rope_layer_interval": 2}),
    "mamba": Twin("MambaForCausalLM", "mamba", {"intermediate_size": 96}, {"mixer.D": 12.0}),
    "jamba": Twin(
        "JambaForCausalLM",
        "jamba",
        {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    # --- more dense decoders
    "arcee": Twin("ArceeForCausalLM", "arcee", _GROUPED),
    "nemotron": Twin("NemotronForCausalLM", "nemotron", {**_GROUPED, "head_dim": 12}),
    "jais2": Twin("Jais2ForCausalLM", "jais2"),
    "starcoder2": Twin("Starcoder2ForCausalLM", "starcoder2", {"sliding_window": WINDOW}),
    "seed-oss": Twin("SeedOssForCausalLM", "seed_oss"),
    "ernie4_5": Twin("Ernie4_5ForCausalLM", "ernie4_5"),
    "ministral3": Twin("Ministral3ForCausalLM", "ministral3", {"head_dim": 10}),
    "glm": Twin("GlmForCausalLM", "glm", {"head_dim": 12}),
    "glm4": Twin("Glm4ForCausalLM", "glm4", {"head_dim": 12}),
    # Olmo 3 32B, and 7B, in which every query head has its own key and value head.
    "olmo3": Twin("Olmo3ForCausalLM", "olmo3", {**_OLMO3, **_GROUPED}),
    "olmo3-7b": Twin("Olmo3ForCausalLM", "olmo3", _OLMO3),
    "vaultgemma": Twin(
        "VaultGemmaForCausalLM",
        "vaultgemma",
        {
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 14,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "apertus": Twin("ApertusForCausalLM", "apertus", _GROUPED, {"act_fn.eps": 0.0}),
    "gpt-bigcode": Twin("GPTBigCodeForCausalLM", "gpt_bigcode", {"n_head": 6}),
    # Quarters of the heads are stored together: two heads in each.
    "codegen": Twin("CodeGenForCausalLM", "codegen", {"n_head": 8, "rotary_dim": 4}),
    "hunyuan": Twin(
        "HunYuanDenseV1ForCausalLM",
        "hunyuan_v1_dense",
        {
            **_GROUPED,
            "head_dim": 10,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "alpha": 1000.0,
                "factor": 1.0,
            },
        },
    ),
    "nanochat": Twin("NanoChatForCausalLM", "nanochat", _GROUPED),
    "bitnet": Twin("BitNetForCausalLM", "bitnet"),
    "xglm": Twin("XGLMForCausalLM", "xglm"),
    "modernbert-decoder": Twin("ModernBertDecoderForCausalLM", "modernbert-decoder"),
    "cohere2": Twin("Cohere2ForCausalLM", "cohere2", {**_GROUPED, "num_hidden_layers": 4}),
    "exaone4": Twin("Exaone4ForCausalLM", "exaone4", {**_GROUPED, "num_hidden_layers": 4}),
    # --- mixtures of experts
    "olmoe": Twin("OlmoeForCausalLM", "olmoe", {**_SIX_HEADS, "intermediate_size": 28}),
    "flex-olmo": Twin("FlexOlmoForCausalLM", "flex_olmo", {**_SIX_HEADS, "intermediate_size": 28}),
    "granite-moe": Twin(
        "GraniteMoeForCausalLM",
        "granitemoe",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "intermediate_size": 28,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.21,
            "logits_scaling": 6.0,
        },
    ),
    "ernie-4.5-moe": Twin(
        "Ernie4_5_MoeForCausalLM",
        "ernie4_5_moe",
        {},
        # Softmax scores of five experts are near 0.2: a larger bias would choose always the same.
        {"e_score_correction_bias": 0.15},
    ),
    # As GLM-4.5: norms of queries and keys, half of each head rotated, biases, scaled experts.
    "glm4-moe": Twin(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        {
            "num_hidden_layers": 4,
            "head_dim": 12,
            "use_qk_norm": True,
            "attention_bias": True,
            "routed_scaling_factor": 2.5,
            "n_routed_experts": 6,
            "num_nextn_predict_layers": 0,
        },
    ),
    "minimax-m2": Twin(
        "MiniMaxM2ForCausalLM", "minimax_m2", {"rotary_dim": 6, "intermediate_size": 28}
    ),
    # As Trinity: muP's scale of the embedding, scaled experts, two dense layers.
    "afmoe": Twin(
        "AfmoeForCausalLM",
        "afmoe",
        {
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "num_dense_layers": 2,
            "num_shared_experts": 1,
            "global_attn_every_n_layers": 2,
            "route_scale": 2.826,
            "mup_enabled": True,
        },
    ),
    "laguna": Twin(
        "LagunaForCausalLM",
        "laguna",
        {
            "num_hidden_layers": 4,
            "head_dim": 12,
            "layer_types": [
                "full_attention",
                "sliding_attention",
                "sliding_attention",
                "full_attention",
            ],
            "moe_routed_scaling_factor": 2.5,
        },
    ),
    # Attention's queries and outputs are mixtures of experts, too.
    "jetmoe": Twin(
        "JetMoeForCausalLM",
        "jetmoe",
        {"num_key_value_heads": 3, "kv_channels": 10, "intermediate_size": 28},
    ),
    # As Llama 4 Maverick (experts in every other layer) with Scout's norm of queries and keys.
    "llama4": Twin(
        "Llama4ForCausalLM",
        "llama4_text",
        {
            "num_hidden_layers": 4,
            "intermediate_size": 28,
            "intermediate_size_mlp": 80,
            "num_experts_per_tok": 1,
            "moe_layers": [1, 3],
            "no_rope_layers": [1, 0, 0, 1],
            "attention_chunk_size": 20,
            "floor_scale": 5,
        },
    ),
    # --- latent attention
    # With a padding token the row of it is made zero whenever the model is loaded (transformers 5).
    "youtu": Twin("YoutuForCausalLM", "youtu", {"pad_token_id": None}),
    # As DeepSeek-V2: the best of each group of experts counts, and shares are not renormalised.
    "deepseek-v2": Twin(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        {
            **_GROUPS,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 16.0,
            "first_k_dense_replace": 1,
            "num_experts_per_tok": 3,
            "rope_parameters": {**_DEEPSEEK_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    # DeepSeek-V2-Lite: queries without a latent of their own.
    "deepseek-v2-lite": Twin(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        {"q_lora_rank": None, "first_k_dense_replace": 1, "num_experts_per_tok": 2},
    ),
    # As DeepSeek-V3: groups of experts, a correction bias, yarn with its factor of the scores.
    "deepseek-v3": Twin(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        {
            **_GROUPS,
            "num_experts_per_tok": 3,
            "first_k_dense_replace": 1,
            "rope_parameters": _DEEPSEEK_YARN,
            "num_nextn_predict_layers": 0,
        },
    ),
    # As GLM-5: an indexer chooses the keys of each query; one layer uses the choice of another.
    # With few heads of the indexer many keys would score exactly zero, and the choice be a tie.
    "glm-moe-dsa": Twin(
        "GlmMoeDsaForCausalLM",
        "glm_moe_dsa",
        {
            "num_hidden_layers": 4,
            "n_routed_experts": 6,
            "first_k_dense_replace": 1,
            "index_topk": 9,
            "index_n_heads": 20,
            "index_head_dim": 14,
            "indexer_types": ["full", "full", "shared", "full"],
        },
    ),
    "glm4-moe-lite": Twin("Glm4MoeLiteForCausalLM", "glm4_moe_lite", {"n_routed_experts": 6}),
    # --- State-space models, linear attention and convolutions ---------------------------------
    "mamba2": Twin("Mamba2ForCausalLM", "mamba2", {"num_heads": 8, "head_dim": 12, "n_groups": 2}),
    "falcon-mamba": Twin("FalconMambaForCausalLM", "falcon_mamba", {"intermediate_size": 96}),
    "bamba": Twin(
        "BambaForCausalLM",
        "bamba",
        {**_MAMBA_HEADS, "num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
    ),
    "lfm2": Twin(
        "Lfm2ForCausalLM",
        "lfm2",
        {
            "num_hidden_layers": 4,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        },
    ),
    # As LFM2-8B-A1B: two dense layers before those of experts, a correction bias.
    "lfm2-moe": Twin(
        "Lfm2MoeForCausalLM",
        "lfm2_moe",
        {
            "num_hidden_layers": 5,
            "num_dense_layers": 2,
            "layer_types": ["conv", "full_attention", "conv", "full_attention", "conv"],
        },
    ),
    # Multipliers as in Falcon-H1-0.5B.
    "falcon-h1": Twin(
        "FalconH1ForCausalLM",
        "falcon_h1",
        {
            **_MAMBA_HEADS,
            "mamba_d_ssm": 96,
            "embedding_multiplier": 5.656854249492381,
            "lm_head_multiplier": 0.0390625,
            "mlp_multipliers": [0.8838834764831845, 0.5859375],
            "ssm_multipliers": [
                0.3535533905932738,
                0.25,
                0.3535533905932738,
                0.5,
                0.3535533905932738,
            ],
            "ssm_in_multiplier": 1.25,
            "ssm_out_multiplier": 0.23570226039551587,
            "attention_out_multiplier": 0.9375,
            "key_multiplier": 0.39062499999999994,
        },
    ),
    # No experts, as in Granite 4.0 H 350M, 1B and Micro.
    "granite-hybrid": Twin(
        "GraniteMoeHybridForCausalLM",
        "granitemoehybrid",
        {
            **_MAMBA_HEADS,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "num_hidden_layers": 4,
            "layer_types": [
                "linear_attention",
                "full_attention",
                "linear_attention",
                "full_attention",
            ],
            "position_embedding_type": "nope",
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.21,
            "logits_scaling": 8.0,
        },
    ),
    "nemotron-h": Twin(
        "NemotronHForCausalLM",
        "nemotron_h",
        {
            "mamba_num_heads": 8,
            "mamba_head_dim": 12,
            "n_groups": 2,
            "layers_block_type": [
                *("linear_attention", "mlp", "linear_attention", "full_attention"),
                *("mlp", "full_attention"),
            ],
        },
    ),
    "olmo-hybrid": Twin(
        "OlmoHybridForCausalLM",
        "olmo_hybrid",
        {
            **_DELTA_NET,
            "num_hidden_layers": 4,
            "layer_types": _LINEAR_LAYERS,
            "linear_num_value_heads": 2,
        },
    ),
    "qwen3-next": Twin(
        "Qwen3NextForCausalLM",
        "qwen3_next",
        {**_DELTA_NET, "num_hidden_layers": 4, "layer_types": _LINEAR_LAYERS, **_PARTIAL_ROPE},
    ),
    "qwen3.5": Twin(
        "Qwen3_5ForCausalLM",
        "qwen3_5_text",
        {**_DELTA_NET, "num_hidden_layers": 4, "layer_types": _LINEAR_LAYERS, **_PARTIAL_ROPE},
    ),
    "qwen3.5-moe": Twin(
        "Qwen3_5MoeForCausalLM",
        "qwen3_5_moe_text",
        {**_DELTA_NET, "num_hidden_layers": 4, "layer_types": _LINEAR_LAYERS, **_PARTIAL_ROPE},
    ),
    **catalogue_encoders.TWINS,
    **catalogue_multimodal.TWINS,
    **catalogue_seq2seq.TWINS,
}
