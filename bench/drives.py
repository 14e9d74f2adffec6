#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What several drives are worth: decode of one model at one depth with KV divided over 1, 2, 4 drives
of a given rate, in turns, and each beside the one drive of its round. Where the drives are the limit
the ratio is their number, as far as the heads can be divided by it. The last row is one drive without
a rate: what everything but the drives can do. K and V of the depth are made up, no row is cached.

    bench/drives.py build/release/instinfer MODEL.gguf --depth 8192
"""

import argparse
import csv
import statistics
import subprocess
import tempfile


def measure(args, places):
    with tempfile.NamedTemporaryFile(suffix=".csv") as table:
        command = [args.program, "bench", "model", "-m", args.model, "-d", str(args.depth), "-p", "0",
                   "-n", str(args.tokens), "-r", "1", "-t", str(args.threads), "--memory", args.memory,
                   "--row-cache", "off", "--made-up", "--csv", table.name]
        for place in places:
            command += ["--kv", place]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with open(table.name, newline="") as lines:
            return float(next(csv.DictReader(lines))["tokens_per_s"])


def span(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--size", default="1G", help="of each drive")
    parser.add_argument("--rate", default="0.25G", help="of each drive, bytes in a second")
    parser.add_argument("--drives", default="1,2,4")
    parser.add_argument("--depth", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", default="512M")
    args = parser.parse_args()
    counts = [int(n) for n in args.drives.split(",")]
    if counts[0] != 1:
        parser.error("--drives begins with 1")
    speed = {n: [] for n in counts + [0]}
    for _ in range(args.rounds):
        for n in counts:
            speed[n].append(measure(args, [f"ram:{args.size}@{args.rate}"] * n))
        speed[0].append(measure(args, [f"ram:{args.size}"]))
    print(f"{args.tokens} tokens at {args.depth}, ram:{args.size}@{args.rate}, {args.threads} threads, "
          f"{args.rounds} rounds\n")
    print("| drives | tokens/s | of one drive |\n|---|---|---|")
    for n in counts + [0]:
        ratios = [a / b for a, b in zip(speed[n], speed[1])]
        print(f"| {n or 'no limit'} | {span(speed[n], 2)} | {span(ratios, 2)} |")


if __name__ == "__main__":
    main()
