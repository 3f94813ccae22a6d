"""What 8-bit types cost a model by themselves: KL from its weights in bfloat16, with all arithmetic in float32, on any CPU.

    python3 scripts/gpu/fp8-kl.py MODEL.gguf TEXT [TOKENS]

Needs torch, transformers, gguf and accelerate. Of a kernel's rounding there is none in it: this bounds what a backend can reach.
"""

import math
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 1024


def rows(values, scaled_to, cast):
    """Rounded to a type that holds up to `scaled_to`, with a scale for each row."""
    scales = values.abs().amax(-1, keepdim=True).clamp_min(1e-12) / scaled_to
    return cast(values / scales) * scales


def e4m3(values):
    return rows(values, 448, lambda x: x.to(torch.float8_e4m3fn).float())


def e4m3_blocks(values, width=128):
    count, columns = values.shape
    padded = torch.nn.functional.pad(values, (0, -columns % width)).view(count, -1, width)
    return e4m3(padded).view(count, -1)[:, :columns]


def e3m4(values):
    """Three bits of exponent and four of mantissa: up to 31, with subnormals below a quarter."""

    def cast(x):
        step = torch.exp2(torch.floor(torch.log2(x.abs().clamp_min(1e-30))).clamp_min(-2) - 4)
        return torch.round(x / step) * step

    return rows(values, 31, cast)


def same(values):
    return values


def main():
    path, text = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).read_text(encoding="utf-8")
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 4096
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(**source)(text, return_tensors="pt").input_ids[0, :count]
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"}
    stored = {name: module.weight.data.bfloat16().float() for name, module in layers.items()}
    round_inputs = {}
    for name, module in layers.items():
        module.register_forward_pre_hook(lambda _, args, name=name: (round_inputs.get(name, same)(args[0]),))

    @torch.no_grad()
    def run(weights, inputs, but):
        for name, module in layers.items():
            is_rounded = not (but and but in name)
            module.weight.data = weights(stored[name]) if is_rounded else stored[name]
            round_inputs[name] = inputs if is_rounded else same
        return [torch.log_softmax(model(part[None], use_cache=False).logits[0], -1) for part in tokens.split(WINDOW)]

    def loss(windows):
        parts = zip(windows, tokens.split(WINDOW))
        return torch.cat([-each[:-1].gather(1, part[1:, None]) for each, part in parts]).mean().item()

    exact = run(same, same, None)
    print(f"{len(tokens)} tokens in windows of {WINDOW}, perplexity {math.exp(loss(exact)):.3f}")
    for name, weights, inputs, but in [
        ("weights E4M3, a scale a row; inputs in E4M3, a scale a token", e4m3, e4m3, None),
        ("weights E4M3, a scale a row", e4m3, same, None),
        ("weights E4M3, a scale for 128 of a row", e4m3_blocks, same, None),
        ("weights E4M3, a scale a row, but ffn's down", e4m3, same, "down_proj"),
        ("inputs in E4M3, a scale a token", same, e4m3, None),
        ("weights E3M4, a scale a row", e3m4, same, None),
    ]:
        other = run(weights, inputs, but)
        kl = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in zip(exact, other)]).mean().item()
        print(f"{name}: mean KL {kl:.5f}, perplexity {100 * math.expm1(loss(other) - loss(exact)):+.2f}%", flush=True)


main()
