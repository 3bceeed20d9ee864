"""Loading a Youtu checkpoint makes the embedding of the padding token zero.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version

import torch
import transformers


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformers", version("transformers"))
    config = transformers.YoutuConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=12,
        kv_lora_rank=14,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=9,
        max_position_embeddings=64,
        pad_token_id=3,
    )
    torch.manual_seed(0)
    model = transformers.YoutuForCausalLM(config).eval()
    with torch.no_grad():
        torch.nn.init.normal_(model.model.embed_tokens.weight)
        stored = model.model.embed_tokens.weight.clone()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = transformers.YoutuForCausalLM.from_pretrained(folder).model.embed_tokens.weight
    differ = (again != stored).any(-1).nonzero().flatten().tolist()
    largest = float(stored[3].abs().max()), float(again[3].abs().max())
    print(f"rows of the embedding that differ after saving and loading: {differ}")
    print(f"largest entry of row 3: {largest[0]:.2f} saved, {largest[1]:.2f} loaded")
    return 0 if differ == [3] and largest[1] == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
