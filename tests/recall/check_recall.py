#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Asks recall models 50 questions about a long document, KV on disk.

At most 8 MiB of memory. At least 98 % of the answers must be exact, and ten of
them equal to what llama.cpp answered (tests/data/recall_llamacpp.json). The
document is read once: the questions follow it one after the other in one
session of tests/recall/ask.c. One question is also put to `instinfer run`,
which starts from nothing. Standard library only. --models asks another
model too, which is not in the tree.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import recall_cases

MEMORY = 8 << 20
LEAST_EXACT = 0.98
# Of a document of 4K tokens in groups of 128 all but the last group's.
LEAST_FROM_FLASH = 0.95


class Failure(Exception):
    pass


def ask_session(ask, model, document, folder):
    """All answers from one session, and the counters of the engine."""
    text = folder / "document.txt"
    text.write_text(document["document"], encoding="utf-8")
    questions = folder / "questions"
    prompts = [question["prompt"] for question in document["questions"]]
    questions.write_bytes(b"".join(p.encode() + b"\0" for p in prompts))
    result = subprocess.run(
        [
            *(ask, model, folder, str(MEMORY), text, questions),
            str(recall_cases.ANSWER_TOKENS),
        ],
        capture_output=True,
    )
    if result.returncode:
        raise Failure(f"ask: {result.stderr.decode(errors='replace').strip()}")
    answers = result.stdout.decode(errors="replace").split("\0")[:-1]
    if len(answers) != len(prompts):
        raise Failure(f"{len(answers)} answers to {len(prompts)} questions")
    return answers, json.loads(result.stderr.decode().splitlines()[-1])


def ask_once(instinfer, model, prompt, folder):
    """An answer of `instinfer run`, and its statistics."""
    text, stats = folder / "prompt.txt", folder / "stats.json"
    text.write_text(prompt, encoding="utf-8")
    options = {
        "-m": model,
        "-f": text,
        "-n": recall_cases.ANSWER_TOKENS,
        "--temp": 0,
        "--memory": f"{MEMORY >> 20}M",
        "--kv": folder,
        "--stats": stats,
    }
    flat = [str(part) for pair in options.items() for part in pair]
    result = subprocess.run([instinfer, "run", *flat], capture_output=True)
    if result.returncode:
        raise Failure(f"run: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout.decode(), json.loads(stats.read_text())


def exact(answer, question):
    return answer.strip(" .") == question["answer"].strip(" .")


def check_flash(stats):
    share = stats["attended_tokens_from_flash"] / stats["attended_tokens"]
    if share < LEAST_FROM_FLASH:
        raise Failure(f"only {share:.1%} of attended tokens came from flash")
    return share


def check_llamacpp(case, length, answers):
    """How many answers are known from llama.cpp; they must be equal."""
    golden = json.loads(recall_cases.ANSWERS.read_text()).get(case.name)
    if not golden or golden["sha256"] != recall_cases.sha256(case.model):
        raise Failure(
            "llama.cpp has not been asked with this model: "
            "tools/reference/make_llamacpp_goldens.py"
        )
    known = golden["answers"][str(length)]
    for number, theirs in known.items():
        if answers[int(number)].strip() != theirs.strip():
            raise Failure(
                f"question {number}: llama.cpp says {theirs!r}, "
                f"not {answers[int(number)]!r}"
            )
    return len(known)


def check_run(options, case, document, answers, folder):
    """The command line, started from nothing, must say the same."""
    number = len(answers) // 2
    prompt = document["document"] + document["questions"][number]["prompt"]
    answer, stats = ask_once(options.instinfer, case.model, prompt, folder)
    if answer.strip() != answers[number].strip():
        raise Failure(
            f"question {number}: `instinfer run` says {answer!r}, "
            f"the session {answers[number]!r}"
        )
    if stats["peak_memory_bytes"] > MEMORY:
        raise Failure(f"{stats['peak_memory_bytes']} bytes of memory in use")
    check_flash(stats)


def check(options, case, folder):
    started = time.monotonic()
    document = case.documents()[options.tokens]
    answers, stats = ask_session(options.ask, case.model, document, folder)
    questions = document["questions"]
    right = sum(map(exact, answers, questions))
    if right < LEAST_EXACT * len(questions):
        raise Failure(f"{right} of {len(questions)} answers are exact")
    known = check_llamacpp(case, options.tokens, answers)
    check_run(options, case, document, answers, folder)
    return (
        f"{right} of {len(questions)} exact, {known} equal to llama.cpp's, "
        f"{check_flash(stats):.1%} of attended tokens from flash, "
        f"{time.monotonic() - started:.0f} s"
    )


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("instinfer", type=pathlib.Path)
    parser.add_argument("ask", type=pathlib.Path)
    parser.add_argument(
        "--tokens", type=int, choices=recall_cases.LENGTHS, default=4096
    )
    parser.add_argument(
        "--models", type=pathlib.Path, help="folder of another recall.gguf"
    )
    parser.add_argument("--only", choices=("shared", "own"))
    parser.add_argument("--kv", help="folder for KV; default: a temporary one")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    cases = recall_cases.cases(options.models)
    if options.only:
        cases = [case for case in cases if case.name == options.only]
    failed = False
    for case in cases:
        with tempfile.TemporaryDirectory(dir=options.kv) as folder:
            try:
                text = check(options, case, pathlib.Path(folder))
            except Failure as failure:
                text, failed = f"FAILED: {failure}", True
        print(f"{case.name}, {options.tokens} tokens: {text}", flush=True)
    return 1 if failed or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
