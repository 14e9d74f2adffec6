#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the logits of `instinfer` against those of a float64 reference.

The reference was computed by tools/reference and is kept in tests/data/logits.
Random models come from `instinfer synth`, which must make the very bytes that
the reference saw. Standard library only.
"""

import argparse
import array
import ast
import hashlib
import json
import math
import pathlib
import subprocess
import sys
import tempfile

# Relative rms. What fp32 arithmetic needs: a K that lands beside a rounding
# boundary of fp16 goes the other way now and then, and a few hundred positions
# of rope in fp32 make more of them. A missing epsilon shows as 1e-3.
LARGEST_RMS = 3e-4
# Of any logit of stories260K, whose logits reach 30.
LARGEST_DIFFERENCE = 1e-2

# Small groups, so that the drive programs rows even of short prompts.
ENGINE_OPTIONS = ("--group", "16")


def load_npy(path):
    """A two-dimensional float32 .npy file as a list of rows."""
    raw = path.read_bytes()
    if raw[:6] != b"\x93NUMPY":
        raise ValueError(f"{path}: not a .npy file")
    size = 2 if raw[6] == 1 else 4
    start = 8 + size + int.from_bytes(raw[8 : 8 + size], "little")
    header = ast.literal_eval(raw[8 + size : start].decode("latin1").strip())
    if header["descr"] != "<f4" or header["fortran_order"]:
        raise ValueError(f"{path}: not float32 in C order")
    rows, columns = header["shape"]
    values = array.array("f", raw[start:])
    if sys.byteorder == "big":
        values.byteswap()
    if len(values) != rows * columns:
        raise ValueError(f"{path}: {len(values)} values for {rows} x {columns}")
    return [values[i * columns : (i + 1) * columns] for i in range(rows)]


def distance(got, expected):
    """Relative rms and the largest difference; NaN counts as infinite."""
    square = worst = reference = 0.0
    for row, wanted in zip(got, expected, strict=True):
        for a, b in zip(row, wanted, strict=True):
            if not math.isfinite(a):
                return math.inf, math.inf
            square += (a - b) ** 2
            reference += b * b
            worst = max(worst, abs(a - b))
    return math.sqrt(square / reference), worst


class Checker:
    def __init__(self, instinfer, data, models, folder):
        self.instinfer = instinfer
        self.data = data
        self.models = models
        self.folder = folder

    def model_of(self, case):
        """The model's file, made when it is a random one."""
        if "model" in case:
            return self.models / case["model"]
        path = self.folder / f"{case['name']}.gguf"
        self.run("synth", *case["synth"], "-o", path)
        return path

    def run(self, *arguments):
        subprocess.run([self.instinfer, *map(str, arguments)], check=True)

    def logits(self, model, tokens):
        output = self.folder / "logits.npy"
        ids = ",".join(map(str, tokens))
        place = ("--kv", self.folder, *ENGINE_OPTIONS)
        self.run(
            *("logits", "-m", model, "--tokens", ids, "--all"),
            *("-o", output, *place),
        )
        return load_npy(output)

    def check(self, case):
        """A line that says what was found, and whether it is good."""
        model = self.model_of(case)
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        if digest != case["sha256"]:
            return f"the model is another one: sha256 {digest}", False
        got = self.logits(model, case["tokens"])
        if len(got) != len(case["tokens"]):
            return f"{len(got)} rows for {len(case['tokens'])} tokens", False
        expected = load_npy(self.data / case["logits"])
        kept = [got[position] for position in case["positions"]]
        rms, worst = distance(kept, expected)
        text = f"rms {rms:.1e} relative, largest difference {worst:.1e}"
        if "model" in case:
            return text, worst <= LARGEST_DIFFERENCE and rms <= LARGEST_RMS
        return text, rms <= LARGEST_RMS


def parse_arguments(arguments):
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("instinfer", type=pathlib.Path)
    parser.add_argument(
        "--data", type=pathlib.Path, default=root / "tests/data/logits"
    )
    parser.add_argument(
        "--models", type=pathlib.Path, default=root / "models"
    )
    parser.add_argument("--only", help="cases with this in their name")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    index = options.data / "cases.json"
    verdicts = []
    for case in json.loads(index.read_text()):
        if options.only and options.only not in case["name"]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            checker = Checker(
                options.instinfer.resolve(),
                options.data,
                options.models,
                pathlib.Path(folder),
            )
            try:
                text, good = checker.check(case)
            except (subprocess.CalledProcessError, ValueError, OSError) as error:
                text, good = str(error), False
        verdicts.append(good)
        mark = "ok" if good else "FAILED"
        print(f"{mark:7}{case['name']:36}{text}", flush=True)
    return 0 if verdicts and all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
