"""Remakes engine/test/fixtures/types.bin: random blocks of every type that GGUF files may hold, and what the `gguf` package reads in them.

Every bit pattern is legal but scales that are infinite or not numbers. The file is, for each type: u32 number, u32 bytes, u32 values,
the bytes, the values in float32; little-endian.

    python3 -m venv /path/to/venv
    /path/to/venv/bin/pip install gguf numpy
    /path/to/venv/bin/python scripts/golden-types.py [--check] [FILE]

--check compares with FILE and writes nothing.
"""

import argparse
import pathlib
import struct
import sys

import gguf
import numpy as np

FIXTURE = pathlib.Path(__file__).resolve().parent.parent / "engine/test/fixtures/types.bin"
SEED = 20_240_602
VALUES = 768

# Where a block's halves stand, which must be finite.
HALVES = {
    "F32": [], "F16": [0], "BF16": [], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}  # fmt: skip


def random_blocks(random: np.random.Generator, name: str, values: int) -> np.ndarray:
    """[blocks][bytes a block] of uint8."""
    size, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = random.integers(0, 256, (values // size, width), dtype=np.uint8)
    for at in HALVES[name]:
        # An exponent of all ones would be an infinity or no number.
        blocks[:, at + 1] = np.where((blocks[:, at + 1] & 0x7C) == 0x7C, blocks[:, at + 1] & 0xBF, blocks[:, at + 1])
    if name in ("F32", "BF16"):
        top = blocks[:, -1]
        blocks[:, -1] = np.where((top & 0x7F) == 0x7F, top & 0xBF, top)
    if name == "MXFP4":
        # Every exponent once in a while, the subnormal ones among the first; those from 253 would overflow.
        blocks[:4, 0] = [0, 1, 2, 252]
        blocks[:, 0] = np.minimum(blocks[:, 0], 252)
    return blocks


def fixture() -> bytes:
    random = np.random.default_rng(SEED)
    out = b""
    for name in HALVES:
        number = gguf.GGMLQuantizationType[name]
        stored = random_blocks(random, name, VALUES)
        values = gguf.quants.dequantize(stored.reshape(1, -1), number).astype(np.float32)
        if not np.isfinite(values).all() or values.size != VALUES:
            sys.exit(f"{name} gave {values.size} values, not all of them finite")
        out += struct.pack("<III", number, stored.size, VALUES) + stored.tobytes() + values.tobytes()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="blocks of every GGUF type and their values")
    parser.add_argument("file", nargs="?", type=pathlib.Path, default=FIXTURE)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    made = fixture()
    if arguments.check:
        sys.exit(0 if arguments.file.read_bytes() == made else f"{arguments.file} is not what this script makes")
    arguments.file.write_bytes(made)
    print(f"{arguments.file}: {len(made)} bytes, {len(HALVES)} types")


if __name__ == "__main__":
    main()
