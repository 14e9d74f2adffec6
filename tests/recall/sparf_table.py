#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What SparF remembers of a long document, beside what it reads.

Asks the recall models 100 questions about documents of 4K and 16K tokens with
KV on disk: dense, SparF at 1/8, 1/16 and 1/32, and the local window alone.
Prints a table in Markdown. Run by hand: it takes a while. The questions are
put in two ways: read by prefill, which is dense as in the paper, so that
SparF sees only the answer's later digits; and read token by token, so that it
has to find the fact itself. Needs NumPy for the shared model's documents.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import recall_cases

QUESTIONS = 100
MEMORY = 8 << 20
KV_BYTES = 512  # of a token in a layer, both models
GROUP = 32  # of head_dim 64: K of a token group fills a page of 4 KiB
QUESTION = 1024  # tokens of a question and its answer, at most


def methods(length):
    """Name and options of every row of the table."""
    yield "dense", {}
    for divisor in (8, 16, 32):
        yield f"sparf 1/{divisor}", {"r": 64 // divisor, "divisor": divisor}
    for divisor in (8, 32):
        window = length // divisor
        options = {"r": 1, "k": window, "local": window}
        yield f"window of {window}", options


def documents(case, shared):
    if case.name == "own":
        sys.path.insert(0, str(recall_cases.ROOT / "tools/recall"))
        import corpus

        return {
            length: corpus.make_document(
                length, recall_cases.OWN_SEED, QUESTIONS
            )
            for length in recall_cases.LENGTHS
        }
    sys.path.insert(0, str(recall_cases.ROOT / "tools/reference"))
    import make_recall_documents

    script = shared.parent / "recall-model/mkprompt.py"
    return {
        length: make_recall_documents.make_document(script, length, QUESTIONS)
        for length in recall_cases.LENGTHS
    }


def ask(options, case, length, document, method, stepwise, folder):
    """Answers, and the counters of the engine."""
    text, questions = folder / "document.txt", folder / "questions"
    text.write_text(document["document"], encoding="utf-8")
    prompts = [question["prompt"] for question in document["questions"]]
    questions.write_bytes(b"".join(p.encode() + b"\0" for p in prompts))
    settings = {
        "context": length + QUESTION,
        "group": GROUP,
        "stepwise": int(stepwise),
    }
    if method:
        settings |= {"attention": "sparf", "audit": options.audit, **method}
    result = subprocess.run(
        [
            *(options.ask, case.model, folder, str(options.memory)),
            *(text, questions, str(recall_cases.ANSWER_TOKENS)),
            *(f"{name}={value}" for name, value in settings.items()),
        ],
        capture_output=True,
    )
    if result.returncode:
        raise SystemExit(result.stderr.decode(errors="replace"))
    answers = result.stdout.decode(errors="replace").split("\0")[:-1]
    return answers, json.loads(result.stderr.decode().splitlines()[-1])


def exact(answer, question):
    return answer.strip(" .") == question["answer"].strip(" .")


def row(name, document, answers, stats):
    right = sum(map(exact, answers, document["questions"]))
    steps = stats["decode_tokens"]
    if stats.get("sparf_steps"):
        read = sum(
            stats[f"{kind}_bytes"]
            for kind in ("channel", "token", "tail", "mean")
        )
        built = stats["build_read_bytes"]
        pages = stats["channel_pages"] + stats["token_pages"]
        pages += (stats["tail_bytes"] + stats["mean_bytes"]) / 4096
        cells = (
            f"{stats['captured_mean']:.3f}",
            f"{stats['captured_worst']:.3f}",
            f"{pages / steps:.0f}",
            f"{(read + built) / steps / 1e6:.2f}",
            f"{(read + built) / stats['dense_bytes']:.3f}",
            f"{stats['channel_bytes'] / stats['dense_bytes']:.3f}",
            f"{stats['token_bytes'] / stats['dense_bytes']:.3f}",
        )
    else:  # what it needed; read-ahead of what was then cut off left out
        read = stats["attended_tokens_from_flash"] * KV_BYTES / steps
        cells = ("1", "1", f"{read / 4096:.0f}", f"{read / 1e6:.2f}", "1")
        cells += ("", "")
    return f"| {name} | {right} | {' | '.join(cells)} |"


HEADER = (
    "attention",
    f"exact of {QUESTIONS}",
    "captured, mean",
    "worst head",
    "pages/token",
    "MB/token",
    "read/dense",
    "channel K",
    "token K,V",
)


def table(options, case, length, document, stepwise):
    how = "token by token" if stepwise else "by prefill"
    print(f"\n{case.name}, {length} tokens, questions read {how}:")
    print(f"\n| {' | '.join(HEADER)} |\n{'|---' * len(HEADER)}|", flush=True)
    for name, method in methods(length):
        with tempfile.TemporaryDirectory(dir=options.kv) as folder:
            answers, stats = ask(
                *(options, case, length, document, method, stepwise),
                pathlib.Path(folder),
            )
        print(row(name, document, answers, stats), flush=True)


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ask", type=pathlib.Path, help="test_recall_ask")
    parser.add_argument(
        "--models",
        type=pathlib.Path,
        default=recall_cases.ROOT.parent / "shared/models",
    )
    parser.add_argument("--only", choices=("shared", "own"))
    parser.add_argument("--tokens", type=int, choices=recall_cases.LENGTHS)
    parser.add_argument("--memory", type=int, default=MEMORY)
    parser.add_argument(
        "--audit", type=float, default=0.1, help="share of the steps"
    )
    parser.add_argument("--kv", help="folder for KV; default: a temporary one")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    for case in recall_cases.cases(options.models):
        if options.only and case.name != options.only:
            continue
        for length, document in documents(case, options.models).items():
            if options.tokens and length != options.tokens:
                continue
            for stepwise in (False, True):
                table(options, case, length, document, stepwise)


if __name__ == "__main__":
    main()
