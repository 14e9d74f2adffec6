#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Keeps what llama.cpp generates greedily, for tests to compare with.

tests/data/stories260K_llamacpp.json: the text and the token ids that follow
"Once upon a time". tests/data/recall_llamacpp.json: answers to ten questions
about each document of tests/recall/recall_cases.py, K and V in half precision.
Each answer is a run of its own over the whole document.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/recall"))
sys.path.append(str(ROOT / "tools"))
import output_file  # noqa: E402
import recall_cases  # noqa: E402

STORIES_PROMPT = "Once upon a time"
STORIES_GENERATED = 180


class Llamacpp:
    def __init__(self, folder, threads):
        self.folder = folder
        self.threads = threads

    def _run(self, program, *arguments):
        return subprocess.run(
            [self.folder / program, *map(str, arguments)],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ).stdout.decode()

    def generate(self, model, prompt, count):
        """The text that follows the prompt, greedily."""
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(prompt)
            file.flush()
            text = self._run(
                "llama-completion",
                *("-m", model, "-f", file.name, "-n", count),
                *("--temp", 0, "-c", 0, "-t", self.threads, "-ngl", 0),
                *("-no-cnv", "--no-display-prompt"),
            )
        return text.removesuffix("\n\n")

    def tokenize(self, model, text):
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            ids = self._run(
                "llama-tokenize",
                *("-m", model, "-f", file.name),
                *("--ids", "--log-disable"),
            )
        return json.loads(ids.strip().splitlines()[-1])


def make_stories(llamacpp, model, path):
    text = llamacpp.generate(model, STORIES_PROMPT, STORIES_GENERATED)
    tokens = llamacpp.tokenize(model, STORIES_PROMPT + text)
    prompt_tokens = llamacpp.tokenize(model, STORIES_PROMPT)
    if len(tokens) != len(prompt_tokens) + STORIES_GENERATED:
        raise SystemExit("the text splits into other tokens than it came from")
    golden = {
        "model": model.name,
        "sha256": recall_cases.sha256(model),
        "prompt": STORIES_PROMPT,
        "text": text,
        "prompt_tokens": prompt_tokens,
        "tokens": tokens,
    }
    output_file.write_text(path, json.dumps(golden) + "\n")


def ask(llamacpp, case):
    answers = {}
    for length, document in case.documents().items():
        answers[str(length)] = {}
        right = 0
        for number in recall_cases.TO_LLAMACPP:
            question = document["questions"][number]
            prompt = document["document"] + question["prompt"]
            answer = llamacpp.generate(
                case.model, prompt, recall_cases.ANSWER_TOKENS
            )
            answers[str(length)][str(number)] = answer
            right += answer.rstrip(".") == question["answer"].rstrip(".")
        print(
            f"{case.name}, {length} tokens: {right} of"
            f" {len(recall_cases.TO_LLAMACPP)} right",
            flush=True,
        )
    return {"sha256": recall_cases.sha256(case.model), "answers": answers}


def make_recall(llamacpp, models, path):
    golden = json.loads(path.read_text()) if path.exists() else {}
    for case in recall_cases.cases(models):
        known = golden.get(case.name, {}).get("sha256")
        if known == recall_cases.sha256(case.model):
            print(f"{case.name}: the answers of this model are there already")
            continue
        golden[case.name] = ask(llamacpp, case)
        output_file.write_text(path, json.dumps(golden, indent=1) + "\n")


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--llamacpp",
        type=pathlib.Path,
        required=True,
        help="folder with llama-completion and llama-tokenize",
    )
    parser.add_argument(
        "--models", type=pathlib.Path, default=ROOT.parent / "shared/models"
    )
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    llamacpp = Llamacpp(options.llamacpp, options.threads)
    make_stories(
        llamacpp,
        ROOT / "models/stories260K.gguf",
        recall_cases.DATA / "stories260K_llamacpp.json",
    )
    make_recall(llamacpp, options.models, recall_cases.ANSWERS)


if __name__ == "__main__":
    main()
