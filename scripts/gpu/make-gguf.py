"""Writes a GGUF v3 file with the exact shape of a published model and seeded random blocks: for time, since its answers mean nothing.

    python3 make-gguf.py llama-3.1-8b q4_0 /dev/shm/8b-q4_0.gguf

Needs numpy. Matrices are of the type that is named, the LM head Q6_K and norms float32, as published files have them.
"""

import struct
import sys
from typing import BinaryIO

import numpy as np

SHAPES = {
    "llama-3.2-1b": dict(layers=16, hidden=2048, heads=32, kv_heads=8, head_dim=64, ffn=8192, vocabulary=128256, tied=True),
    "llama-3.1-8b": dict(layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocabulary=128256, tied=False),
}
# Number in GGUF; values and bytes of a block; where its scale lies, and how far values deviate in units of it; where its minimum lies and how many scales it is.
TYPES = {
    "q4_0": (2, 32, 18, 0, 4.6, None, 0.0),
    "q4_1": (3, 32, 20, 0, 4.6, 2, -7.5),
    "q4_k": (12, 256, 144, 0, 200.0, 2, 7.5),
    "q6_k": (14, 256, 210, 208, 1350.0, None, 0.0),
}
F32, ALIGNMENT = 0, 32
UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9

Tensor = tuple[str, str, int, int]  # name, type, rows, columns


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def metadata(shape: dict) -> list[bytes]:
    def pair(key: str, kind: int, value: bytes) -> bytes:
        return text(key) + struct.pack("<I", kind) + value

    tokens = [f"t{i}" for i in range(shape["vocabulary"])]
    counts = {
        "block_count": shape["layers"],
        "embedding_length": shape["hidden"],
        "feed_forward_length": shape["ffn"],
        "attention.head_count": shape["heads"],
        "attention.head_count_kv": shape["kv_heads"],
        "attention.key_length": shape["head_dim"],
        "context_length": 131072,
    }
    return [
        pair("general.architecture", STRING, text("llama")),
        *(pair(f"llama.{key}", UINT32, struct.pack("<I", value)) for key, value in counts.items()),
        pair("llama.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", 1e-5)),
        pair("llama.rope.freq_base", FLOAT32, struct.pack("<f", 500000.0)),
        pair("tokenizer.ggml.model", STRING, text("gpt2")),
        pair("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, len(tokens)) + b"".join(map(text, tokens))),
    ]


def tensors(shape: dict, kind: str) -> list[Tensor]:
    hidden, ffn = shape["hidden"], shape["ffn"]
    attention, kv = shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"]
    matrices = [
        ("attn_q", attention, hidden),
        ("attn_k", kv, hidden),
        ("attn_v", kv, hidden),
        ("attn_output", hidden, attention),
        ("ffn_gate", ffn, hidden),
        ("ffn_up", ffn, hidden),
        ("ffn_down", hidden, ffn),
    ]
    all_of_them: list[Tensor] = [("token_embd.weight", "q6_k" if shape["tied"] else kind, shape["vocabulary"], hidden), ("output_norm.weight", "f32", 1, hidden)]
    if not shape["tied"]:
        all_of_them.append(("output.weight", "q6_k", shape["vocabulary"], hidden))
    for layer in range(shape["layers"]):
        all_of_them += [(f"blk.{layer}.{name}.weight", kind, rows, columns) for name, rows, columns in matrices]
        all_of_them += [(f"blk.{layer}.{name}.weight", "f32", 1, hidden) for name in ("attn_norm", "ffn_norm")]
    return all_of_them


def size(kind: str, rows: int, columns: int) -> int:
    if kind == "f32":
        return rows * columns * 4
    _, values, size_bytes, *_ = TYPES[kind]
    return rows * columns // values * size_bytes


def header(all_of_them: list[Tensor], pairs: list[bytes]) -> bytes:
    out = b"GGUF" + struct.pack("<IQQ", 3, len(all_of_them), len(pairs)) + b"".join(pairs)
    offset = 0
    for name, kind, rows, columns in all_of_them:
        dimensions = [columns] if kind == "f32" else [columns, rows]
        out += text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        out += struct.pack("<IQ", F32 if kind == "f32" else TYPES[kind][0], offset)
        offset += padded(size(kind, rows, columns))
    return out


def padded(count: int) -> int:
    return (count + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def write_tensor(out: BinaryIO, random: np.random.Generator, kind: str, rows: int, columns: int) -> None:
    if kind == "f32":
        out.write((1 + 0.1 * random.standard_normal(rows * columns)).astype("<f4").tobytes())
    else:
        _, values, block_bytes, scale_at, spread, minimum_at, minimum = TYPES[kind]
        # As a trained matrix would: outputs as large as inputs. A few hundred rows at a time.
        for first in range(0, rows, 512):
            count = min(512, rows - first) * columns // values
            blocks = np.frombuffer(random.bytes(count * block_bytes), np.uint8).reshape(count, block_bytes).copy()
            scales = (columns**-0.5 / spread * random.uniform(0.5, 1.5, count)).astype("<f2")
            blocks[:, scale_at : scale_at + 2] = scales.view(np.uint8).reshape(count, 2)
            if minimum_at is not None:
                blocks[:, minimum_at : minimum_at + 2] = (scales * np.float16(minimum)).astype("<f2").view(np.uint8).reshape(count, 2)
            out.write(blocks.tobytes())
    out.write(bytes(padded(size(kind, rows, columns)) - size(kind, rows, columns)))


def main(name: str, kind: str, path: str) -> None:
    shape = SHAPES[name]
    all_of_them = tensors(shape, kind)
    random = np.random.default_rng(7)
    with open(path, "wb") as out:
        head = header(all_of_them, metadata(shape))
        out.write(head + bytes(padded(len(head)) - len(head)))
        for _, tensor_kind, rows, columns in all_of_them:
            write_tensor(out, random, tensor_kind, rows, columns)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in SHAPES or sys.argv[2] not in ("q4_0", "q4_1", "q4_k"):
        sys.exit(f"usage: make-gguf.py {'|'.join(SHAPES)} q4_0|q4_1|q4_k FILE")
    main(*sys.argv[1:])
