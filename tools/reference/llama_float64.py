#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Decoder-only models in float64: what logits are held against.

Written for reading, not for speed: one function per formula, every position at
once, no cache. It shares no code with the engine; the file format is read by
the `gguf` package. An architecture is a few facts in TRAITS beside what the
tensors and keys of a file show; what it does not know it refuses.
"""

import argparse
import json
import pathlib
import sys
from dataclasses import dataclass

import gguf
import numpy as np

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import output_file  # noqa: E402

GATED = "ffn_gate ffn_up ffn_down".split()
SPLIT = "attn_q attn_k attn_v attn_output".split()


@dataclass
class Traits:
    """What an architecture is that its files do not say."""

    tensors: list  # of a layer; with a bias where that is part of the name
    extra: tuple = ()  # tensors beside the embeddings that a file may have
    halves: bool = True  # rope turns i with i + dims / 2, not 2i with 2i + 1
    activation: str = "silu"
    layer_norm: bool = False
    scaled_embeddings: bool = False
    window: int = 0  # default
    period: int = 0  # every so many layers one sees everything; default
    window_base: float = 0.0  # rope base of layers with a window


def biased(names):
    return [name + kind for name in names for kind in ("", ".bias")]


NORMS = ["attn_norm", "ffn_norm"]
POST_NORMS = ["post_attention_norm", "post_ffw_norm"]
QK_NORMS = ["attn_q_norm", "attn_k_norm"]
TRAITS = {
    "llama": Traits(
        NORMS + SPLIT + GATED, extra=("rope_freqs",), halves=False
    ),
    "qwen2": Traits(NORMS + biased(SPLIT[:3]) + SPLIT[3:] + GATED),
    "qwen3": Traits(NORMS + QK_NORMS + SPLIT + GATED),
    "phi3": Traits(
        NORMS + ["attn_qkv", "attn_output", "ffn_up", "ffn_down"],
        extra=("rope_factors_long", "rope_factors_short"),
    ),
    "gemma2": Traits(
        NORMS + POST_NORMS + SPLIT + GATED,
        activation="gelu",
        scaled_embeddings=True,
        window=4096,
        period=2,
    ),
    "gemma3": Traits(
        NORMS + POST_NORMS + QK_NORMS + SPLIT + GATED,
        activation="gelu",
        scaled_embeddings=True,
        period=6,
        window_base=10000.0,
    ),
    "opt": Traits(
        biased(NORMS + SPLIT + ["ffn_up", "ffn_down"]),
        extra=("position_embd", "output_norm.bias"),
        activation="relu",
        layer_norm=True,
    ),
}


@dataclass
class Config:
    traits: Traits
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    epsilon: float
    rope_dims: int
    rope_base: float
    rope_window_base: float
    scaling: str
    factor: float
    original: int
    attention: float  # multiplies cosines and sines
    fast: float  # yarn: turns within the original context
    slow: float
    window: int
    period: int  # every so many layers one sees everything
    score_cap: float
    logit_cap: float

    def layer_window(self, layer):
        seeing_all = self.period and (layer + 1) % self.period == 0
        return 0 if seeing_all else self.window


class Model:
    """Hyper-parameters and dequantised weights of a GGUF file."""

    def __init__(self, config, weights):
        self.config = config
        self.weights = weights  # name without ".weight" -> float64 array

    @classmethod
    def load(cls, path):
        reader = gguf.GGUFReader(path)
        config = read_config(reader)
        weights = {
            tensor.name.removesuffix(".weight"): dequantise(tensor)
            for tensor in reader.tensors
        }
        check_tensors(config, weights)
        return cls(config, weights)


def read_config(reader):
    def key(name, default=None):
        field = reader.get_field(name)
        value = default if field is None else field.contents()
        if value is None:
            raise SystemExit(f"the file has no {name}")
        return value

    architecture = key("general.architecture")
    if architecture not in TRAITS:
        raise SystemExit(f"architecture {architecture} is not supported")
    traits = TRAITS[architecture]

    def own(name, default=None):
        return key(f"{architecture}.{name}", default)

    heads = own("attention.head_count")
    width = own("embedding_length")
    head_dim = own("attention.key_length", width // heads)
    if own("attention.value_length", head_dim) != head_dim:
        raise SystemExit("keys and values of different length")
    scaling = own("rope.scaling.type", "none")
    if scaling not in ("none", "linear", "yarn", "longrope"):
        raise SystemExit(f"rope scaling {scaling} is not supported")
    kind = "norm" if traits.layer_norm else "norm_rms"
    return Config(
        traits=traits,
        layers=own("block_count"),
        width=width,
        heads=heads,
        kv_heads=own("attention.head_count_kv", heads),
        head_dim=head_dim,
        context=own("context_length"),
        epsilon=float(own(f"attention.layer_{kind}_epsilon")),
        rope_dims=own("rope.dimension_count", head_dim),
        rope_base=float(own("rope.freq_base", 10000.0)),
        rope_window_base=traits.window_base
        and float(own("rope.freq_base_swa", traits.window_base)),
        scaling=scaling,
        factor=float(own("rope.scaling.factor", 1.0)),
        original=own(
            "rope.scaling.original_context_length", own("context_length")
        ),
        attention=float(own("rope.scaling.attn_factor", 1.0)),
        fast=float(own("rope.scaling.yarn_beta_fast", 32.0)),
        slow=float(own("rope.scaling.yarn_beta_slow", 1.0)),
        window=own("attention.sliding_window", traits.window),
        period=traits.period
        and own("attention.sliding_window_pattern", traits.period),
        score_cap=float(own("attn_logit_softcapping", 0.0)),
        logit_cap=float(own("final_logit_softcapping", 0.0)),
    )


def dequantise(tensor):
    """A tensor as float64, rows first.

    Block types too have one fp32 value for each element: products of scales
    and codes are exact in fp32, so only adding a minimum rounds, once.
    """
    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    shape = [int(n) for n in reversed(tensor.shape)]
    return values.astype(np.float64).reshape(shape)


def check_tensors(config, weights):
    """A tensor that would be ignored or is missing makes the result wrong."""
    needed = {"token_embd", "output_norm"}
    for layer in range(config.layers):
        needed |= {f"blk.{layer}.{name}" for name in config.traits.tensors}
    known = needed | {"output"} | set(config.traits.extra)
    if set(weights) - known or needed - set(weights):
        odd = sorted((set(weights) - known) | (needed - set(weights)))
        raise SystemExit(f"unknown or missing tensors: {', '.join(odd)}")


def rms_norm(x, weight, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def layer_norm(x, weight, bias, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * weight + bias


def norm(x, part, name, epsilon):
    if f"{name}.bias" in part:
        return layer_norm(x, part[name], part[f"{name}.bias"], epsilon)
    return rms_norm(x, part[name], epsilon)


def yarn_kept(config):
    """The share of each pair's frequency that yarn leaves alone."""

    def pair_of(turns):
        wavelength = config.original / (turns * 2 * np.pi)
        return (
            config.rope_dims
            * np.log(wavelength)
            / (2 * np.log(config.rope_base))
        )

    low = max(np.floor(pair_of(config.fast)), 0)
    high = min(np.ceil(pair_of(config.slow)), config.rope_dims - 1)
    pairs = np.arange(config.rope_dims // 2)
    return 1 - np.clip((pairs - low) / max(high - low, 0.001), 0, 1)


def rope_table(config, weights, positions, windowed=False):
    """Angle of each (position, pair), and what multiplies the rotation."""
    pairs = np.arange(config.rope_dims // 2)
    exponent = -2.0 * pairs / config.rope_dims
    if windowed and config.rope_window_base:
        return positions[:, None] * config.rope_window_base**exponent, 1.0
    divisors = weights.get("rope_freqs", np.ones(len(pairs)))
    if "rope_factors_long" in weights:
        beyond = config.context > config.original
        divisors = weights[f"rope_factors_{'long' if beyond else 'short'}"]
    frequency = config.rope_base**exponent / divisors
    size = config.attention
    if config.scaling == "linear":
        frequency = frequency / config.factor
    if config.scaling == "yarn":
        kept = yarn_kept(config)
        frequency = frequency * (kept + (1 - kept) / config.factor)
        size *= 1 + 0.1 * np.log(config.factor)
    return positions[:, None] * frequency[None, :], size


def rope(x, table, halves):
    """Rotates pairs of elements of (positions, heads, head_dim)."""
    angles, size = table
    rotated = x.copy()
    pairs = angles.shape[1]
    cos, sin = size * np.cos(angles)[:, None], size * np.sin(angles)[:, None]
    if halves:
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    else:
        first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    a, b = x[..., first], x[..., second]
    rotated[..., first] = a * cos - b * sin
    rotated[..., second] = a * sin + b * cos
    return rotated


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def soft_cap(x, cap):
    return cap * np.tanh(x / cap) if cap else x


def attention(q, k, v, cap=0.0, window=0):
    """Causal; (positions, heads, head_dim) each, k and v with fewer heads."""
    positions, heads, head_dim = q.shape
    group = heads // k.shape[1]
    out = np.empty_like(q)
    age = np.arange(positions)[:, None] - np.arange(positions)[None, :]
    hidden = (age < 0) | ((age >= window) if window else False)
    for head in range(heads):
        score = q[:, head] @ k[:, head // group].T / np.sqrt(head_dim)
        score = soft_cap(score, cap)
        score[hidden] = -np.inf
        out[:, head] = softmax(score) @ v[:, head // group]
    return out


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    """The tanh form."""
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(inner))


def relu(x):
    return np.maximum(x, 0)


ACTIVATIONS = {"silu": silu, "gelu": gelu, "relu": relu}


def to_f16(x):
    return x.astype(np.float32).astype(np.float16).astype(np.float64)


def linear(x, part, name):
    return x @ part[name].T + part.get(f"{name}.bias", 0.0)


def query_key_value(c, part, h):
    if "attn_qkv" in part:
        q_rows, kv_rows = c.heads * c.head_dim, c.kv_heads * c.head_dim
        ends = [q_rows, q_rows + kv_rows]
        split = np.split(linear(h, part, "attn_qkv"), ends, axis=-1)
    else:
        split = [linear(h, part, f"attn_{name}") for name in "qkv"]
    q, k, v = (x.reshape(len(h), -1, c.head_dim) for x in split)
    if "attn_q_norm" in part:
        q = rms_norm(q, part["attn_q_norm"], c.epsilon)
        k = rms_norm(k, part["attn_k_norm"], c.epsilon)
    return q, k, v


def feed_forward(c, part, h):
    activation = ACTIVATIONS[c.traits.activation]
    if "ffn_gate" in part:
        h = activation(linear(h, part, "ffn_gate")) * linear(h, part, "ffn_up")
    elif "attn_qkv" in part:
        gate, up = np.split(linear(h, part, "ffn_up"), 2, axis=-1)
        h = activation(gate) * up
    else:
        h = activation(linear(h, part, "ffn_up"))
    return linear(h, part, "ffn_down")


def embed(c, w, tokens, positions):
    x = w["token_embd"][np.asarray(tokens)]
    if c.traits.scaled_embeddings:
        x = x * np.sqrt(c.width)
    if "position_embd" in w:
        x = x + w["position_embd"][2 + positions]
    return x


def logits(model, tokens, kv="f64"):
    """Logits (positions, vocabulary). kv "f16" rounds K, V as a cache does."""
    c = model.config
    stored = to_f16 if kv == "f16" else lambda values: values

    def attend(layer, q, k, v):
        window = c.layer_window(layer)
        return attention(q, stored(k), stored(v), c.score_cap, window)

    return forward(model, tokens, 0, attend)


def forward(model, tokens, first, attend):
    """Logits of tokens at positions `first` and on. attend(layer, q, k, v)
    gets what these tokens have, (tokens, heads, head_dim) each."""
    c, w = model.config, model.weights
    positions = first + np.arange(len(tokens))
    turned = "position_embd" not in w
    x = embed(c, w, tokens, positions)
    for layer in range(c.layers):
        part = {
            name: w[f"blk.{layer}.{name}"] for name in c.traits.tensors
        }
        window = c.layer_window(layer)
        h = norm(x, part, "attn_norm", c.epsilon)
        q, k, v = query_key_value(c, part, h)
        if turned:
            table = rope_table(c, w, positions, windowed=window > 0)
            q = rope(q, table, c.traits.halves)
            k = rope(k, table, c.traits.halves)
        a = attend(layer, q, k, v)
        a = linear(a.reshape(len(tokens), -1), part, "attn_output")
        if "post_attention_norm" in part:
            a = norm(a, part, "post_attention_norm", c.epsilon)
        x = x + a
        h = feed_forward(c, part, norm(x, part, "ffn_norm", c.epsilon))
        if "post_ffw_norm" in part:
            h = norm(h, part, "post_ffw_norm", c.epsilon)
        x = x + h
    x = norm(x, w, "output_norm", c.epsilon)
    return soft_cap(x @ w.get("output", w["token_embd"]).T, c.logit_cap)


def relative_rms(got, expected):
    """Root mean square of the difference over that of what is expected."""
    difference = np.asarray(got, np.float64) - expected
    return float(np.sqrt((difference**2).mean() / (expected**2).mean()))


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--tokens", required=True, help="ids: 1,2,3")
    parser.add_argument(
        "--kv",
        choices=("f16", "f64"),
        default="f64",
        help="f16 rounds K and V to half precision, as the KV cache does",
    )
    parser.add_argument("--all", action="store_true", help="all positions")
    parser.add_argument("-o", "--output", help="a .npy file; else JSON")
    parser.add_argument(
        "--compare",
        metavar="FILE.npy",
        help="print the distance of these logits instead",
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    if options.output and not options.compare:
        inputs = [options.model]
        with output_file.writing(options.output, "wb", inputs) as file:
            run(options, file)
    else:
        run(options, None)


def run(options, output):
    tokens = [int(token) for token in options.tokens.split(",")]
    result = logits(Model.load(options.model), tokens, options.kv)
    if not options.all:
        result = result[-1:]
    if options.compare:
        other = np.load(options.compare).reshape(result.shape)
        worst = np.abs(other - result).max()
        print(f"rms {relative_rms(other, result):.3e} relative,", end=" ")
        print(f"largest difference {worst:.3e}")
    elif output:
        np.save(output, result)
    else:
        json.dump(result.tolist(), sys.stdout)
        print()


if __name__ == "__main__":
    main()
