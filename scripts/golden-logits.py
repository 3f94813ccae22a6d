"""Remakes test/engine/fixtures/golden.{json,bin}: what Hugging Face transformers says of some prompts, and how far the engine is from it.

The model is loaded from its GGUF file, dequantized to float32 (every weight is compared with the `gguf` package's own dequantization),
and run eagerly on the CPU. All its logits are compared with those of the engine's reference path, through `npm run eval`; a sample of
them is written for test/engine/golden.test.ts, which needs no Python.

Run it from the repository's root, in an environment of its own:

    python3 -m venv /path/to/venv
    /path/to/venv/bin/pip install torch transformers accelerate gguf numpy
    /path/to/venv/bin/python scripts/golden-logits.py [--model PATH] [--check]

--model defaults to the model that `npm start` fetched. --check compares and writes nothing. It ends with status 1 where any logit
differs by more than 1e-2, or a likeliest token differs although the two best lie further apart than that.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "test/engine/fixtures"
DEFAULT_MODEL = (
    pathlib.Path(os.environ.get("MILLRACE_CACHE") or pathlib.Path.home() / ".cache/millrace") / "SmolLM2-135M-Instruct.Q4_1.gguf"
)
DIFFERENCE_MAX = 1e-2
SAMPLES = 16  # logits kept of each position beside the best two
SEED = 20_240_601

CODE = """\
export function digits(value: bigint, base = 10n): number[] {
  const out: number[] = [];
  for (let rest = value; rest > 0n; rest /= base) out.push(Number(rest % base));
  return out.reverse();
}

// >>> digits(0xff_ffn, 16n)
"""


def prompts(tokenizer):
    """Name and token ids of each prompt."""
    prose = (FIXTURES / "persuasion.txt").read_text()
    chat = [
        {"role": "system", "content": "You are a helpful assistant who answers in one sentence."},
        {"role": "user", "content": "Why is the sky blue, and why is it red in the evening?"},
        {"role": "assistant", "content": "Air scatters short waves more than long ones."},
        {"role": "user", "content": "And on Mars?"},
    ]
    texts = {
        "one token": "Hello",
        "a sentence": "The capital of France is Paris, and the capital of Italy is",
        "code": CODE,
        "Chinese, Japanese and Korean": "天下皆知美之為美，斯惡已。春はあけぼの、やうやう白くなりゆく山ぎは。나랏말싸미 듕귁에 달아",
        "emoji and combining marks": "👩‍👩‍👧‍👦 said 🇨🇭🇯🇵 ok 👍🏽! e\u0301 n\u0303 Z\u0351\u036b\u0343 ﷽ ½ ™",
        "European scripts": "Ὦ ξεῖν’, ἀγγέλλειν Λακεδαιμονίοις. Мой дядя самых честных правил. Größe, çalışma, Łódź, được.",
        "whitespace and numbers": "\n\n\t  x =   3.14159265358979 ;\r\n    y\t= 1_000_000\n\n\n\n  0x7fff_ffff  1e-45      NaN\n",
        "one word again and again": "and " * 40,
    }
    yield from ((name, tokenizer(text, add_special_tokens=False).input_ids) for name, text in texts.items())
    templated = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    yield "chat template", tokenizer(templated, add_special_tokens=False).input_ids
    yield "500 tokens of prose", tokenizer(prose[:4000], add_special_tokens=False).input_ids[:500]


def own_name(name):
    """The name in transformers of a Llama tensor of a GGUF file."""
    names = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{names[parts[2]]}.{parts[3]}"
    return f"{names[parts[0]]}.{parts[1]}"


def check_weights(model, path):
    """Every weight that transformers computes with is the file's, dequantized by the gguf package."""
    weights = model.state_dict()
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    tensors = gguf.GGUFReader(path).tensors
    for tensor in tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            # GGUF keeps each head's rows as pairs that RoPE turns together; transformers turns row i with row i + head_dim / 2.
            rows, columns = expected.shape
            expected = expected.reshape(heads[kind], rows // heads[kind] // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        actual = weights[own_name(tensor.name)]
        if actual.dtype != torch.float32 or not np.array_equal(actual.numpy(), expected):
            sys.exit(f"{tensor.name}: transformers has other weights than the gguf package")
    print(f"{len(tensors)} tensors: transformers' weights are the gguf package's, bit for bit")


def logits_of_engine(model_path, tokens, folder):
    """float32 [positions][vocabulary] of the engine's reference path."""
    path = pathlib.Path(folder) / "logits.f32"
    ids = ",".join(map(str, tokens))
    flags = ["--model", str(model_path), "--kernels", "reference", "--precision", "float32", "--tokens", ids, "--logits", str(path)]
    done = subprocess.run(["npm", "run", "--silent", "eval", "--", *flags], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"npm run eval failed:\n{done.stdout}{done.stderr}")
    return np.fromfile(path, dtype="<f4").reshape(len(tokens), -1)


def compare(name, theirs, ours):
    """Prints how far ours are from theirs; True where that is within the bound."""
    difference = np.abs(theirs - ours).max()
    best = np.sort(theirs, axis=1)[:, -2:]
    differs = theirs.argmax(axis=1) != ours.argmax(axis=1)
    wrong = differs & (best[:, 1] - best[:, 0] > DIFFERENCE_MAX)
    print(f"{name:30} {len(theirs):4} tokens  largest difference {difference:.2e}  top-1 differs {differs.sum()}, beyond a tie {wrong.sum()}")
    return bool(difference < DIFFERENCE_MAX and not wrong.any())


def records(logits, random):
    """Per position: id and logit of the best and the second, logsumexp, then SAMPLES ids with their logits."""
    order = np.argpartition(-logits, 1, axis=1)[:, :2]
    rows = np.arange(len(logits))[:, None]
    order = np.take_along_axis(order, np.argsort(-logits[rows, order], axis=1), axis=1)
    lse = torch.logsumexp(torch.from_numpy(logits).double(), dim=1).numpy()
    ids = np.concatenate([order, random.integers(0, logits.shape[1], (len(logits), SAMPLES))], axis=1)
    out = np.zeros(len(logits), dtype=[("lse", "<f4"), ("ids", "<u4", 2 + SAMPLES), ("logits", "<f4", 2 + SAMPLES)])
    out["lse"], out["ids"], out["logits"] = lse, ids, logits[rows, ids]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=DEFAULT_MODEL)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    folder, file = str(args.model.resolve().parent), args.model.name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    check_weights(model, args.model)
    random = np.random.default_rng(SEED)
    header = {
        "model": file,
        "sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        "made": f"transformers {transformers.__version__}, torch {torch.__version__}, gguf dequantization, float32",
        "vocabulary": model.config.vocab_size,
        "samples": SAMPLES,
        "prompts": [],
    }
    parts, good = [], True
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        for name, tokens in prompts(tokenizer):
            theirs = model(torch.tensor([tokens])).logits[0].numpy()
            good &= compare(name, theirs, logits_of_engine(args.model, tokens, scratch))
            header["prompts"].append({"name": name, "tokens": " ".join(map(str, tokens))})
            parts.append(records(theirs, random))
    if not args.check:
        text = json.dumps(header, indent=2, ensure_ascii=False)
        (FIXTURES / "golden.json").write_text(text + "\n")
        (FIXTURES / "golden.bin").write_bytes(np.concatenate(parts).tobytes())
        print(f"wrote {FIXTURES.relative_to(ROOT)}/golden.json and golden.bin: {sum(map(len, parts))} positions")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
