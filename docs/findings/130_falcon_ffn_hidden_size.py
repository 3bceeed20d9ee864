"""TransformerBridge: Falcon's ffn_hidden_size is not read; labels of neurons are wrong.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version

import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

TOKENS = torch.arange(3, 11)[None]
CONFIG = transformers.FalconConfig(
    vocab_size=50,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    ffn_hidden_size=80,
    bos_token_id=0,
    eos_token_id=0,
)


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
    torch.manual_seed(0)
    CONFIG.architectures = ["FalconForCausalLM"]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        transformers.FalconForCausalLM(CONFIG).save_pretrained(folder)
        words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<s>"
        ).save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
        _, cache = bridge.run_with_cache(TOKENS)
        results, labels = cache.stack_neuron_results(-1, return_labels=True)
    width = bridge.blocks[0].mlp.W_in.shape[1]
    print(f"neurons in a layer: {width}, cfg.d_mlp: {bridge.cfg.d_mlp}")
    print(f"stack_neuron_results: {len(results)} results, {len(labels)} labels")
    return 0 if bridge.cfg.d_mlp != width and len(labels) != len(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
