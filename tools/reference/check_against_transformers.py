#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds llama_float64.py against Hugging Face Transformers.

Random models of every architecture are made by Transformers in float64 and
written as GGUF files in F32, those of llama with Q and K permuted, because GGUF
rotates neighbouring elements there where Transformers rotates element i with
i + head_dim / 2. The two must then agree to the rounding of float64, which
shows norms, biases, activations, rope and its scaling, soft caps, windows, GQA,
head_dim and tying to be what Transformers means by them.

Transformers takes norms, softmax and rope in float32 whatever the model's
type, so each case runs twice: as Transformers is, and with every mention of
float32 in it standing for float64.
"""

import contextlib
import math
import pathlib
import sys
import tempfile
from dataclasses import dataclass
from unittest import mock

import gguf
import numpy as np
import torch
import transformers

import llama_float64

# Of a logit, where the logits have an rms of 1.5.
LARGEST_AS_IT_IS = 1e-4
LARGEST_IN_FLOAT64 = 1e-8  # GGUF keeps the epsilon of the norms in F32
LARGEST_WITH_F32_DIVISORS = 1e-4  # the llama3 case: GGUF keeps them in F32

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}

F32 = torch.float32
WIDTH, FFN, VOCABULARY, POSITIONS = 256, 384, 300, 150
CONTEXT = 1024
# As the file states it; any number does, it only has to be the same.
LONGROPE_ATTENTION = 1.25


@dataclass
class Case:
    arch: str
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool = False
    base: float = 10000.0
    rope: str = ""  # a scaling
    original: int = 0  # context before scaling
    factor: float = 1.0
    window: int = 0
    layers: int = 3
    context: int = CONTEXT


CASES = (
    Case("llama", 4, 4, 64),
    Case("llama", 8, 2, 80, tied=True, base=1e6),
    Case("llama", 8, 1, 96),
    Case("llama", 2, 1, 128, base=500000.0, rope="llama3"),
    Case("llama", 4, 2, 64, rope="linear", factor=4.0),
    Case("llama", 4, 2, 64, rope="yarn", factor=4.0, original=64),
    Case("qwen2", 8, 2, 32, base=1e6),
    Case("qwen2", 4, 4, 64, tied=True, rope="yarn", factor=8.0, original=100),
    Case("qwen3", 4, 2, 128, base=1e6),
    Case("qwen3", 8, 1, 80, tied=True),
    Case("phi3", 4, 2, 64, window=40),
    Case("phi3", 8, 8, 32, rope="longrope", original=128),
    Case("phi3", 8, 8, 32, rope="longrope", original=512, context=512),
    Case("gemma2", 4, 2, 96, tied=True, window=50),
    Case("gemma2", 8, 1, 64, tied=True, window=4096),
    Case("gemma3", 4, 1, 96, tied=True, window=50, base=1e6, layers=7),
    Case(
        *("gemma3", 8, 4, 64, True, 1e6, "linear"),
        factor=8.0,
        window=20,
        layers=6,
    ),
    Case("opt", 4, 4, 64, tied=True),
    Case("opt", 8, 8, 32, tied=True),
)

CLASSES = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "phi3": "Phi3",
    "gemma2": "Gemma2",
    "gemma3": "Gemma3",
    "opt": "OPT",
}


def longrope_factors(case):
    pairs = case.head_dim // 2
    short = np.linspace(1, 1.5, pairs, dtype=np.float32)
    long = np.linspace(1, 20, pairs, dtype=np.float32)
    return short.tolist(), long.tolist()


def rope_parameters(case):
    plain = {"rope_type": "default", "rope_theta": case.base}
    scaled = {
        "": plain,
        "llama3": LLAMA3_ROPE,
        "linear": plain | {"rope_type": "linear", "factor": case.factor},
        "yarn": plain
        | {
            "rope_type": "yarn",
            "factor": case.factor,
            "original_max_position_embeddings": case.original,
        },
    }
    if case.rope == "longrope":
        short, long = longrope_factors(case)
        return plain | {
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "attention_factor": LONGROPE_ATTENTION,
            "factor": CONTEXT / case.original,
            "original_max_position_embeddings": case.original,
        }
    if case.arch == "gemma3":
        return {
            "full_attention": scaled[case.rope],
            "sliding_attention": plain | {"rope_theta": 10000.0},
        }
    return scaled[case.rope]


def make_config(case):
    if case.arch == "opt":
        return transformers.OPTConfig(
            hidden_size=WIDTH,
            word_embed_proj_dim=WIDTH,
            ffn_dim=FFN,
            num_hidden_layers=case.layers,
            num_attention_heads=case.heads,
            vocab_size=VOCABULARY,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=case.tied,
            attn_implementation="eager",
        )
    more = {}
    if case.window:
        more["sliding_window"] = case.window
    if case.arch == "phi3":
        more |= {"pad_token_id": 0, "sliding_window": case.window or None}
        more["original_max_position_embeddings"] = case.original or CONTEXT
    if case.arch in ("gemma2", "gemma3"):
        more["query_pre_attn_scalar"] = case.head_dim
    if case.arch == "gemma2":
        # Small enough to matter.
        more |= {
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        }
    name = CLASSES[case.arch]
    name = "Gemma3Text" if name == "Gemma3" else name
    return getattr(transformers, f"{name}Config")(
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads,
        head_dim=case.head_dim,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=case.tied,
        rope_parameters=rope_parameters(case),
        attn_implementation="eager",
        **more,
    )


def make_model(case):
    torch.manual_seed(7)
    kind = getattr(transformers, f"{CLASSES[case.arch]}ForCausalLM")
    model = kind(make_config(case))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Large enough for attention to be far from uniform; values that
            # F32 holds exactly, so the file loses nothing.
            scale = 1.5 / math.sqrt(weight.shape[-1])
            random = torch.randn(weight.shape, dtype=F32)
            if weight.dim() == 1:
                bias = name.endswith("bias")
                values = (0 if bias else 1) + 0.2 * random
                # What gemma adds to 1, so that the sum is exact.
                gemma = case.arch.startswith("gemma")
                weight.copy_(values - 1 if gemma else values)
            else:
                weight.copy_(scale * random)
    return model.to(torch.float64).eval()


def llama3_divisors(head_dim):
    """rope_freqs.weight of a GGUF file for the llama3 rope of Transformers."""
    r = LLAMA3_ROPE
    original = r["original_max_position_embeddings"]
    divisors = []
    for i in range(head_dim // 2):
        wavelength = 2 * math.pi * r["rope_theta"] ** (2 * i / head_dim)
        turns = original / wavelength
        smooth = (turns - r["low_freq_factor"]) / (
            r["high_freq_factor"] - r["low_freq_factor"]
        )
        share = min(max(smooth, 0.0), 1.0)
        divisors.append(1 / ((1 - share) / r["factor"] + share))
    return np.array(divisors, dtype=np.float32)


def interleave(weight, heads):
    """Rows i and i + head_dim / 2 of each head become 2i and 2i + 1."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.out_proj": "attn_output",
    "self_attn_layer_norm": "attn_norm",
    "final_layer_norm": "ffn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
}
GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GLOBAL_NAMES = {
    "embed_tokens": "token_embd",
    "embed_positions": "position_embd",
    "norm": "output_norm",
    "final_layer_norm": "output_norm",
}


def gguf_tensors(model, case):
    gemma = case.arch.startswith("gemma")
    names = NAMES | (GEMMA_NAMES if gemma else {})
    for name, value in model.state_dict().items():
        value = value.numpy().astype(np.float32)
        name, kind = name.rsplit(".", 1)
        if gemma and name.endswith("norm"):
            value = value + 1  # the file holds what is multiplied
        if name == "lm_head":
            if not case.tied:
                yield "output.weight", value
            continue
        name = name.removeprefix("model.").removeprefix("decoder.")
        if not name.startswith("layers."):
            yield f"{GLOBAL_NAMES[name]}.{kind}", value
            continue
        _, layer, name = name.split(".", 2)
        ours = names[name]
        if case.arch == "llama" and ours in ("attn_q", "attn_k"):
            heads = case.heads if ours == "attn_q" else case.kv_heads
            value = interleave(value, heads)
        yield f"blk.{layer}.{ours}.{kind}", value
    if case.rope == "llama3":
        yield "rope_freqs.weight", llama3_divisors(case.head_dim)
    if case.rope == "longrope":
        for length, factors in zip(
            ("short", "long"), longrope_factors(case), strict=True
        ):
            factors = np.array(factors, np.float32)
            yield f"rope_factors_{length}.weight", factors


def write_gguf(path, model, case):
    writer = gguf.GGUFWriter(path, case.arch)
    writer.add_context_length(case.context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(case.layers)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(case.heads)
    if case.arch == "opt":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_head_count_kv(case.kv_heads)
        writer.add_key_length(case.head_dim)
        writer.add_value_length(case.head_dim)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(case.head_dim)
        writer.add_rope_freq_base(case.base)
    if case.window:
        writer.add_sliding_window(case.window)
    if case.arch == "gemma2":
        writer.add_attn_logit_softcapping(2.0)
        writer.add_final_logit_softcapping(3.0)
    if case.rope in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(case.rope))
        writer.add_rope_scaling_factor(case.factor)
    if case.original:
        writer.add_rope_scaling_orig_ctx_len(case.original)
    if case.rope == "longrope":
        writer.add_rope_scaling_attn_factors(LONGROPE_ATTENTION)
    for name, value in gguf_tensors(model, case):
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_float64():
    """Transformers without its float32 steps."""
    patches = contextlib.ExitStack()
    for place, name, value in (
        (torch, "float32", torch.float64),
        (torch, "float", torch.float64),
        (torch.Tensor, "float", torch.Tensor.double),
    ):
        patches.enter_context(mock.patch.object(place, name, value))
    return patches


def largest_difference(case, folder):
    """The largest difference of a logit, and the rms of all."""
    model = make_model(case)
    path = folder / "model.gguf"
    write_gguf(path, model, case)
    random = np.random.default_rng(1)
    tokens = random.integers(0, VOCABULARY, POSITIONS).tolist()
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits[0].numpy()
    ours = llama_float64.logits(llama_float64.Model.load(path), tokens)
    return np.abs(ours - theirs).max(), np.sqrt((ours**2).mean())


def check(case, limit):
    with tempfile.TemporaryDirectory() as folder:
        difference, rms = largest_difference(case, pathlib.Path(folder))
    verdict = "ok" if difference <= limit else f"FAILED, limit {limit:.0e}"
    print(f"  largest difference {difference:.2e}", end=" ")
    print(f"at an rms of {rms:.3f}: {verdict}")
    return difference <= limit


def main():
    passed = True
    for case in CASES:
        print(case)
        passed &= check(case, LARGEST_AS_IT_IS)
        exact = case.rope != "llama3"
        with in_float64():
            limit = LARGEST_IN_FLOAT64 if exact else LARGEST_WITH_F32_DIVISORS
            passed &= check(case, limit)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
