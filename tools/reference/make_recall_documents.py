#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/recall_documents.json.gz: what recall.gguf is asked.

The generator of the shared model's documents (recall-model/mkprompt.py) needs
NumPy, and tests do not, so its documents are kept: one of 4,096 and one of
16,384 tokens with 50 questions each. A prompt is document + " " + question.
The model in models/ needs no such file: tools/recall/corpus.py makes its
documents from a seed with nothing but Python.
"""

import argparse
import gzip
import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import output_file  # noqa: E402

LENGTHS = (4096, 16384)  # tokens of the document, BOS included
QUESTIONS = 50
SEED = 20


def make_document(script, length, questions=QUESTIONS):
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(number) for number in (length, questions, SEED)]
        listing = subprocess.run(
            [sys.executable, script.resolve(), *arguments],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        prompt = pathlib.Path(folder, f"p{length}_0.txt").read_text()
    asked = []
    for line in listing.splitlines():
        text, answer = line.split(" ", 1)[1].split(" -> ")
        asked.append({"prompt": " " + text, "answer": " " + answer})
    document = prompt.removesuffix(asked[0]["prompt"])
    return {"tokens": length, "document": document, "questions": asked}


def parse_arguments(arguments):
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--mkprompt",
        type=pathlib.Path,
        default=root.parent / "shared/recall-model/mkprompt.py",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=pathlib.Path,
        default=root / "tests/data/recall_documents.json.gz",
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    documents = [make_document(options.mkprompt, length) for length in LENGTHS]
    text = json.dumps(documents, indent=0).encode()
    with output_file.writing(options.output, "wb", [options.mkprompt]) as file:
        file.write(gzip.compress(text, 9, mtime=0))
    print(f"{options.output.name}: {options.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
