#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the chat templates of real models make of conversations, as golden values of our rendering.

    make_chat_goldens.py [--llama-tokenize PATH] tests/data
    make_chat_goldens.py --templates DIR --check BUILD/test_host_model_template

tests/data/templates has templates as NAME.jinja, word for word as the models have them
(chat_template in their tokenizer_config.json; the sources of llama.cpp come with many, so do the
packages trl, optimum-intel, unsloth and axolotl). They are rendered with Jinja2 in the settings of
Hugging Face Transformers. `--check` shows the test program those in DIR instead: every one of them
must be refused or rendered alike.

Ids are llama-tokenize's for the rendered text, on the vocabulary that the model's family shares;
without it those of the present file stay, where the text is the same. What a template does to the
past of a conversation is left out where it contradicts what the conversation was (a system text
that moves to the last turn); docs/chat.md says so. For each template the golden file also has the
places where a byte can go and Jinja still reads the same tokens; anywhere else a change must be
noticed.
"""
import argparse
import datetime
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
CHATML = ("chatml", "<s>", "<|im_end|>", None)
QWENS = ("chatml", "<|endoftext|>", "<|im_end|>", QWEN)
LLAMA3 = ("llama3", "<|begin_of_text|>", "<|eot_id|>", BPE)
DEEPSEEK = ("deepseek-r1", "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
            "<\uff5cend\u2581of\u2581sentence\uff5c>", None)
GRANITE = ("granite", "<|end_of_text|>", "<|end_of_text|>", None)
PHI3 = ("phi3", "<s>", "<|endoftext|>", None)
MODELS = {
    "Qwen2-7B-Instruct": QWENS,
    "Qwen-Qwen2.5-7B-Instruct": QWENS,
    "Qwen-Qwen3-0.6B": QWENS,
    "QwQ-32B": QWENS,
    "SmolLM2-1.7B-Instruct": ("chatml", "<|im_start|>", "<|im_end|>", None),
    "teknium-OpenHermes-2.5-Mistral-7B": CHATML,
    "LFM2-8B-A1B": ("chatml", "<|startoftext|>", "<|im_end|>", None),
    "phi-4": ("phi4", "<|endoftext|>", "<|im_end|>", None),
    "Llama-2-7b-chat-hf": ("llama2", "<s>", "</s>", SPM),
    "Llama-3": LLAMA3,
    "meta-llama-Llama-3.1-8B-Instruct": LLAMA3,
    "meta-llama-Llama-3.2-3B-Instruct": LLAMA3,
    "meta-llama-Llama-3.3-70B-Instruct": LLAMA3,
    "Mistral-7B-Instruct-v0.1": ("mistral-v0.1", "<s>", "</s>", SPM),
    "mistralai-Mistral-7B-Instruct-v0.2-NOTE-Old-pre-v1-without-a-system-prompt":
        ("mistral-v0.2", "<s>", "</s>", SPM),
    "mistralai-Mistral-7B-Instruct-v0.2-mistralai-v1-template-with-a-system-prompt":
        ("mistral-v1", "<s>", "</s>", SPM),
    "Mistral-Large-Instruct-2407-mistralai-v3-template-modified-to-have-system-prompt-at-start":
        ("mistral-v3", "<s>", "</s>", SPM),
    "mistralai-Mistral-Nemo-Instruct-2407": ("mistral-v3-tekken", "<s>", "</s>", None),
    "mistralai-Mistral-Large-Instruct-2411-mistralai-v7-template":
        ("mistral-v7", "<s>", "</s>", SPM),
    "Mistral-Small-3.2-24B-Instruct-2506": ("mistral-v7-tekken", "<s>", "</s>", None),
    "google-gemma-7b-it": ("gemma", "<bos>", "<eos>", None),
    "google-gemma-2-2b-it": ("gemma", "<bos>", "<eos>", None),
    "gemma-3-1b-it": ("gemma", "<bos>", "<eos>", None),
    "Phi-3-mini": PHI3,
    "Phi-3-small": ("phi3", "<|endoftext|>", "<|endoftext|>", None),
    "Phi-3-medium": PHI3,
    "microsoft-Phi-3.5-mini-instruct": PHI3,
    "Phi-4-mini-instruct": ("phi4-mini", "<|endoftext|>", "<|endoftext|>", None),
    "TinyLlama-1.1B-Chat-v1.0": ("zephyr", "<s>", "</s>", SPM),
    "CodeLlama-34b-Instruct-hf": ("llama2", "<s>", "</s>", SPM),
    "DeepSeek-R1-0528-Qwen3-8B": DEEPSEEK,
    "DeepSeek-R1-Distill-Llama-8B": DEEPSEEK,
    "DeepSeek-R1-Distill-Llama-8B-2": DEEPSEEK,
    "DeepSeek-R1-Distill-Qwen-7B-old": DEEPSEEK,
    "Devstral-Small-2507": ("mistral-v7-tekken", "<s>", "</s>", None),
    "Falcon3-7B-Instruct": ("falcon3", "<|startoftext|>", "<|endoftext|>", None),
    "Llama-3.1-Tulu-3-8B": ("falcon3", "<|begin_of_text|>", "<|end_of_text|>", BPE),
    "Meta-Llama-3-8B-Instruct": LLAMA3,
    "Meta-Llama-3-8B-Instruct-2": LLAMA3,
    "Mistral-7B-Instruct-v0.3": ("mistral-v3", "<s>", "</s>", SPM),
    "Mistral-7B-Instruct-v0.3-2": ("mistral-v3", "<s>", "</s>", SPM),
    "Mistral-7B-OpenOrca": CHATML,
    "Mistral-Nemo-Instruct-2407-2": ("mistral-v3-tekken", "<s>", "</s>", None),
    "Mistral-Small-24B-Instruct-2501": ("mistral-v7-tekken", "<s>", "</s>", None),
    "Nous-Hermes-2-Mixtral-8x7B-DPO": CHATML,
    "Orca-Vicuna": ("vicuna-orca", "<s>", "</s>", SPM),
    "Phi-3-mini-4k-instruct": PHI3,
    "Phi-3-mini-4k-instruct-2": PHI3,
    "Qwen1.5-7B-Chat": QWENS,
    "Qwen3-4B-Instruct-2507": QWENS,
    "Qwen3-4B-Thinking-2507": QWENS,
    "Qwen3-8B": QWENS,
    "Qwen3-8B-GGUF": QWENS,
    "unsloth-Qwen3": QWENS,
    "unsloth-Qwen3-Instruct": QWENS,
    "Yi-1.5-34B-Chat": ("yi", "<|startoftext|>", "<|im_end|>", None),
    "dolphin-2.8-mistral-7b-v02": CHATML,
    "granite-3.0-8b-instruct": GRANITE,
    "granite-3.3-2b-instruct": GRANITE,
    "granite-4.0-micro": GRANITE,
    "granite-4.1": GRANITE,
    "mistral-common-v1": ("mistral-v1", "<s>", "</s>", SPM),
    "unsloth-phi-4": ("phi4", "<|endoftext|>", "<|im_end|>", None),
    "vicuna-13b-v1.1": ("vicuna-lines", "<s>", "</s>", SPM),
    "vicuna-7b-v1.5": ("vicuna", "<s>", "</s>", SPM),
    "zephyr-7b-beta": ("zephyr", "<s>", "</s>", SPM),
}

# System texts that templates have of their own, as they stand there, or how they begin: any other
# may stand there too.
SMALL = "You are Mistral Small 3, a Large Language Model (LLM) created by Mistral AI, a French startup"
OWN = {
    "Qwen2-7B-Instruct": "You are a helpful assistant.",
    "Qwen-Qwen2.5-7B-Instruct":
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "Qwen1.5-7B-Chat": "You are a helpful assistant",
    "SmolLM2-1.7B-Instruct": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "granite-4.0-micro": "You are a helpful assistant. Please ensure responses are professional,"
                         " accurate, and safe.",
    "vicuna-7b-v1.5": "A chat between a curious user and an artificial intelligence assistant. The"
                      " assistant gives helpful, detailed, and polite answers to the user\\'s"
                      " questions.",
    "Devstral-Small-2507": "You are Devstral, a helpful agentic model",
    "Mistral-Small-3.2-24B-Instruct-2506": SMALL,
    "Mistral-Small-24B-Instruct-2501": SMALL,
}
OTHER = r"""Don\'t \"guess\", {think}; put it\n\tinto \\boxed{} — <s>, </think>."""

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


def thinking(text, bos, eos):
    """A conversation whose first answer was thought about: what is left of it in the second turn.
    None where the template refuses or changes more than that."""
    template = environment().from_string(text)
    answer = "<think>\nhm\n</think>\n\nYes."
    try:
        prompt = render(template, None, [HELLO], [], bos, eos)
        whole = render(template, None, [HELLO, "Thanks!"], [answer], bos, eos)
        plain = generated(template, None, [HELLO, "Thanks!"], [FIRST], bos, eos)
    except (jinja2.exceptions.TemplateError, ValueError):
        return None
    made = answer[8:] if prompt.endswith("<think>\n") else answer
    if plain:
        made = plain[0].replace(FIRST, made)
    return {"turns": [HELLO, "Thanks!"], "answers": [made], "text": whole}


def tokens(env, text):
    """What Jinja's parser sees of a text; None when there is none."""
    try:
        # A sign or line break of a tag does what it does to the data beside it.
        return [(kind, None if re.search("_(begin|end)$", kind) else value)
                for _, kind, value in env._tokenize(text, None)]
    except jinja2.exceptions.TemplateError:
        return None


def free_places(text):
    """Bytes, as [first, number], that can go without another meaning, one at a time."""
    env, found, at = environment(), [], 0
    whole = tokens(env, text)
    # In a run of equal characters it is the same whichever goes.
    for run in re.finditer(r"(.)\1*", text, re.S):
        i, c = run.start(), run[1]
        n = len(run[0].encode())
        if (c.isspace() or c in "-+\\" or in_comment(text, i)) and \
                tokens(env, text[:i] + text[i + 1:]) == whole:
            if found and sum(found[-1]) == at:
                found[-1][1] += n
            else:
                found.append([at, n])
        at += n
    return found


def in_comment(text, i):
    return text.rfind("{#", 0, i + 1) > text.rfind("#}", 0, max(i - 1, 0))


def token_ids(args, vocabulary, text, bos):
    with tempfile.NamedTemporaryFile(suffix=".txt") as f:
        f.write(text.encode())
        f.flush()
        flags = ["--no-bos"] if text.startswith(bos) else []
        r = subprocess.run([args.llama_tokenize, "-m", os.path.join(args.models, vocabulary), "-f",
                            f.name, "--ids", "--log-disable", *flags], capture_output=True, check=True)
    return json.loads(r.stdout)


def case_of(name, text, ids):
    form, bos, eos, vocabulary = MODELS.get(name, ("?", "<s>", "</s>", None))

    def log(message):
        print(f"{name}: {message}")

    case = {"name": name, "form": form, "bos": bos, "eos": eos, "vocabulary": vocabulary}
    try:
        case["conversations"] = list(conversations(text, bos, eos, log))
    except Exception as e:  # a template for other data than messages
        log(f"cannot be rendered: {e}")
        case["conversations"] = []
        return case
    case["thinking"] = thinking(text, bos, eos)
    if name in OWN:
        changed = text.replace(OWN[name], OTHER)
        assert changed != text, name
        template = environment().from_string(changed)
        case["own"] = {"from": OWN[name], "to": OTHER, "spans": own_spans(name, text),
                       "text": render(template, None, [HELLO], [], bos, eos)}
    for c in case["conversations"] if vocabulary else []:
        found = ids(vocabulary, c["text"], bos)
        if found:
            c["ids"] = found
    return case


def own_spans(name, text):
    """Where the system text stands, as [first byte, bytes]: up to the end of the string, or of the
    turn in it; and behind a date."""
    starts = [m.start() for m in re.finditer(re.escape(OWN[name]), text)]
    starts += [m.end() for m in re.finditer(r'\+ today \+ "', text)]
    spans = []
    for i in starts:
        quote = text[i - 1]
        end = rf"(?<!\\){quote}" if quote in "'\"" else r"<\|im_end\|>"
        stop = re.compile(end).search(text, i).start()
        spans.append([len(text[:i].encode()), len(text[i:stop].encode())])
    return spans


def read(folder, name):
    with open(os.path.join(folder, name + ".jinja"), encoding="utf-8", newline="") as f:
        return f.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--templates", metavar="DIR")
    parser.add_argument("--llama-tokenize", metavar="PATH")
    parser.add_argument("--models", default="../shared/models")
    parser.add_argument("--check", metavar="PROGRAM")
    parser.add_argument("folder", nargs="?")
    args = parser.parse_args()
    if args.check:
        names = sorted(f[:-6] for f in os.listdir(args.templates) if f.endswith(".jinja"))
        texts = {name: read(args.templates, name) for name in names}
        golden = {"today": TODAY.isoformat(), "models": [
            case_of(name, text, lambda *_: None) | {"template": text}
            for name, text in texts.items()]}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
            json.dump(golden, f)
            f.flush()
            return subprocess.run([args.check, f.name]).returncode
    path = os.path.join(args.folder, "chat.json")
    with open(path, encoding="utf-8") as f:
        present = {(m["vocabulary"], c["text"]): c.get("ids")
                   for m in json.load(f)["models"] for c in m["conversations"]}

    def ids(vocabulary, text, bos):
        if args.llama_tokenize:
            return token_ids(args, vocabulary, text, bos)
        return present.get((vocabulary, text))

    models = []
    for name in MODELS:
        text = read(os.path.join(args.folder, "templates"), name)
        models.append(case_of(name, text, ids) | {"free": free_places(text)})
    with output_file.writing(path, encoding="utf-8") as f:
        f.write('{"today": "%s", "models": [\n' % TODAY.isoformat())
        f.write(",\n".join(json.dumps(m) for m in models))
        f.write("\n]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
