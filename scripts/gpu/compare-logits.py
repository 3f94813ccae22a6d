"""Compares logits that the engine wrote (bench_cuda_engine MODEL logits TOKENS OUT) with those of Hugging Face transformers.

    python3 compare-logits.py FOLDER OUT

OUT has int32 tokens' count and vocabulary, the tokens, then float32 logits [tokens][vocabulary]. Prints the relative error of the logits against
transformers in float32, beside the error of transformers itself in bfloat16, and the mean KL of both, in nats.
"""

import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main(folder: str, out: str) -> None:
    raw = np.fromfile(out, dtype=np.int32)
    count, vocabulary = int(raw[0]), int(raw[1])
    tokens = torch.from_numpy(raw[2 : 2 + count].astype(np.int64)).cuda()[None]
    ours = torch.from_numpy(raw[2 + count :].view(np.float32).reshape(count, vocabulary).copy()).cuda()

    def logits(dtype: torch.dtype) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).cuda()
        with torch.no_grad():
            return model(tokens).logits[0].float()

    torch.backends.cuda.matmul.allow_tf32 = False
    exact = logits(torch.float32)
    torch.cuda.empty_cache()
    theirs = logits(torch.bfloat16)

    def kl(other: torch.Tensor) -> float:
        p, q = exact.log_softmax(-1), other.log_softmax(-1)
        return float((p.exp() * (p - q)).sum(-1).mean())

    for name, other in (("ours", ours), ("transformers in bfloat16", theirs)):
        error = float((other - exact).norm() / exact.norm())
        agreed = float((other.argmax(-1) == exact.argmax(-1)).float().mean())
        print(f"{name}: relative error {error:.5f}, mean KL {kl(other):.6f}, same likeliest token {agreed:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
