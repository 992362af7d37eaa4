#!/usr/bin/env python3
"""Makes NAME.gguf and NAME.f32 for every architecture: a model of odd sizes with random weights, and the logits of a forward
pass in float64 that shares nothing with the program. Needs numpy; run it in this folder. golden_test.cpp reads the files.

Sizes are chosen to be multiples of nothing: more heads than the width has room for, a head that rotates in part, a
vocabulary of 37. The text is N_TOKENS long, token i is (7 i + 3) mod vocab, windows and original contexts are shorter."""
import math, struct
import numpy as np

N_TOKENS, EPS, VOCAB = 40, 1e-5, 37
GEMMAS, PERMUTED = ("gemma2", "gemma3"), ("llama", "smollm3", "granite")

# Sizes, which optional tensors there are, and keys beyond the common ones.
MODELS = {
    "llama": dict(layers=2, heads=3, kv_heads=1, head=6, tied=True, bias=False,
                  keys={"attention.sliding_window": 11, "rope.scaling.type": "linear", "rope.scaling.factor": 3.0}),
    "qwen2": dict(layers=2, heads=3, kv_heads=3, head=10, tied=False, bias=True, keys={"rope.freq_base": 1e6}),
    "qwen3": dict(layers=2, heads=5, kv_heads=1, head=8, tied=True, bias=False, keys={"rope.freq_base": 1e6}),
    "gemma2": dict(layers=3, heads=4, kv_heads=2, head=6, tied=True, bias=False,
                   keys={"attention.sliding_window": 9, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": dict(layers=7, heads=3, kv_heads=1, head=6, tied=True, bias=False,
                   keys={"attention.sliding_window": 9, "rope.freq_base": 1e6, "rope.scaling.type": "linear",
                         "rope.scaling.factor": 8.0}),
    "phi3": dict(layers=2, heads=4, kv_heads=2, head=10, tied=False, bias=False, factors=True,
                 keys={"attention.sliding_window": 13, "rope.dimension_count": 8,
                       "rope.scaling.original_context_length": 16}),
    "smollm3": dict(layers=5, heads=3, kv_heads=1, head=6, tied=True, bias=False, keys={"rope.freq_base": 5e6}),
    "granite": dict(layers=2, heads=3, kv_heads=1, head=6, tied=True, bias=False,
                    keys={"attention.scale": 0.6, "embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 2.5}),
}
DIM, FFN, CONTEXT = 15, 23, 128


def make(arch, spec, random):
    """Metadata without the architecture's prefix, and tensors: f16 matrices, f32 vectors."""
    q, kv = spec["heads"] * spec["head"], spec["kv_heads"] * spec["head"]
    keys = {"block_count": spec["layers"], "context_length": CONTEXT, "embedding_length": DIM, "feed_forward_length": FFN,
            "attention.head_count": spec["heads"], "attention.head_count_kv": spec["kv_heads"],
            "attention.key_length": spec["head"], "attention.value_length": spec["head"],
            "attention.layer_norm_rms_epsilon": EPS} | spec["keys"]
    tensors = {}

    def matrix(name, rows, cols, scale=1.5):
        tensors[name + ".weight"] = (random.normal(size=(rows, cols)) * scale / math.sqrt(cols)).astype(np.float16)

    def vector(name, n, mean=1.0):
        tensors[name] = (mean + 0.3 * random.normal(size=n)).astype(np.float32)

    matrix("token_embd", VOCAB, DIM, math.sqrt(DIM))
    if not spec["tied"]: matrix("output", VOCAB, DIM)
    vector("output_norm.weight", DIM)
    for i in range(spec["layers"]):
        blk = f"blk.{i}."
        parts = {"attn_q": q, "attn_k": kv, "attn_v": kv, "ffn_gate": FFN, "ffn_up": FFN}
        if arch == "phi3": parts = {"attn_qkv": q + 2 * kv, "ffn_up": 2 * FFN}
        for name, rows in parts.items(): matrix(blk + name, rows, DIM)
        matrix(blk + "attn_output", DIM, q)
        matrix(blk + "ffn_down", DIM, FFN)
        vector(blk + "attn_norm.weight", DIM)
        vector(blk + "ffn_norm.weight", DIM)
        if spec["bias"]:
            for name in ("attn_q", "attn_k", "attn_v"): vector(blk + name + ".bias", parts[name], 0)
        if arch in ("qwen3", "gemma3"):
            for name in ("attn_q_norm", "attn_k_norm"): vector(blk + name + ".weight", spec["head"])
        if arch in GEMMAS:
            for name in ("post_attention_norm", "post_ffw_norm"): vector(blk + name + ".weight", DIM)
    if spec.get("factors"):
        pairs = keys["rope.dimension_count"] // 2
        tensors["rope_factors_short.weight"] = (1 + random.random(pairs)).astype(np.float32)
        tensors["rope_factors_long.weight"] = (1 + 5 * random.random(pairs)).astype(np.float32)
    return keys, tensors


def write(path, arch, keys, tensors):
    text = lambda s: struct.pack("<Q", len(s)) + s.encode()

    def value(v):
        if isinstance(v, int): return struct.pack("<II", 4, v)
        if isinstance(v, float): return struct.pack("<If", 6, v)
        return struct.pack("<I", 8) + text(v)

    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys) + 1) + text("general.architecture") + value(arch)
    for key, v in keys.items(): out += text(f"{arch}.{key}") + value(v)
    data = b""
    for name, a in tensors.items():
        out += text(name) + struct.pack(f"<I{a.ndim}Q", a.ndim, *a.shape[::-1])
        out += struct.pack("<IQ", 1 if a.dtype == np.float16 else 0, len(data))
        data += a.tobytes() + b"\0" * (-a.nbytes % 32)
    with open(path, "wb") as file: file.write(out + b"\0" * (-len(out) % 32) + data)


def norm(x, weight): return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight
def cap(x, c): return c * np.tanh(x / c) if c else x


def rotate(arch, x, base, keys, divisors, stretch, length):
    """x: [tokens, heads, head]."""
    dim = keys.get("rope.dimension_count", x.shape[2])
    angle = np.outer(np.arange(len(x)), base ** (-2 * np.arange(dim // 2) / dim) / divisors / stretch)[:, None]
    cos, sin, out = np.cos(angle) * length, np.sin(angle) * length, x.copy()
    a, b = (slice(0, dim, 2), slice(1, dim, 2)) if arch in PERMUTED else (slice(0, dim // 2), slice(dim // 2, dim))
    out[..., a], out[..., b] = x[..., a] * cos - x[..., b] * sin, x[..., a] * sin + x[..., b] * cos
    return out


def forward(arch, spec, keys, tensors, ids):
    w = {name: a.astype(np.float64) for name, a in tensors.items()}
    n, heads, kv_heads, head = len(ids), spec["heads"], spec["kv_heads"], spec["head"]
    linear = lambda x, name: x @ w[name + ".weight"].T + w.get(name + ".bias", 0)
    window, residual = keys.get("attention.sliding_window", 0), keys.get("residual_scale", 1)
    base, stretch, divisors, length = keys.get("rope.freq_base", 1e4), keys.get("rope.scaling.factor", 1), 1, 1
    if spec.get("factors"):  # the text, hence the context, is longer than the original one
        original = keys["rope.scaling.original_context_length"]
        divisors, length = w["rope_factors_long.weight"], math.sqrt(1 + math.log(CONTEXT / original) / math.log(original))
    x = w["token_embd.weight"][ids] * (math.sqrt(DIM) if arch in GEMMAS else keys.get("embedding_scale", 1))
    for i in range(spec["layers"]):
        blk = f"blk.{i}."
        windowed = {"gemma2": i % 2 == 0, "gemma3": (i + 1) % 6 != 0}.get(arch, True) and window > 0
        h = norm(x, w[blk + "attn_norm.weight"])
        if arch == "phi3":
            q, k, v = np.split(linear(h, blk + "attn_qkv"), [heads * head, (heads + kv_heads) * head], 1)
        else:
            q, k, v = (linear(h, blk + "attn_" + name) for name in "qkv")
        q, k, v = (t.reshape(n, -1, head) for t in (q, k, v))
        if arch in ("qwen3", "gemma3"):
            q, k = norm(q, w[blk + "attn_q_norm.weight"]), norm(k, w[blk + "attn_k_norm.weight"])
        if arch == "gemma3" and windowed:
            q, k = (rotate(arch, t, 1e4, keys, 1, 1, 1) for t in (q, k))
        elif arch != "smollm3" or (i + 1) % 4 != 0:
            q, k = (rotate(arch, t, base, keys, divisors, stretch, length) for t in (q, k))
        k, v = (np.repeat(t, heads // kv_heads, 1) for t in (k, v))
        score = np.einsum("ihd,jhd->hij", q, k) * keys.get("attention.scale", head ** -0.5)
        score = cap(score, keys.get("attn_logit_softcapping", 0))
        back = np.arange(n)[:, None] - np.arange(n)
        score = np.where((back >= 0) & (back < window if windowed else True), score, -np.inf)
        p = np.exp(score - score.max(-1, keepdims=True))
        out = np.einsum("hij,jhd->ihd", p / p.sum(-1, keepdims=True), v).reshape(n, -1)
        out = linear(out, blk + "attn_output")
        if arch in GEMMAS: out = norm(out, w[blk + "post_attention_norm.weight"])
        x = x + residual * out
        h = norm(x, w[blk + "ffn_norm.weight"])
        if arch == "phi3":
            gate, up = np.split(linear(h, blk + "ffn_up"), 2, 1)
        else:
            gate, up = linear(h, blk + "ffn_gate"), linear(h, blk + "ffn_up")
        if arch in GEMMAS:
            gate = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate ** 3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        out = linear(gate * up, blk + "ffn_down")
        if arch in GEMMAS: out = norm(out, w[blk + "post_ffw_norm.weight"])
        x = x + residual * out
    logits = linear(norm(x, w["output_norm.weight"]), "token_embd" if spec["tied"] else "output")
    return cap(logits / keys.get("logit_scale", 1), keys.get("final_logit_softcapping", 0))


for seed, (arch, spec) in enumerate(MODELS.items()):
    keys, tensors = make(arch, spec, np.random.default_rng(seed))
    write(arch + ".gguf", arch, keys, tensors)
    ids = [(7 * i + 3) % VOCAB for i in range(N_TOKENS)]
    forward(arch, spec, keys, tensors, ids).astype("<f4").tofile(arch + ".f32")
