#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/stories260K_sparf.txt: what stories260K says with SparF.

Greedy tokens of sparf_float64.py for several r, k and local. No other way of
rounding can be held to all of them: a text needs thousands of choices of
tokens, some closer than the least step of fp16, and K that falls beside a
rounding boundary of fp16 moves ranks by up to 1e-3. So a text is told by
REPLICAS beside the reference whose q, k and v are off by NOISE, ten times
what fp32 does to them, and kept while all of them agree, each leading by at
least LEAD. The file says of each text how close its choices were.
"""

import argparse
import pathlib
import sys

import numpy as np

import llama_float64 as reference
from sparf_float64 import Session, Sparf, generate

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import output_file  # noqa: E402

NOISE = 3e-6
REPLICAS = 8
LEAD = 0.01
COUNT = 200
STORY = [1, 403, 407, 261, 378]  # Once upon a time
# Of prompts: with each setting and kind the longest text is kept.
LENGTHS = ((5, 11, 17, 24, 31), (130, 150, 170, 190, 215), (256, 270, 290))
SETTINGS = (
    Sparf(),
    Sparf(channels=2),
    Sparf(channels=4),
    Sparf(channels=2, local=8),
    Sparf(channels=4, tokens=16, local=8),
    Sparf(channels=3, divisor=4, local=4),
    Sparf(channels=4, divisor=2),
    Sparf(channels=8),
    Sparf(channels=8, tokens=40),
    Sparf(channels=2, tokens=24, local=24),
    Sparf(channels=8, tokens=1000),
)


def prompts(model):
    """Beginnings of the story as dense attention tells it."""
    dense = Session(model, Sparf(channels=8, tokens=10**6))
    told, _ = generate([dense], STORY, 300)
    story = STORY + told
    return [[story[:n] for n in lengths] for lengths in LENGTHS]


def tell(model, settings, prompt):
    """The text as far as it can be relied on, and what there is to say."""
    sessions = [Session(model, settings)]
    for seed in range(REPLICAS):
        sessions.append(Session(model, settings, NOISE, seed))
    tokens, lead = generate(sessions, prompt, COUNT, LEAD)
    calls = np.array(sessions[0].calls or [1.0])
    captured = np.mean(sessions[0].captured) if sessions[0].captured else 1
    return tokens, (
        f"least lead {lead:.3f}, {len(calls)} choices, closest "
        f"{calls.min():.1e}, {(calls < 1e-3).sum()} closer than 1e-3, "
        f"captured {captured:.3f}"
    )


def parse_arguments(arguments):
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "-m",
        "--model",
        default=root / "models/stories260K.gguf",
    )
    parser.add_argument(
        "-o", "--output", default=root / "tests/data/stories260K_sparf.txt"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    model = reference.Model.load(options.model)
    lines = [
        "# tools/reference/make_sparf_goldens.py: r, k (0: by the divisor),",
        "# divisor, local, prompt tokens, generated tokens; then both. Kept",
        f"# while {REPLICAS} replicas with noise of {NOISE} agree, each token",
        f"# leading by {LEAD} or more.",
    ]
    for kind in prompts(model):
        for s in SETTINGS:
            told = [(*tell(model, s, prompt), prompt) for prompt in kind]
            tokens, said, prompt = max(told, key=lambda text: len(text[0]))
            print(f"{s}, {len(prompt)} + {len(tokens)} tokens: {said}")
            head = (s.channels, s.tokens, s.divisor, s.local)
            sizes = (len(prompt), len(tokens))
            lines.append("# " + said)
            for numbers in ((*head, *sizes), prompt, tokens):
                lines.append(" ".join(map(str, numbers)))
    text = "\n".join(lines) + "\n"
    output_file.write_text(options.output, text, [options.model])


if __name__ == "__main__":
    main()
