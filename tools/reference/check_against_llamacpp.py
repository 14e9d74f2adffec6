#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds `instinfer logits` against llama.cpp on random models.

`instinfer synth` writes a model of every architecture that llama.cpp knows
too, both read it and the same text, and the logits of the last position are
compared. llama.cpp keeps K and V in half precision as we do, and rounds some
of what lies between as well, so this is a check of meaning, not of precision.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

TEXT = (
    "The quick brown fox jumps over the lazy dog and then walks home to write"
    " a long letter about it, in which nothing of importance is said at all;"
    " still, it pleases the reader."
)
LARGEST_RMS = 2e-3  # relative
LINEAR = "--rope-scaling linear --rope-factor 4"
YARN = "--rope-scaling yarn --rope-factor 4 --rope-original 64"
# llama.cpp pays no heed to the window of phi3 and llama, so those have none.
CASES = {
    "llama": "",
    "llama-linear": LINEAR,
    "llama-yarn-freqs": f"{YARN} --rope-freqs",
    "qwen2": "--arch qwen2",
    "qwen2-yarn": f"--arch qwen2 {YARN}",
    "qwen3": "--arch qwen3 --head-dim 64",
    "phi3": "--arch phi3",
    "phi3-long": "--arch phi3 --rope-original 128",
    "phi3-short": "--arch phi3 --rope-original 512",
    "gemma2": "--arch gemma2 --head-dim 64 --tied --window 50",
    "gemma3": "--arch gemma3 --head-dim 64 --tied --window 50 --layers 7",
    "gemma3-linear": f"--arch gemma3 --tied --window 50 --layers 7 {LINEAR}",
}
SHAPE = "--width 128 --ffn 192 --heads 4 --kv-heads 2 --type F32 --context 512"


def run(*arguments):
    subprocess.run(
        [*map(str, arguments)],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def distance(instinfer, llama_debug, name, folder):
    model, ours = folder / f"{name}.gguf", folder / "ours.npy"
    shape = SHAPE.split()
    if "--head-dim" not in CASES[name]:
        shape += ["--head-dim", "32"]
    run(instinfer, "synth", *shape, *CASES[name].split(), "-o", model)
    run(
        *(instinfer, "logits", "-m", model, "-p", TEXT, "-o", ours),
        *("--kv", "ram:64M", "--group", "16"),
    )
    run(
        *(llama_debug, "-m", model, "-p", TEXT, "-c", 512, "-ngl", 0),
        *("-fa", "off", "--save-logits", "--logits-output-dir", folder),
    )
    ours = np.load(ours).reshape(-1)
    theirs = np.fromfile(folder / f"llamacpp-{name}.bin", np.float32)
    theirs = theirs[-len(ours) :]
    rms = np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean())
    return rms, ours.argmax() == theirs.argmax()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instinfer", type=pathlib.Path, required=True)
    parser.add_argument("--llama-debug", type=pathlib.Path, required=True)
    options = parser.parse_args(arguments)
    passed = True
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            rms, same = distance(
                options.instinfer.resolve(),
                options.llama_debug.resolve(),
                name,
                pathlib.Path(folder),
            )
        good = rms <= LARGEST_RMS and same
        passed &= good
        print(
            f"{name:18} rms {rms:.1e} relative,"
            f" {'same' if same else 'another'} largest logit:"
            f" {'ok' if good else 'FAILED'}"
        )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
