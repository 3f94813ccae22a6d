"""Remakes engine/test/fixtures/quantized.{safetensors,txt}: small matrices as the quantizations of Hugging Face checkpoints store them,
each beside its values by a plain numpy implementation of the format's definition.

For each case C the safetensors file has C.<parameter> as a checkpoint would, and C.expected in float32; the text file has, as JSON, each case's
quantization_config.

    python3 -m venv /path/to/venv
    /path/to/venv/bin/pip install numpy torch safetensors
    /path/to/venv/bin/python scripts/golden-quantized.py [FOLDER]
"""

import argparse
import json
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "engine/test/fixtures"
SEED = 20_240_603
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # which of eight rows lies in a word's nibble 0, 1, ...

random = np.random.default_rng(SEED)


def pack(values: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Puts 32 / bits neighbours along an axis into one int32, the first in the lowest bits; zeros fill the last word."""
    many = 32 // bits
    values = np.moveaxis(values, axis, -1).astype(np.uint32)
    padded = np.zeros((*values.shape[:-1], -(-values.shape[-1] // many) * many), np.uint32)
    padded[..., : values.shape[-1]] = values
    groups = padded.reshape(*padded.shape[:-1], -1, many)
    words = np.zeros(groups.shape[:-1], np.uint32)
    for place in range(many):
        words |= groups[..., place] << np.uint32(bits * place)
    return np.ascontiguousarray(np.moveaxis(words.view(np.int32), -1, axis))


def quants(rows: int, columns: int, bits: int) -> np.ndarray:
    return random.integers(0, 1 << bits, (rows, columns))


def scales(*shape: int) -> np.ndarray:
    return random.uniform(0.001, 0.02, shape).astype(np.float16)


def gptq(rows: int, columns: int, group: int, bits: int, shuffled: bool, v2: bool) -> tuple[dict, dict, np.ndarray]:
    groups = columns // group
    q, s = quants(rows, columns, bits), scales(groups, rows)
    z = random.integers(1, 1 << bits, (groups, rows))  # stored less 1 but in version 2
    g_idx = np.arange(columns) // group
    if shuffled:
        random.shuffle(g_idx)
    expected = s[g_idx].T.astype(np.float32) * (q - z[g_idx].T).astype(np.float32)
    stored = {
        "qweight": pack(q.T, bits, 0), "qzeros": pack(z if v2 else z - 1, bits, 1), "scales": s, "g_idx": g_idx.astype(np.int32),
    }  # fmt: skip
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": shuffled, "checkpoint_format": "gptq_v2" if v2 else "gptq"}
    return config, stored, expected


def awq(rows: int, columns: int, group: int) -> tuple[dict, dict, np.ndarray]:
    groups = columns // group
    q, z, s = quants(rows, columns, 4), random.integers(0, 16, (groups, rows)), scales(groups, rows)
    order = np.arange(rows).reshape(-1, 8)[:, AWQ_ORDER].reshape(-1)
    g = np.arange(columns) // group
    expected = s[g].T.astype(np.float32) * (q - z[g].T).astype(np.float32)
    stored = {"qweight": pack(q.T[:, order], 4, 1), "qzeros": pack(z[:, order], 4, 1), "scales": s}
    return {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}, stored, expected


def packed(rows: int, columns: int, group: int, bits: int, symmetric: bool) -> tuple[dict, dict, np.ndarray]:
    groups = columns // group
    q, s = quants(rows, columns, bits), torch.tensor(scales(rows, groups)).to(torch.bfloat16)
    z = np.full((rows, groups), 1 << (bits - 1)) if symmetric else random.integers(0, 1 << bits, (rows, groups))
    g = np.arange(columns) // group
    expected = s.float().numpy()[:, g] * (q - z[:, g]).astype(np.float32)
    stored = {"weight_packed": pack(q, bits, 1), "weight_scale": s, "weight_shape": np.array([rows, columns], np.int64)}
    if not symmetric:
        stored["weight_zero_point"] = pack(z, bits, 0)
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": group, "symmetric": symmetric}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {"weights": weights}}}, stored, expected


def fp8(rows: int, columns: int, kind: str) -> tuple[dict, dict, np.ndarray]:
    bits = random.integers(0, 256, (rows, columns), dtype=np.uint8)
    bits[(bits & 0x7F) == 0x7F] = 0  # no number
    weight = torch.tensor(bits).view(torch.float8_e4m3fn)
    if kind == "block":
        s = random.uniform(0.001, 0.02, (-(-rows // 128), -(-columns // 128))).astype(np.float32)
        wide = np.repeat(np.repeat(s, 128, 0), 128, 1)[:rows, :columns]
        config, name = {"quant_method": "fp8", "weight_block_size": [128, 128]}, "weight_scale_inv"
    else:
        s = random.uniform(0.001, 0.02, (rows, 1) if kind == "channel" else (1,)).astype(np.float32)
        wide = np.broadcast_to(s, (rows, columns))
        group = {"weights": {"num_bits": 8, "type": "float", "strategy": kind}}
        config, name = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}}, "weight_scale"
    return config, {"weight": weight, name: s}, weight.float().numpy() * wide


def mxfp4(experts: int, rows: int, columns: int) -> tuple[dict, dict, np.ndarray]:
    blocks = random.integers(0, 256, (experts, rows, columns // 32, 16), dtype=np.uint8)
    exponents = random.integers(110, 130, (experts, rows, columns // 32), dtype=np.uint8)
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    values = np.stack([table[blocks & 15], table[blocks >> 4]], -1).reshape(experts, rows, columns // 32, 32)
    expected = values * np.exp2(exponents.astype(np.float32) - 127)[..., None]
    return {"quant_method": "mxfp4"}, {"blocks": blocks, "scales": exponents}, expected.reshape(experts, rows, columns)


def main() -> None:
    parser = argparse.ArgumentParser(description="matrices as quantized checkpoints store them, and their values")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=FOLDER)
    folder = parser.parse_args().folder
    cases = {
        "gptq": gptq(16, 64, 32, 4, False, False),
        "gptq_act": gptq(8, 64, 16, 4, True, False),
        "gptq_v2_8bit": gptq(8, 32, 16, 8, False, True),
        "awq": awq(16, 64, 32),
        "packed": packed(10, 64, 32, 4, True),
        "packed_zeros": packed(10, 48, 16, 4, False),
        "packed_8bit": packed(6, 32, 32, 8, True),
        "fp8_tensor": fp8(5, 32, "tensor"),
        "fp8_channel": fp8(5, 32, "channel"),
        "fp8_block": fp8(4, 300, "block"),
        "fp8_blocks": fp8(130, 16, "block"),
        "mxfp4": mxfp4(2, 3, 64),
    }
    tensors, configs = {}, {}
    for name, (config, stored, expected) in cases.items():
        configs[name] = config
        for parameter, value in {**stored, "expected": expected.astype(np.float32)}.items():
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(np.ascontiguousarray(value))
            tensors[f"{name}.{parameter}"] = tensor.contiguous()
    save_file(tensors, folder / "quantized.safetensors")
    (folder / "quantized.txt").write_text(json.dumps(configs) + "\n")
    print(f"{folder}: {len(cases)} cases, {(folder / 'quantized.safetensors').stat().st_size} bytes")


if __name__ == "__main__":
    main()
