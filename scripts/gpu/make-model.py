"""Writes a checkpoint with the exact shape of a published model and seeded random weights: for time, and for comparing logits.

    python3 make-model.py llama-3.1-8b /dev/shm/8b

Needs torch, safetensors and a GPU's memory for one tensor at a time. The folder has no tokenizer: the engine then takes token ids alone.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPES = {
    "llama-3.2-1b": dict(layers=16, hidden=2048, heads=32, kv_heads=8, head_dim=64, ffn=8192, vocabulary=128256, tied=True),
    "llama-3.1-8b": dict(layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocabulary=128256, tied=False),
    "llama-3.1-8b-4-layers": dict(layers=4, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocabulary=128256, tied=False),
}


def main(name: str, folder: str) -> None:
    shape = SHAPES[name]
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    hidden, ffn, head_dim = shape["hidden"], shape["ffn"], shape["head_dim"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": head_dim,
        "vocab_size": shape["vocabulary"],
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": shape["tied"],
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "attention_bias": False,
        "mlp_bias": False,
    }
    (out / "config.json").write_text(json.dumps(config, indent=1))
    generator = torch.Generator("cuda").manual_seed(7)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        # As a trained matrix would: outputs as large as inputs.
        return (torch.randn(rows, columns, device="cuda", generator=generator) * columns**-0.5).bfloat16().cpu()

    def norm() -> torch.Tensor:
        return (1 + 0.1 * torch.randn(hidden, device="cuda", generator=generator)).bfloat16().cpu()

    tensors = {"model.embed_tokens.weight": matrix(shape["vocabulary"], hidden) * hidden**0.5, "model.norm.weight": norm()}
    if not shape["tied"]:
        tensors["lm_head.weight"] = matrix(shape["vocabulary"], hidden) * 2
    for layer in range(shape["layers"]):
        at = f"model.layers.{layer}."
        tensors[at + "input_layernorm.weight"] = norm()
        tensors[at + "post_attention_layernorm.weight"] = norm()
        tensors[at + "self_attn.q_proj.weight"] = matrix(shape["heads"] * head_dim, hidden)
        tensors[at + "self_attn.k_proj.weight"] = matrix(shape["kv_heads"] * head_dim, hidden)
        tensors[at + "self_attn.v_proj.weight"] = matrix(shape["kv_heads"] * head_dim, hidden)
        tensors[at + "self_attn.o_proj.weight"] = matrix(hidden, shape["heads"] * head_dim)
        tensors[at + "mlp.gate_proj.weight"] = matrix(ffn, hidden)
        tensors[at + "mlp.up_proj.weight"] = matrix(ffn, hidden)
        tensors[at + "mlp.down_proj.weight"] = matrix(hidden, ffn)
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(f"usage: make-model.py {'|'.join(SHAPES)} FOLDER")
    main(*sys.argv[1:])
