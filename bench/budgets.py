#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What DRAM for K and V is worth: decode and prefill of one model at one depth, with KV in memory, and
on a disk with a row cache of all of it, a half, an eighth and none, one after the other, memory first
and last. K and V of the depth are made up. Measures with `instinfer bench model`; on a quiet machine.

    bench/budgets.py build/release/instinfer MODEL.gguf --kv DIRECTORY --depth 8192
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile

SHARES = [("all", 1.0), ("1/2", 0.5), ("1/8", 0.125), ("none", 0.0)]


def kv_bytes(program, model, depth):
    out = subprocess.run([program, "bench", "model", "-m", model, "-p", "1", "-n", "0", "-r", "1",
                          "-t", "1", "--kv", "ram:256M"],
                         check=True, capture_output=True, text=True).stdout
    return int(re.search(r"KV (\d+) bytes per token", out)[1]) * depth


def measure(args, where, cache):
    with tempfile.NamedTemporaryFile(suffix=".csv") as table:
        command = [args.program, "bench", "model", "-m", args.model, "-d", str(args.depth),
                   "-p", str(args.prompt), "-n", str(args.tokens), "-r", str(args.rounds),
                   "-t", str(args.threads), "--kv", where, "--memory", args.memory,
                   "--made-up", "--csv", table.name]
        if cache is not None:
            command += ["--row-cache", str(cache) if cache else "off"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with open(table.name, newline="") as lines:
            return {row["test"]: row for row in csv.DictReader(lines)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--kv", required=True, help="a directory on the disk")
    parser.add_argument("--depth", type=int, default=8192)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory", default="4G")
    args = parser.parse_args()
    kv = kv_bytes(args.program, args.model, args.depth)
    room = args.depth + args.prompt + args.tokens
    ram = f"ram:{kv * room // args.depth * 2 // 2**20 + 256}M"
    rows = [("memory", measure(args, ram, None))]
    for name, share in SHARES:
        cache = int(kv * room / args.depth * share)
        rows.append((name, measure(args, args.kv, cache)))
    rows.append(("memory again", measure(args, ram, None)))
    print(f"depth {args.depth}, KV {kv / 2**20:.0f} MiB, {args.threads} threads\n")
    print("| cached | decode, tokens/s | of memory | read, MB/token | of KV "
          "| prefill, tokens/s | of memory | read, MB/token |")
    print("|---|---|---|---|---|---|---|---|")
    best = {test: max(float(r[test]["tokens_per_s"]) for n, r in rows if n.startswith("memory"))
            for test in ("decode", "prefill")}
    for name, row in rows:
        decode, prefill = row["decode"], row["prefill"]
        speed = [float(r["tokens_per_s"]) for r in (decode, prefill)]
        read = [float(r["flash_bytes_per_token"]) for r in (decode, prefill)]
        print(f"| {name} | {speed[0]:.2f} ({float(decode['least']):.2f} to {float(decode['most']):.2f}) "
              f"| {speed[0] / best['decode']:.2f} | {read[0] / 1e6:.1f} | {read[0] / kv:.2f} "
              f"| {speed[1]:.1f} ({float(prefill['least']):.1f} to {float(prefill['most']):.1f}) "
              f"| {speed[1] / best['prefill']:.2f} | {read[1] / 1e6:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
