#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/logits: float64 logits of random models and of stories260K.

The random models are not stored. `instinfer synth` makes the same bytes from
the same options on every machine; the golden file keeps the options and the
sha256 of the model. Positions are thinned: every 16th and the last four.
"""

import argparse
import hashlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import numpy as np

import llama_float64

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))
import output_file  # noqa: E402
EVERY, LAST = 16, 4
SHORT, LONG = 40, 300  # tokens; LONG crosses several tiles of 64
BOS = 1

YARN = (
    *("--rope-scaling", "yarn", "--rope-factor", "4"),
    *("--rope-original", "64"),
)
GEMMA3 = (
    *("--arch", "gemma3", "--tied", "--rope-base", "1000000"),
    *("--rope-scaling", "linear", "--rope-factor", "8"),
)

# name: type, heads, KV heads, head_dim, width, ffn, tokens, flags. Together:
# four types, groups of 1, 2, 4, 8 query heads, head_dim 64, 80, 96, 128, rope
# divisors and tied output on and off, sizes that no vector width divides; then
# two or more of every architecture, with what only they have.
CASES = {
    "f32-mha-64": ("F32", 2, 2, 64, 96, 160, SHORT, ()),
    "f32-gqa2-80-rope": ("F32", 4, 2, 80, 72, 100, SHORT, ("--rope-freqs",)),
    "f32-gqa4-96-tied": ("F32", 4, 1, 96, 64, 96, SHORT, ("--tied",)),
    "f32-gqa8-128": ("F32", 8, 1, 128, 64, 96, SHORT, ()),
    "f16-mha-128-tied": ("F16", 2, 2, 128, 96, 130, SHORT, ("--tied",)),
    "f16-gqa2-96-rope": ("F16", 6, 3, 96, 100, 144, SHORT, ("--rope-freqs",)),
    "f16-gqa4-80": ("F16", 8, 2, 80, 128, 192, SHORT, ()),
    "f16-gqa8-64-rope-tied": (
        *("F16", 16, 2, 64, 128, 192, SHORT),
        ("--rope-freqs", "--tied"),
    ),
    "bf16-mha-80-rope": ("BF16", 3, 3, 80, 90, 170, SHORT, ("--rope-freqs",)),
    "bf16-gqa4-64-tied": ("BF16", 8, 2, 64, 128, 160, SHORT, ("--tied",)),
    "q8_0-mha-96": ("Q8_0", 2, 2, 96, 96, 160, SHORT, ()),
    "q8_0-gqa2-128-rope": (
        *("Q8_0", 4, 2, 128, 96, 160, SHORT),
        ("--rope-freqs",),
    ),
    "q8_0-gqa8-80-tied": ("Q8_0", 8, 1, 80, 128, 192, SHORT, ("--tied",)),
    "f16-gqa4-64-long": ("F16", 8, 2, 64, 128, 192, LONG, ()),
    "q8_0-gqa4-128-rope-long": (
        *("Q8_0", 4, 1, 128, 128, 192, LONG),
        ("--rope-freqs",),
    ),
    "llama-f32-linear": (
        *("F32", 4, 2, 64, 72, 100, SHORT),
        ("--rope-scaling", "linear", "--rope-factor", "4"),
    ),
    "llama-f16-yarn-rope": (
        *("F16", 4, 2, 64, 96, 160, LONG),
        (*YARN, "--rope-freqs"),
    ),
    "llama-f16-window": (
        *("F16", 4, 2, 64, 96, 160, LONG),
        ("--window", "90"),
    ),
    "qwen2-f16-gqa4-64-long": (
        *("F16", 8, 2, 64, 96, 160, LONG),
        ("--arch", "qwen2"),
    ),
    "qwen2-f32-mha-80-yarn-tied": (
        *("F32", 3, 3, 80, 90, 130, SHORT),
        ("--arch", "qwen2", "--tied", *YARN),
    ),
    "qwen3-bf16-gqa2-128-long": (
        *("BF16", 4, 2, 128, 96, 160, LONG),
        ("--arch", "qwen3"),
    ),
    "qwen3-q8_0-gqa8-64-tied": (
        *("Q8_0", 8, 1, 64, 96, 160, SHORT),
        ("--arch", "qwen3", "--tied"),
    ),
    "opt-f16-mha-64-tied-long": (
        *("F16", 4, 4, 64, 256, 320, LONG),
        ("--arch", "opt", "--tied", "--context", "400"),
    ),
    "opt-f32-mha-80": (
        *("F32", 3, 3, 80, 240, 170, SHORT),
        ("--arch", "opt", "--context", "41"),
    ),
    "phi3-f16-gqa2-96-window-long": (
        *("F16", 4, 2, 96, 96, 160, LONG),
        ("--arch", "phi3", "--window", "70"),
    ),
    "phi3-q8_0-mha-64-longrope-short": (
        *("Q8_0", 2, 2, 64, 96, 160, SHORT),
        ("--arch", "phi3", "--rope-original", "4096"),
    ),
    "phi3-f32-gqa4-80-longrope-long": (
        *("F32", 4, 1, 80, 72, 100, LONG),
        ("--arch", "phi3", "--rope-original", "128"),
    ),
    "gemma2-f16-gqa2-128-window-long": (
        *("F16", 4, 2, 128, 96, 160, LONG),
        ("--arch", "gemma2", "--tied", "--window", "50"),
    ),
    "gemma2-q8_0-gqa4-64-tied": (
        *("Q8_0", 4, 1, 64, 96, 160, SHORT),
        ("--arch", "gemma2", "--tied"),
    ),
    "gemma3-bf16-gqa2-96-window-linear": (
        *("BF16", 4, 2, 96, 96, 160, LONG),
        (*GEMMA3, "--window", "100", "--layers", "7"),
    ),
    "gemma3-f32-gqa4-64-window": (
        *("F32", 4, 1, 64, 72, 100, SHORT),
        ("--arch", "gemma3", "--tied", "--window", "7", "--layers", "6"),
    ),
}
LAYERS = 2
VOCABULARY = 267  # a few more than bytes, and odd

STORIES = "stories260K.gguf"
# "Once upon a time" and the 180 tokens that follow it greedily.
STORIES_TOKENS = ROOT / "tests/data/stories260K_llamacpp.json"


def kept_positions(count):
    kept = set(range(0, count, EVERY)) | set(range(count - LAST, count))
    return sorted(kept)


def synth_options(case, seed):
    kind, heads, kv_heads, head_dim, width, ffn, _, flags = case
    numbers = {
        "layers": LAYERS,
        "width": width,
        "heads": heads,
        "kv-heads": kv_heads,
        "head-dim": head_dim,
        "ffn": ffn,
        "vocab": VOCABULARY,
        "seed": seed,
    }
    options = ["--type", kind, *flags]
    for name, value in numbers.items():
        if f"--{name}" not in flags:
            options += [f"--{name}", str(value)]
    return options


def golden(model, tokens, store):
    """Saves the logits that are kept; returns what the index says of them."""
    # A cache holds K and V in half precision, which is part of the contract
    # and not an error of the engine; how far that leads is kept beside it.
    expected = llama_float64.logits(model, tokens, kv="f16")
    unrounded = llama_float64.logits(model, tokens, kv="f64")
    positions = kept_positions(len(tokens))
    with output_file.writing(store, "wb") as file:
        np.save(file, expected[positions].astype(np.float32))
    return {
        "tokens": tokens,
        "positions": positions,
        "logits": store.name,
        "rms_from_unrounded_kv": llama_float64.relative_rms(
            expected, unrounded
        ),
    }


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_case(number, name, instinfer, folder, out):
    case = CASES[name]
    options = synth_options(case, seed=1000 + number)
    path = folder / f"{name}.gguf"
    subprocess.run([instinfer, "synth", *options, "-o", path], check=True)
    dice = random.Random(number)
    tokens = [BOS]
    tokens += [int(dice.random() * VOCABULARY) for _ in range(case[6] - 1)]
    model = llama_float64.Model.load(path)
    entry = {"name": name, "synth": options, "sha256": sha256(path)}
    return entry | golden(model, tokens, out / f"{name}.npy")


def make_stories(path, out):
    tokens = json.loads(STORIES_TOKENS.read_text())["tokens"]
    entry = {"name": "stories260K", "model": path.name, "sha256": sha256(path)}
    model = llama_float64.Model.load(path)
    return entry | golden(model, tokens, out / "stories260K.npy")


def write_index(entries, path):
    """One line per case, so that changes can be read."""
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    output_file.write_text(path, f"[\n{lines}\n]\n")


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--instinfer", default=ROOT / "build/release/instinfer"
    )
    parser.add_argument(
        "--models",
        type=pathlib.Path,
        default=ROOT / "models",
        help="folder with stories260K.gguf",
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=ROOT / "tests/data/logits"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(CASES):
            place = pathlib.Path(folder)
            entries.append(
                make_case(number, name, options.instinfer, place, options.out)
            )
    entries.append(make_stories(options.models / STORIES, options.out))
    write_index(entries, options.out / "cases.json")
    for entry in entries:
        print(
            f"{entry['name']:24} {len(entry['tokens'])} tokens, "
            f"fp16 K,V move the logits by {entry['rms_from_unrounded_kv']:.1e}"
        )


if __name__ == "__main__":
    main()
