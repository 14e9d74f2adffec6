#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Puts standard input between two marks of a Markdown file.

    SCRIPT | tools/doc_table.py docs/sparf.md reads

replaces what lies between <!-- begin reads --> and <!-- end reads -->, so that
tables in docs/ are what a script printed. Standard library only.
"""

import pathlib
import sys

import output_file


def main():
    if len(sys.argv) != 3:
        raise SystemExit("usage: doc_table.py FILE NAME < TABLE")
    path, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{path}: no single place named {name}")
    head, rest = text.split(begin)
    table = sys.stdin.read().strip()
    if not table:
        raise SystemExit("nothing to put there")
    tail = rest.split(end)[1]
    output_file.write_text(path, f"{head}{begin}\n{table}\n\n{end}{tail}")


if __name__ == "__main__":
    main()
