#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the two references of SparF against each other.

sparf_float64.py (NumPy, inside a model) and tests/reference/sparf_float64.c
(one KV head, for the drive's tests) were written apart from the paper's
Algorithm 1. On random problems they must choose the same tokens and give the
same outputs. Exit status 0 when they do. Needs NumPy and a C compiler.
"""

import ctypes
import pathlib
import subprocess
import tempfile

import numpy as np

from sparf_float64 import Sparf, sparf

SOURCE = pathlib.Path(__file__).resolve().parents[2] / "tests/reference"
DOUBLES = ctypes.POINTER(ctypes.c_double)
FLAGS = ctypes.POINTER(ctypes.c_bool)


class Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("head_dim", "group", "tokens")),
        *((name, ctypes.c_uint32) for name in ("channels", "keep", "local")),
        *((name, ctypes.c_double) for name in ("scale", "softcap")),
        *((name, DOUBLES) for name in ("q", "k", "v")),
    ]


class Answer(ctypes.Structure):
    _fields_ = [
        *((name, DOUBLES) for name in ("out", "lse", "alpha", "captured")),
        *(("rank", DOUBLES), ("channel", FLAGS), ("token", FLAGS)),
        *((name, ctypes.c_double) for name in "abcd"),
    ]


def compile_reference(folder):
    path = pathlib.Path(folder, "sparf.so")
    source = SOURCE / "sparf_float64.c"
    command = ["cc", "-O2", "-shared", "-fPIC", source, "-o", path, "-lm"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(path)


def solve_in_c(library, settings, q, k, v):
    group, head_dim = q.shape
    arrays = [np.ascontiguousarray(x, np.float64) for x in (q, k, v)]
    problem = Problem(
        head_dim=head_dim,
        group=group,
        tokens=len(k),
        channels=settings.r(head_dim),
        keep=settings.k(len(k)),
        local=settings.local,
        scale=1 / np.sqrt(head_dim),
        **{
            name: x.ctypes.data_as(DOUBLES)
            for name, x in zip("qkv", arrays)
        },
    )
    answer = Answer()
    library.sparf_answer_alloc(ctypes.byref(answer), ctypes.byref(problem))
    library.sparf_solve(ctypes.byref(problem), ctypes.byref(answer))
    out = np.ctypeslib.as_array(answer.out, (group, head_dim)).copy()
    captured = np.ctypeslib.as_array(answer.captured, (group,)).copy()
    token = np.ctypeslib.as_array(answer.token, (len(k),)).copy()
    library.sparf_answer_free(ctypes.byref(answer))
    return out, captured, np.flatnonzero(token)


def main():
    random = np.random.default_rng(3)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        library = compile_reference(folder)
        for number in range(400):
            group = int(random.choice([1, 2, 4, 8]))
            head_dim = int(random.choice([8, 20, 64, 80, 128]))
            length = int(random.integers(1, 300))
            settings = Sparf(
                channels=int(random.integers(0, head_dim + 1)),
                tokens=int(random.choice([0, 1, 7, 64, 1000])),
                divisor=int(random.integers(1, 20)),
                local=int(random.choice([0, 0, 1, 16, 400])),
            )
            q = 2 * random.normal(size=(group, head_dim))
            k = random.normal(size=(length, head_dim))
            v = random.normal(size=(length, head_dim))
            if number % 4 == 0:  # ties
                q, k = np.round(q), np.round(k)
            ours = sparf(settings, q, k, v)
            theirs = solve_in_c(library, settings, q, k, v)
            if not np.array_equal(ours[2], theirs[2]):
                raise SystemExit(f"problem {number}: other tokens chosen")
            for a, b in zip(ours[:2], theirs[:2]):
                worst = max(worst, np.abs(a - b).max())
    print(f"400 problems, largest difference {worst:.1e}")
    if worst > 1e-12:
        raise SystemExit("they differ")


if __name__ == "__main__":
    main()
