#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/sparf.md that `instinfer bench drive` measures.

    bench/sparf_tables.py INSTINFER reads    | tools/doc_table.py docs/sparf.md reads
    bench/sparf_tables.py INSTINFER contexts | tools/doc_table.py docs/sparf.md contexts
    bench/sparf_tables.py INSTINFER contexts --kv DIR | ... contexts-disk

reads: the setting of the paper's Table III (40 heads of 128, 1,024 tokens read,
1,024 more decoded, 1/8) for several localities and channels per page.
contexts: 2K to 64K tokens, dense and sparf, three shapes. Standard library
only; minutes each.
"""

import argparse
import csv
import pathlib
import re
import subprocess
import sys
import tempfile


# Mean tokens of a segment, and how alike the tokens of a topic are: neighbours
# do not help where ranks differ from token to token.
LOCALITIES = (
    *((segment, 0.8) for segment in (1, 8, 16, 32, 128)),
    *((32, 0.6), (32, 0.95), (128, 0.99)),
)


def bench(instinfer, *args):
    """Rows of the CSV as numbers, and the lines that say what was assumed."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "x.csv")
        command = [instinfer, "bench", "drive", "--csv", path, *args]
        result = subprocess.run(
            list(map(str, command)), capture_output=True, text=True
        )
        if result.returncode:
            raise SystemExit(result.stderr)
        sys.stderr.write(result.stdout)
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
    for row in rows:
        for name in row:
            if name != "method":
                row[name] = float(row[name])
    about = [line[2:] for line in result.stdout.splitlines()[:2]]
    return rows, about


def cells(*values):
    return "| " + " | ".join(values) + " |"


def ratio(row, *names):
    return sum(row[f"steps_{name}"] for name in names) / row["steps_dense_bytes"]


def read_row(segment, cohesion, row):
    tail = ratio(row, "tail_bytes", "mean_bytes")
    pages = row["steps_channel_pages"] + row["steps_token_pages"]
    kept = row["steps_channel_kept_bytes"] + row["steps_token_kept_bytes"]
    passed = row["steps_channel_bytes"] + row["steps_token_bytes"]
    total = row["read_bytes"] / row["dense_bytes"]
    build = ratio(row, "build_read_bytes")
    return cells(
        "1: none" if segment == 1 else str(segment),
        str(cohesion),
        f"{row['page_channels']:.0f}",
        f"{ratio(row, 'channel_bytes'):.3f}",
        f"{ratio(row, 'token_bytes'):.3f}",
        f"**{pages / row['steps_dense_pages']:.3f}**",
        f"{tail:.3f}",
        f"{build:.3f}",
        f"{total:.3f}",
        f"{kept / passed:.2f}",
        f"{row['captured']:.3f}",
        f"{row['written_of_kv']:.3f}",
        f"{row['waf']:.4f}",
    )


def reads(options):
    print(
        cells(
            "tokens of a segment",
            "cohesion",
            "channels/page",
            "channel pages",
            "token pages",
            "both",
            "K of the tail",
            "building",
            "all reads",
            "kept by the entry filters",
            "captured",
            "written",
            "WAF",
        )
    )
    print("|---" * 13 + "|")
    about = None
    for segment, cohesion in LOCALITIES:
        rows, about = bench(
            *(options.instinfer, "--shape", "40/40x128"),
            *("--contexts", 1024, "-n", 1024, "--audits", 8),
            *("--method", "sparf", "--page-channels", "8,4,2"),
            *("--segment", segment, "--cohesion", cohesion),
            *("-t", options.threads),
        )
        for row in rows:
            print(read_row(segment, cohesion, row), flush=True)
    said = about[1].split(", ", 1)[1]
    print(f"\nWith {re.sub('cohesion [0-9.]+, ', '', said)}.")


def contexts(options):
    print(
        cells(
            "heads",
            "context",
            "channels/page",
            "dense MB",
            "sparf MB",
            "sparf/dense",
            "channel, token, tail",
            "dense ms",
            "sparf ms",
            "dense/sparf time",
            "captured, worst head",
        )
    )
    print("|---" * 11 + "|")
    arguments = ["-t", options.threads, "--page-channels", options.channels]
    if options.kv:
        arguments += ["--kv", options.kv]
    rows, about = bench(options.instinfer, *arguments)
    for sparf, dense in zip(rows[::2], rows[1::2]):
        assert (sparf["method"], dense["method"]) == ("sparf", "dense")
        parts = (
            ratio(sparf, "channel_bytes"),
            ratio(sparf, "token_bytes"),
            ratio(sparf, "tail_bytes", "mean_bytes"),
        )
        print(
            cells(
                f"{sparf['q_heads']:.0f}/{sparf['kv_heads']:.0f}x"
                f"{sparf['head_dim']:.0f}",
                f"{sparf['context'] / 1024:.0f}K",
                f"{sparf['page_channels']:.0f}",
                f"{sparf['dense_bytes'] / 1e6:.1f}",
                f"{sparf['read_bytes'] / 1e6:.1f}",
                f"{sparf['read_bytes'] / sparf['dense_bytes']:.3f}",
                ", ".join(f"{part:.2f}" for part in parts),
                f"{dense['seconds'] * 1e3:.2f}",
                f"{sparf['seconds'] * 1e3:.2f}",
                f"{dense['seconds'] / sparf['seconds']:.2f}",
                f"{sparf['captured']:.3f}, {sparf['worst']:.3f}",
            )
        )
    print(f"\n{about[0]}. {about[1]}.")


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("instinfer")
    parser.add_argument("table", choices=("reads", "contexts"))
    parser.add_argument("--kv", help="a directory; default: RAM as NAND")
    parser.add_argument("--threads", default="4")
    parser.add_argument(
        "--channels", default="0", help="that share a page; 0: drive's choice"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    {"reads": reads, "contexts": contexts}[options.table](options)


if __name__ == "__main__":
    main()
