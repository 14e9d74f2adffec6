#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the chat templates of real models make of conversations, as golden values of our rendering.

    make_chat_goldens.py --templates DIR --llama-tokenize PATH --models ../shared/models tests/data
    make_chat_goldens.py --templates DIR --check BUILD/test_host_model_template

DIR holds templates as NAME.jinja, word for word as the models have them (chat_template in their
tokenizer_config.json; the sources of llama.cpp come with many in models/templates and, as C strings,
in tests/test-chat-template.cpp). They are rendered with Jinja2 in the settings of Hugging Face
Transformers. Their texts are not kept: the golden file has the expressions that a format is known
by, cut out of each. `--check` shows the test program the whole texts instead, and every template in
DIR that is not in the list too, which must be refused or rendered alike.

Ids are llama-tokenize's for the rendered text, on the vocabulary that the model's family shares.
What a template does to the past of a conversation is left out where it contradicts what the
conversation was (a system text that moves to the last turn); docs/chat.md says so.
"""
import argparse
import datetime
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import output_file  # noqa: E402

TODAY = datetime.date(2025, 3, 5)
SPM, BPE, QWEN = ("vocab/ggml-vocab-%s.gguf" % n for n in ("llama-spm", "llama-bpe", "qwen2"))

# name: (format, begin token, end token, vocabulary)
MODELS = {
    "Qwen2-7B-Instruct": ("chatml", "<|endoftext|>", "<|im_end|>", QWEN),
    "Qwen-Qwen2.5-7B-Instruct": ("chatml", "<|endoftext|>", "<|im_end|>", QWEN),
    "Qwen-Qwen3-0.6B": ("chatml", "<|endoftext|>", "<|im_end|>", QWEN),
    "QwQ-32B": ("chatml", "<|endoftext|>", "<|im_end|>", QWEN),
    "SmolLM2-1.7B-Instruct": ("chatml", "<|im_start|>", "<|im_end|>", None),
    "lc_teknium-OpenHermes-2.5-Mistral-7B": ("chatml", "<s>", "<|im_end|>", None),
    "LFM2-8B-A1B": ("chatml", "<|startoftext|>", "<|im_end|>", None),
    "phi-4": ("phi4", "<|endoftext|>", "<|im_end|>", None),
    "Llama-2-7b-chat-hf": ("llama2", "<s>", "</s>", SPM),
    "lc_Llama-3": ("llama3", "<|begin_of_text|>", "<|eot_id|>", BPE),
    "meta-llama-Llama-3.1-8B-Instruct": ("llama3", "<|begin_of_text|>", "<|eot_id|>", BPE),
    "meta-llama-Llama-3.2-3B-Instruct": ("llama3", "<|begin_of_text|>", "<|eot_id|>", BPE),
    "meta-llama-Llama-3.3-70B-Instruct": ("llama3", "<|begin_of_text|>", "<|eot_id|>", BPE),
    "Mistral-7B-Instruct-v0.1": ("mistral-v0.1", "<s>", "</s>", SPM),
    "lc_mistralai-Mistral-7B-Instruct-v0.2-NOTE-Old-pre-v1-without-a-system-prompt":
        ("mistral-v0.2", "<s>", "</s>", SPM),
    "lc_mistralai-Mistral-7B-Instruct-v0.2-mistralai-v1-template-with-a-system-prompt":
        ("mistral-v1", "<s>", "</s>", SPM),
    "lc_Mistral-Large-Instruct-2407-mistralai-v3-template-modified-to-have-system-prompt-at-start":
        ("mistral-v3", "<s>", "</s>", SPM),
    "mistralai-Mistral-Nemo-Instruct-2407": ("mistral-v3-tekken", "<s>", "</s>", None),
    "lc_mistralai-Mistral-Large-Instruct-2411-mistralai-v7-template":
        ("mistral-v7", "<s>", "</s>", SPM),
    "Mistral-Small-3.2-24B-Instruct-2506": ("mistral-v7-tekken", "<s>", "</s>", None),
    "lc_google-gemma-7b-it": ("gemma", "<bos>", "<eos>", None),
    "google-gemma-2-2b-it": ("gemma", "<bos>", "<eos>", None),
    "gemma-3-1b-it": ("gemma", "<bos>", "<eos>", None),
    "lc_Phi-3-mini": ("phi3", "<s>", "<|endoftext|>", None),
    "lc_Phi-3-small": ("phi3", "<|endoftext|>", "<|endoftext|>", None),
    "lc_Phi-3-medium": ("phi3", "<s>", "<|endoftext|>", None),
    "microsoft-Phi-3.5-mini-instruct": ("phi3", "<s>", "<|endoftext|>", None),
    "Phi-4-mini-instruct": ("phi4-mini", "<|endoftext|>", "<|endoftext|>", None),
    "TinyLlama-1.1B-Chat-v1.0": ("zephyr", "<s>", "</s>", SPM),
}

# Templates with a long system text of their own, put together when they run: not taken over.
OWN_SYSTEM = ["Mistral-Small-3.2-24B-Instruct-2506"]

HELLO, ODD = "Hello, who are you?", "  \n\u3000What is 12*34?\n\n\tShow the steps \u2014 \u00e9t\u00e9 \U0001f600. \u00a0\n"
SYSTEM = "You are a terse assistant.\nNo jokes."
FIRST, SECOND = "I am a program.", "408, as 12*34 = 340 + 68.\n\nAnything else?"
CONVERSATIONS = [
    (None, [HELLO], []),
    (SYSTEM, [HELLO], []),
    (None, [ODD], []),
    (SYSTEM, [ODD], []),
    (" \n" + SYSTEM + "  ", [HELLO], []),
    (None, [HELLO, ODD, "Thanks!"], [FIRST, SECOND]),
    (SYSTEM, [HELLO, ODD, "Thanks!"], [FIRST, SECOND]),
]


def environment():
    def refuse(text):
        raise jinja2.exceptions.TemplateError(text)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[jinja2.ext.loopcontrols])
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: TODAY.strftime(form)
    env.filters["tojson"] = lambda value, indent=None: json.dumps(value, indent=indent)
    return env


def render(template, system, turns, answers, bos, eos):
    messages = [{"role": "system", "content": system}] if system is not None else []
    for i, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        if i < len(answers):
            messages.append({"role": "assistant", "content": answers[i]})
    return template.render(messages=messages, add_generation_prompt=len(answers) < len(turns),
                           bos_token=bos, eos_token=eos)


def generated(template, system, turns, answers, bos, eos):
    """The answers as the model makes them: what follows the prompt of their turn, white space before
    them included. None when the template changes what went before."""
    whole = render(template, system, turns, answers, bos, eos)
    out = []
    for i, answer in enumerate(answers):
        prompt = render(template, system, turns[:i + 1], answers[:i], bos, eos)
        if not whole.startswith(prompt):
            return None
        end = whole.index(answer, len(prompt)) + len(answer)
        out.append(whole[len(prompt):end])
        if out[-1].strip() != answer:
            return None
    return out


def conversations(text, bos, eos, log):
    template = environment().from_string(text)
    for system, turns, answers in CONVERSATIONS:
        what = f"{'system, ' if system else ''}{len(turns)} turns"
        try:
            whole = render(template, system, turns, answers, bos, eos)
            made = generated(template, system, turns, answers, bos, eos)
        except jinja2.exceptions.TemplateError as e:
            log(f"{what}: refused: {e}")
            continue
        if system and system.strip() not in whole:
            log(f"{what}: the system text is left out")
            continue
        if made is None:
            log(f"{what}: the past is changed")
            continue
        yield {"system": system, "turns": turns, "answers": made, "text": whole}


def fragments(text):
    """The expressions of a template that hold its format's words, without the long ones."""
    words = re.compile(r"<\||INST\]|_of_turn>|SYS>>|SYSTEM_PROMPT|AVAILABLE_TOOLS|bos_token|eos_token"
                       r"|strftime_now|Cutting|</think>")
    found = []
    for part in re.findall(r"\{\{.*?\}\}|\{%-? *set .*?%\}", text, re.S):
        if words.search(part) and len(part) <= 240 and part not in found:
            found.append(part)
    return "\n".join(found)


def token_ids(args, vocabulary, text, bos):
    with tempfile.NamedTemporaryFile(suffix=".txt") as f:
        f.write(text.encode())
        f.flush()
        flags = ["--no-bos"] if text.startswith(bos) else []
        r = subprocess.run([args.llama_tokenize, "-m", os.path.join(args.models, vocabulary), "-f",
                            f.name, "--ids", "--log-disable", *flags], capture_output=True, check=True)
    return json.loads(r.stdout)


def cases(args, names, whole):
    for name in names:
        with open(os.path.join(args.templates, name + ".jinja"), encoding="utf-8", newline="") as f:
            text = f.read()
        form, bos, eos, vocabulary = MODELS.get(name, ("?", "<s>", "</s>", None))

        def log(message, name=name):
            print(f"{name}: {message}")

        case = {"name": name.removeprefix("lc_"), "form": form, "bos": bos, "eos": eos,
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
                "template": text if whole else fragments(text), "vocabulary": vocabulary}
        try:
            case["conversations"] = [c for c in conversations(text, bos, eos, log)
                                     if c["system"] or name not in OWN_SYSTEM]
        except Exception as e:  # a template for other data than messages
            log(f"cannot be rendered: {e}")
            case["conversations"] = []
        if vocabulary and args.llama_tokenize:
            for c in case["conversations"]:
                c["ids"] = token_ids(args, vocabulary, c["text"], bos)
        yield case


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--templates", required=True)
    parser.add_argument("--llama-tokenize")
    parser.add_argument("--models", default="../shared/models")
    parser.add_argument("--check", metavar="PROGRAM")
    parser.add_argument("folder", nargs="?")
    args = parser.parse_args()
    if args.check:
        names = sorted(f[:-6] for f in os.listdir(args.templates) if f.endswith(".jinja"))
        golden = {"today": TODAY.isoformat(), "models": list(cases(args, names, True))}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
            json.dump(golden, f)
            f.flush()
            return subprocess.run([args.check, f.name]).returncode
    golden = {"today": TODAY.isoformat(), "models": list(cases(args, MODELS, False))}
    with output_file.writing(os.path.join(args.folder, "chat.json"), encoding="utf-8") as f:
        f.write('{"today": "%s", "models": [\n' % golden["today"])
        f.write(",\n".join(json.dumps(m) for m in golden["models"]))
        f.write("\n]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
