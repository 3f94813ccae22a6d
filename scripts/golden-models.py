"""Remakes test/engine/fixtures/models/: a tiny random checkpoint of each architecture and what Hugging Face transformers says of it.

Each checkpoint is a directory as save_pretrained writes it (bfloat16, or MXFP4 for gpt-oss's experts), with `golden.bin` beside it: some
prompts and, at a sample of their positions, a sample of the float32 logits that transformers computes eagerly on the CPU from the
weights as they were rounded. Weights are scaled so that the logits deviate by at least 3 and attention has at most 70% of the uniform
entropy: otherwise a fault would hardly show. Where tokens are routed, no choice of an expert is closer than the engine may err.
Prompts run past every window and every original context of a RoPE that is stretched, and past two pages of KV memory.

Run it from the repository's root, in an environment of its own:

    python3 -m venv /path/to/venv
    /path/to/venv/bin/pip install torch transformers
    /path/to/venv/bin/python scripts/golden-models.py [NAME ...]

NAMEs are those in MODELS below; all, if none is given. It ends with status 1 where a checkpoint is not as said above.

golden.bin is little-endian, all of it 32 bits wide: prompts; then per prompt: the context to load the model with, tokens, their ids,
positions, which, vocabulary ids, which, and float32 logits [positions][vocabulary ids]; last, a float32: the deviation of all logits.
"""

import json
import math
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "test/engine/fixtures/models"
CONTEXT = 1024
PROMPTS = (600, 75, 23)  # tokens; two pages of the widest layout hold 512
POSITIONS, VOCABULARY_IDS = 32, 48  # of each prompt, kept
DEVIATION_MIN, ENTROPY_MAX, ROUTER_GAP_MIN, BYTES_MAX = 3.0, 0.7, 5e-5, 200_000
MERGES = ["t h", "h e", "i n", "e r", "a n", "th e", "r e", "o n", "a t", "in g", "an d", "e n"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
VOCABULARY = 256 + len(MERGES) + len(SPECIALS)

BASE = dict(
    vocab_size=VOCABULARY, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=CONTEXT, tie_word_embeddings=False, bos_token_id=256 + len(MERGES), eos_token_id=256 + len(MERGES),
    pad_token_id=VOCABULARY - 1, attn_implementation="eager", use_cache=False,
)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=8.0, original_max_position_embeddings=64)
LONGROPE = dict(
    rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=64,
    partial_rotary_factor=0.75, short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5], long_factor=[1.0, 1.5, 2.0, 4.0, 8.0, 16.0],
)
MOE = dict(num_experts_per_tok=2, num_hidden_layers=2, hidden_size=32, intermediate_size=32)
FALCON = dict(
    vocab_size=VOCABULARY, num_hidden_layers=2, ffn_hidden_size=96, bias=False, alibi=False, parallel_attn=True, max_position_embeddings=CONTEXT,
    bos_token_id=256 + len(MERGES), eos_token_id=256 + len(MERGES), attn_implementation="eager", use_cache=False,
)

# name: (configuration class, what it differs by, seed)
MODELS = {
    "llama2": ("LlamaConfig", BASE | dict(num_attention_heads=8, num_key_value_heads=1, num_hidden_layers=2,
               rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)), 1),
    "llama3": ("LlamaConfig", BASE | dict(tie_word_embeddings=True, rope_parameters=LLAMA3), 2),
    "mistral": ("MistralConfig", BASE | dict(sliding_window=40), 3),
    "qwen2": ("Qwen2Config", BASE | dict(num_attention_heads=3, num_key_value_heads=1, rope_parameters=YARN), 4),
    "qwen3": ("Qwen3Config", BASE | dict(tie_word_embeddings=True), 5),
    "gemma2": ("Gemma2Config", BASE | dict(num_hidden_layers=4, hidden_size=32, sliding_window=40, query_pre_attn_scalar=24, attn_logit_softcapping=12.0,
               final_logit_softcapping=12.0, tie_word_embeddings=True), 6),
    "gemma3": ("Gemma3TextConfig", BASE | dict(num_hidden_layers=4, hidden_size=32, sliding_window=40, query_pre_attn_scalar=24,
               layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"], tie_word_embeddings=True,
               rope_parameters=dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
                                    sliding_attention=dict(rope_type="default", rope_theta=10000.0))), 7),
    "phi3": ("Phi3Config", {key: value for key, value in BASE.items() if key != "head_dim"} | dict(num_attention_heads=3, num_key_value_heads=1,
             original_max_position_embeddings=64, rope_parameters=LONGROPE), 8),
    "olmo2": ("Olmo2Config", BASE, 9),
    "falcon-7b": ("FalconConfig", FALCON | dict(hidden_size=64, num_attention_heads=4, multi_query=True, new_decoder_architecture=False), 10),
    "falcon-40b": ("FalconConfig", FALCON | dict(hidden_size=64, num_attention_heads=4, num_kv_heads=2, new_decoder_architecture=True), 11),
    "falcon-180b": ("FalconConfig", FALCON | dict(hidden_size=96, num_attention_heads=6, num_kv_heads=2, new_decoder_architecture=True,
                    ffn_hidden_size=16), 12),
    "mixtral": ("MixtralConfig", BASE | MOE | dict(num_local_experts=4, sliding_window=None), 13),
    "qwen3moe": ("Qwen3MoeConfig", BASE | MOE | dict(num_experts=6, moe_intermediate_size=32, norm_topk_prob=False, decoder_sparse_step=1,
                 mlp_only_layers=[]), 14),
    "gpt-oss": ("GptOssConfig", BASE | MOE | dict(num_local_experts=4, hidden_size=64, sliding_window=40, rope_parameters=YARN | dict(truncate=False)), 15),
}

MXFP4_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def tokenizer():
    """Bytes, a few merges and the special tokens: what any text can be written in."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [merge.replace(" ", "") for merge in MERGES]
    made = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[tuple(merge.split()) for merge in MERGES]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIALS)
    return made


def randomize(model, random):
    """Fills all weights; norms lie around 1, and projections keep the deviation of what they read."""
    gemma = "Gemma" in type(model).__name__
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=random)
        if name.endswith("sinks"):
            value = 1 + noise
        elif weight.ndim == 1:
            is_scale = name.endswith("weight")
            value = (0.0 if gemma or not is_scale else 1.0) + (0.2 if is_scale else 0.3) * noise
        elif "embed" in name:
            value = noise
        else:
            # gpt-oss keeps its experts' matrices [inputs][outputs].
            inputs = weight.shape[-2] if "GptOss" in type(model).__name__ and weight.ndim == 3 else weight.shape[-1]
            gain = 2.0 if "router" in name or name.endswith("mlp.gate.weight") else 1.5
            value = gain * noise / math.sqrt(inputs)
        weight.data.copy_(value.bfloat16().float())


def to_mxfp4(values):
    """Blocks of 32 along the last dimension as (bytes [..., 16], scales [...], what they stand for)."""
    blocks = values.reshape(*values.shape[:-1], -1, 32)
    exponent = torch.ceil(torch.log2(blocks.abs().amax(-1, keepdim=True) / 6)).clamp(-127, 127)
    scaled = blocks / 2.0**exponent
    code = (scaled.abs().unsqueeze(-1) - MXFP4_VALUES).abs().argmin(-1)
    rounded = MXFP4_VALUES[code] * torch.sign(scaled) * 2.0**exponent
    code = (code + 8 * (scaled < 0)).to(torch.uint8)
    return code[..., 0::2] | code[..., 1::2] << 4, (exponent.squeeze(-1) + 127).to(torch.uint8), rounded.reshape(values.shape)


def round_experts(model):
    """Rounds gpt-oss's experts to MXFP4; the tensors that hold them, by name."""
    packed = {}
    for name, weight in model.named_parameters():
        if name.endswith(("gate_up_proj", "down_proj")):
            blocks, scales, rounded = to_mxfp4(weight.data.transpose(1, 2).contiguous())
            weight.data.copy_(rounded.transpose(1, 2))
            packed |= {name + "_blocks": blocks.contiguous(), name + "_scales": scales.contiguous()}
    return packed


def scale_rows(model, names, factor):
    for name, weight in model.named_parameters():
        if name.endswith(names):
            weight.data.copy_((weight.data * factor).bfloat16().float())


def entropy(attentions, windows):
    """Mean over layers, heads and later positions of attention's entropy as a share of the uniform one's."""
    shares = []
    for layer, weights in enumerate(attentions):
        seen = torch.arange(1, weights.shape[-1] + 1).clamp(max=windows[layer] or CONTEXT)
        weights = weights / weights.sum(-1, keepdim=True)
        own = -(weights * weights.clamp(min=1e-30).log()).sum(-1)
        shares.append((own[0, :, 8:] / seen[8:].log()).mean())
    return float(torch.stack(shares).mean())


def windows_of(config):
    size = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if size else "full_attention"] * config.num_hidden_layers
    return [size if kind == "sliding_attention" else None for kind in kinds]


def sharpen(model, tokens, windows):
    """Scales queries until attention is pointed enough, then the output until logits deviate enough."""
    queries = next((end for end in ("q_norm.weight", "q_proj.weight", "qkv_proj.weight", "query_key_value.weight")
                    if any(name.endswith(end) for name, _ in model.named_parameters())))
    while (share := entropy(model(tokens[:, :200], output_attentions=True).attentions, windows)) > 0.95 * ENTROPY_MAX:
        # Gemma's norms have a weight of 1 already.
        if queries == "q_norm.weight" and "Gemma" in type(model).__name__:
            for name, weight in model.named_parameters():
                if name.endswith(queries):
                    weight.data.copy_((1.3 * (1 + weight.data) - 1).bfloat16().float())
        else:
            scale_rows(model, queries, 1.3)
    output = "lm_head.weight" if any(name == "lm_head.weight" for name, _ in model.named_parameters()) else ("embed_tokens.weight", "word_embeddings.weight")
    for _ in range(40):
        if model(tokens[:, :200]).logits.std() >= 1.2 * DEVIATION_MIN:
            break
        scale_rows(model, output, 1.2)
    return share


def router_gap(model, tokens, used):
    """The least distance between a chosen expert's score and one that was not chosen."""
    gaps, hooks = [], []
    for name, module in model.named_modules():
        if name.endswith(("mlp.router", "mlp.gate", "block_sparse_moe.gate")):
            def look(module, inputs, _):
                scores = torch.nn.functional.linear(inputs[0].reshape(-1, inputs[0].shape[-1]), module.weight, getattr(module, "bias", None))
                best = scores.sort(-1, descending=True).values
                gaps.append(float((best[:, used - 1] - best[:, used]).min()))
            hooks.append(module.register_forward_hook(look))
    model(tokens)
    for hook in hooks:
        hook.remove()
    return min(gaps)


def save(model, folder, packed):
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    if packed:
        path = folder / "model.safetensors"
        tensors = {name: value for name, value in load_file(path).items() if not name.endswith(("gate_up_proj", "down_proj"))}
        save_file(tensors | packed, path, metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer().to_str()), ensure_ascii=False, separators=(",", ":")) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": SPECIALS[0], "add_bos_token": False}) + "\n")


def golden(model, prompts, contexts, random):
    parts, all_logits = [np.uint32([len(prompts)])], []
    for tokens, context in zip(prompts, contexts, strict=True):
        logits = model(tokens).logits[0].float().numpy()
        all_logits.append(logits.ravel())
        count = min(POSITIONS, len(logits))
        positions = np.sort(random.choice(len(logits) - 1, count - 1, replace=False)).tolist() + [len(logits) - 1]
        ids = np.sort(random.choice(VOCABULARY, VOCABULARY_IDS, replace=False))
        parts += [np.uint32([context, len(logits)]), tokens[0].numpy().astype("<u4"), np.uint32([count]), np.uint32(positions),
                  np.uint32([len(ids)]), ids.astype("<u4"), logits[positions][:, ids].astype("<f4")]
    deviation = np.concatenate(all_logits).std()
    return b"".join(part.tobytes() for part in [*parts, np.float32([deviation])]), deviation


def make(name):
    """Makes one fixture; True if it is as the docstring says."""
    kind, differences, seed = MODELS[name]
    random = torch.Generator().manual_seed(seed)
    config = getattr(transformers, kind)(**differences)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    prompts = [torch.randint(0, VOCABULARY, (1, count), generator=random) for count in PROMPTS]
    used = getattr(config, "num_experts_per_tok", None)
    with torch.inference_mode():
        # Another try where two experts' scores lie too close.
        for _ in range(50):
            randomize(model, random)
            share = sharpen(model, prompts[0], windows_of(config))
            packed = round_experts(model) if "GptOss" in kind else {}
            gap = min(router_gap(model, tokens, used) for tokens in prompts) if used else math.inf
            if gap >= ROUTER_GAP_MIN:
                break
        folder = FIXTURES / name
        # A stretch that depends on the length is chosen by the context that the engine is loaded with.
        original = 64 if name == "phi3" else CONTEXT
        contexts = [CONTEXT if count > original else original for count in PROMPTS]
        written, deviation = golden(model, prompts, contexts, np.random.default_rng(seed))
        # Only now: RoPE's frequencies are rounded with the weights.
        save(model, folder, packed)
    (folder / "golden.bin").write_bytes(written)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name:12} deviation {deviation:5.2f}  entropy {share:4.0%}  router gap {gap:.1e}  {size / 1000:.0f} kB", flush=True)
    return deviation >= DEVIATION_MIN and share <= ENTROPY_MAX and gap >= ROUTER_GAP_MIN and size <= BYTES_MAX


def main():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names = sys.argv[1:] or list(MODELS)
    if unknown := set(names) - set(MODELS):
        sys.exit(f"{', '.join(sorted(unknown))} is none of {', '.join(MODELS)}")
    sys.exit(0 if all([make(name) for name in names]) else 1)


if __name__ == "__main__":
    main()
