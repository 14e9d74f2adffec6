#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Conversations: through pipes, and as a person has them at a terminal, driven through tmux.

    chat.py INSTINFER RECALL_MODEL pipe|terminal

The terminal half needs tmux. Standard library only."""
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from needs import HANG, heed_signals, missing  # noqa: E402

heed_signals()

INSTINFER, RECALL, PART = sys.argv[1:4]
TEMPLATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../data/templates")
FAMILIES = {  # templates of tests/data by their format
    "chatml": "Mistral-7B-OpenOrca",
    "llama2": "Llama-2-7b-chat-hf",
    "llama3": "meta-llama-Llama-3.2-3B-Instruct",
    "mistral-v1": "mistral-common-v1",
    "mistral-v3": "Mistral-7B-Instruct-v0.3",
    "mistral-v3-tekken": "mistralai-Mistral-Nemo-Instruct-2407",
    "gemma": "google-gemma-2-2b-it",
    "phi3": "microsoft-Phi-3.5-mini-instruct",
    "deepseek-r1": "DeepSeek-R1-Distill-Llama-8B",
    "granite": "granite-3.3-2b-instruct",
    "vicuna": "vicuna-7b-v1.5",
    "falcon3": "Falcon3-7B-Instruct",
}


def read(path):
    with open(path, "rb") as f:
        return f.read()


def template_of(name):
    """The text of a template in tests/data, as bytes."""
    return read(os.path.join(TEMPLATES, name + ".jinja"))


def with_template(data, text):
    """The GGUF file with a chat template as its first key, and a second one so that what follows keeps
    its alignment."""
    def key(name, value):
        return (struct.pack("<Q", len(name)) + name + struct.pack("<IQ", 8, len(value)) + value)

    first = key(b"tokenizer.chat_template", text if isinstance(text, bytes) else text.encode())
    name = b"test.padding"
    second = key(name, b" " * (-len(first + key(name, b"")) % 32))
    keys, = struct.unpack_from("<Q", data, 16)
    return data[:16] + struct.pack("<Q", keys + 2) + first + second + data[24:]


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.stats_path = cls.folder.name + "/stats.json"

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def path(cls, name):
        return cls.folder.name + "/" + name

    @classmethod
    def model(cls, name, source, template):
        path = cls.path(name)
        with open(path, "wb") as f:
            f.write(with_template(read(source), template))
        return path

    def stats(self):
        return json.loads(read(self.stats_path))


def run(*args, stdin=b"", **kwargs):
    kwargs.setdefault("timeout", HANG)
    return subprocess.run([INSTINFER, *map(str, args)], input=stdin, capture_output=True, **kwargs)


class Pipe(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.plain = cls.path("plain.gguf")
        shape = "--layers 3 --width 64 --heads 4 --kv-heads 2 --head-dim 16 --ffn 96 --type F16"
        r = run("synth", *shape.split(), "-c", 2000, "-o", cls.plain)
        assert r.returncode == 0, r.stderr
        cls.chatml = cls.model("chatml.gguf", cls.plain, template_of(FAMILIES["chatml"]))

    def chat(self, *args, model=None, **kwargs):
        return run("run", "--chat", "-m", model or self.chatml, "--kv", "ram:16M", "--group", 16,
                   "--temp", 0, "--stats", self.stats_path, *args, **kwargs)

    def text(self, first=0, end=None):
        """The conversation's text: every token of this vocabulary is a byte."""
        ids = self.stats()["text_tokens"][first:end]
        return b"".join(b"</s>" if i == 2 else b"<s>" if i == 1 else b" " if i == 259 else
                        bytes([i - 3]) for i in ids)

    def error(self, r, code, *texts):
        self.assertEqual((r.returncode, r.stdout), (code, b""), r.stderr)
        lines = r.stderr.decode().splitlines()
        self.assertEqual(len(lines), 1, lines)
        for text in texts:
            self.assertIn(text, lines[0])

    def test_a_turn_computes_only_its_own_tokens(self):
        said, lengths = [b"hello\n", b"how are you? </s>\n", b"bye\n"], []
        previous = None
        for turns in (1, 2, 3):
            r = self.chat("-n", 12, "--ignore-eos", stdin=b"".join(said[:turns]))
            self.assertEqual((r.returncode, r.stderr), (0, b""))
            s = self.stats()
            ids = s["text_tokens"]
            lengths.append(len(ids))
            self.assertEqual((s["turns"], s["generated_tokens"]), (turns, 12 * turns))
            # Nothing is computed twice, and all of it is on the drive at the end.
            self.assertEqual(s["prefill_tokens"] + s["decode_tokens"], len(ids))
            self.assertEqual(s["prefill_tokens"], s["prompt_tokens"])
            if previous:
                self.assertEqual(ids[:len(previous)], previous)
            previous = ids
        self.assertGreater(s["attended_tokens_from_flash"], 0)
        turn = self.text(lengths[1], -12)
        self.assertEqual(turn, b"<|im_end|>\n<|im_start|>user\nbye<|im_end|>\n"
                               b"<|im_start|>assistant\n")
        self.assertEqual(ids.count(1), 1)  # this vocabulary starts texts with <s>
        self.assertEqual(ids[0], 1)
        self.assertEqual(ids.count(2) + ids[-12:].count(2), ids[-12:].count(2) * 2)  # no </s> typed

    def test_one_shot_is_the_first_turn(self):
        for args, stdin in ((["-p", "hello"], b""), (["-f", "-"], b"hello")):
            r = self.chat("-n", 12, "--ignore-eos", *args, stdin=stdin)
            self.assertEqual((r.returncode, r.stderr), (0, b""))
            one = self.stats()["text_tokens"]
            lines = self.chat("-n", 12, "--ignore-eos", stdin=b"hello")
            self.assertEqual(self.stats()["text_tokens"], one)
            self.assertEqual(lines.stdout.rstrip(b"\n"), r.stdout.rstrip(b"\n"))
            self.assertTrue(lines.stdout.endswith(b"\n"))

    def test_system_and_lines_that_go_on(self):
        r = self.chat("-n", 3, "--system", "be </s> brief", stdin=b'one\\\ntwo\n\n"""a\n\nb\\\nc"""\n')
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        text = self.text()
        self.assertTrue(text.startswith(
            b"<s><|im_start|>system\nbe </s> brief<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n"
            b"<|im_start|>assistant\n"), text)
        self.assertIn(b"<|im_start|>user\na\n\nb\\\nc<|im_end|>", text)
        self.assertEqual(self.stats()["text_tokens"].count(2), 0)
        # An end of the input inside a message ends the message.
        self.chat("-n", 0, stdin=b'"""left\nopen')
        self.assertIn(b"user\nleft\nopen<|im_end|>", self.text())
        r = self.chat("-n", 3, stdin=b"\n\n")
        self.assertEqual((r.returncode, r.stdout, self.stats()["turns"]), (0, b"", 0))

    def test_raw(self):
        for model in (self.plain, self.chatml):
            r = self.chat("--raw", "-n", 4, "--ignore-eos", stdin=b"abc\ndef\n", model=model)
            self.assertEqual((r.returncode, r.stderr), (0, b""))
            ids = self.stats()["text_tokens"]
            self.assertEqual([ids[:4], ids[8:11]],
                             [[1] + [3 + b for b in b"abc"], [3 + b for b in b"def"]])

    def test_templates_are_named(self):
        for name, template in FAMILIES.items():
            model = self.model("named.gguf", self.plain, template_of(template))
            r = self.chat("-p", "x", "-n", 1, "-v", model=model)
            self.assertEqual(r.returncode, 0, r.stderr)
            self.assertIn(f"chat template {name}\n", r.stderr.decode())
            self.assertIn(f"chat template {name}\n", run("inspect", model).stdout.decode())
            self.assertEqual(self.stats()["chat_template"], name)
            r = self.chat("-p", "x", "-n", 1, "-v", "--template", name, model=self.plain)
            self.assertIn(f"chat template {name}\n", r.stderr.decode())
        self.assertIn(b"chat template: none in the file", run("inspect", self.plain).stdout)

    def test_absent_unknown_and_broken_templates(self):
        self.error(self.chat("-p", "x", model=self.plain), 1, "has no chat template", "--raw",
                   "--template NAME", "chatml")
        for text in ("{{ messages }}", b"\xff\xfe\x00\x80", "", "<|im_start|>" * 1000):
            model = self.model("unknown.gguf", self.plain, text)
            self.error(self.chat("-p", "x", model=model), 1, "none of those known", "--raw",
                       "--template NAME")
            self.assertIn(b"chat template: none of those known", run("inspect", model).stdout)
            r = run("run", "-m", model, "-p", "x", "-n", 1, "--kv", "ram:16M")
            self.assertEqual(r.returncode, 0, r.stderr)
        # One that differs by a newline is refused with the name of the nearest.
        text = template_of("teknium-OpenHermes-2.5-Mistral-7B")
        model = self.model("other.gguf", self.plain, text.replace(b" + '\\n'}}", b"}}"))
        self.assertNotEqual(text, text.replace(b" + '\\n'}}", b"}}"))
        self.error(self.chat("-p", "x", model=model), 1, "other.gguf", "nearest is 'chatml'",
                   "--template NAME")
        self.assertIn(b"nearest is 'chatml'", run("inspect", model).stdout)
        r = self.chat("-p", "x", "-n", 1, "--template", "chatml", model=model)
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        data = bytearray(read(self.chatml))
        at = data.index(b"tokenizer.chat_template") + len(b"tokenizer.chat_template")
        broken = self.path("broken.gguf")
        for kind, what in ((10, "tokenizer.chat_template"), (77, "tokenizer.chat_template")):
            data[at] = kind
            with open(broken, "wb") as f:
                f.write(data)
            self.error(self.chat("-p", "x", model=broken), 1, "")
        huge = data[:at + 4] + struct.pack("<Q", 1 << 62) + data[at + 12:]
        huge[at] = 8
        with open(broken, "wb") as f:
            f.write(huge)
        self.error(self.chat("-p", "x", model=broken), 1, "tokenizer.chat_template")

    def test_usage(self):
        m = ["run", "-m", self.chatml]
        for args, text in (
                (m + ["-p", "x", "--system", "s"], "--system"),
                (m + ["-p", "x", "--template", "chatml"], "--template"),
                (m + ["-p", "x", "--raw"], "--raw"),
                (m + ["--chat", "--raw", "--system", "s"], "--raw"),
                (m + ["--chat", "--raw", "--template", "chatml"], "--raw"),
                (m + ["--chat", "-p", "x", "-f", "y"], "-p or -f"),
                (m, "-p TEXT")):
            self.error(run(*args), 2, text)
        self.error(self.chat("--template", "chatty", "-p", "x"), 1, "'chatty'", "chatml", "raw")

    def test_context(self):
        self.error(self.chat("-c", 40, "-p", "hello"), 1, "do not fit", "40 of the context of 40")
        r = self.chat("-c", 100, "--ignore-eos", stdin=b"hello\nand then\n")
        self.assertEqual(r.returncode, 0)
        self.assertIn(b"the context of 100 tokens is full", r.stderr)
        s = self.stats()
        self.assertEqual((s["turns"], s["stop_reason"], len(s["text_tokens"])), (1, "context", 100))
        # A turn that does not fit leaves what was there.
        r = self.chat("-c", 150, "-n", 9, "--ignore-eos", stdin=b"hello\n" + b"x" * 200 + b"\n")
        self.assertEqual(r.returncode, 1)
        self.assertIn(b"do not fit", r.stderr)
        self.assertEqual(self.stats()["turns"], 1)

    def test_end_tokens_end_an_answer(self):
        r = self.chat("-n", 400, "--temp", 3, "--seed", 1, "--top-k", 0, "--top-p", 1, "--min-p", 0,
                      stdin=b"a\nb\nc\nd\ne\nf\n")
        self.assertEqual(r.returncode, 0)
        s = self.stats()
        self.assertEqual(s["turns"], 6)
        self.assertLess(s["generated_tokens"], 6 * 400)
        self.assertEqual(s["text_tokens"].count(2), 0)  # an end token is no part of the answer

    def test_stop_text_ends_the_answer_only(self):
        r = self.chat("-n", 40, "--ignore-eos", stdin=b"hello")
        answer = r.stdout.decode().rstrip("\n")
        self.assertGreaterEqual(len(answer), 4)
        r = self.chat("-n", 40, "--ignore-eos", "--stop", answer[2:4], stdin=b"hello\nhello\n")
        self.assertEqual((r.returncode, self.stats()["turns"]), (0, 2))
        self.assertTrue(r.stdout.decode().startswith(answer[:answer.index(answer[2:4])]))

    def test_interrupt(self):
        p = subprocess.Popen([INSTINFER, "run", "--chat", "-m", self.chatml, "--kv", "ram:1G", "-c",
                              "1000000", "--ignore-eos", "--stats", self.stats_path],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        p.stdin.write(b"hello\nnever said\n")
        p.stdin.flush()
        p.stdout.read(20)
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=HANG)
        self.assertEqual(p.returncode, 130, err)
        s = self.stats()
        self.assertEqual((s["turns"], s["stop_reason"]), (1, "interrupt"))

    def test_input_that_cannot_be_read(self):
        folder = os.open(self.folder.name, os.O_RDONLY)
        self.addCleanup(os.close, folder)
        r = subprocess.run([INSTINFER, "run", "--chat", "-m", self.chatml, "--kv", "ram:16M"],
                           stdin=folder, capture_output=True, timeout=HANG)
        self.error(r, 1, "standard input: ")

    def test_bare_vocabulary_of_another_kind(self):
        """Any user text, on every format: no crash, and the words come back."""
        for name in FAMILIES:
            r = self.chat("--template", name, "-n", 2, "-f", "-", model=self.plain,
                          stdin=bytes(range(1, 256)))
            self.assertEqual(r.returncode, 0, r.stderr)
            self.assertIn(bytes(range(0x21, 256)), self.text(0, -2))  # without the answer


class Screen:
    """A terminal of 100 x 50 characters with a shell in it, a server of its own each time: one that
    ends still answers for a moment."""
    count = 0

    def __init__(self, folder):
        Screen.count += 1
        self.command = ["tmux", "-L", f"instinfer-{os.getpid()}-{Screen.count}", "-f", os.devnull]
        env = {**os.environ, "LC_ALL": "C.UTF-8", "TERM": "xterm", "PS1": "$ ", "HOME": "/nonexistent"}
        env.pop("TMUX", None)
        # libedit keeps the names of functions that are added to it.
        with open(folder + "/leaks", "w", encoding="ascii") as f:
            f.write("leak:wcsdup\n")
        env["LSAN_OPTIONS"] = f"suppressions={folder}/leaks:print_suppressions=0"
        self.env = env
        self.tmux("new-session", "-d", "-x", "100", "-y", "50", "sh")
        self.tmux("set-option", "-g", "history-limit", "10000")

    def tmux(self, *args):
        return subprocess.run([*self.command, *args], env=self.env, check=True, timeout=HANG,
                              capture_output=True).stdout.decode()

    def keys(self, *keys):
        self.tmux("send-keys", *keys)

    def type(self, text):
        self.tmux("send-keys", "-l", text)

    def text(self):
        lines = self.tmux("capture-pane", "-p", "-J", "-S", "-").split("\n")
        return "\n".join(line.rstrip() for line in lines)

    def wait(self, ready, what):
        end = time.time() + HANG
        while time.time() < end:
            text = self.text()
            if ready(text):
                return text
            time.sleep(0.05)
        raise AssertionError(f"{what} never came:\n{text[-4000:]}")

    def prompt(self):
        """Waits for an empty prompt at the end."""
        return self.wait(lambda text: text.rstrip().endswith("\n>"), "the prompt")

    def close(self):
        subprocess.run([*self.command, "kill-server"], env=self.env, capture_output=True)


class Terminal(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.chatml = cls.model("chatml.gguf", RECALL, template_of(FAMILIES["chatml"]))

    def setUp(self):
        self.screen = Screen(self.folder.name)
        self.addCleanup(self.screen.close)

    def options(self, *args):
        return ["run", "--chat", "-m", self.chatml, "--kv", "ram:64M", "--temp", "0", "-c", "20000",
                "--ignore-eos", "--stats", self.stats_path, *args]

    def start(self, *args):
        self.screen.type(" ".join([INSTINFER, *self.options(*args)]))
        self.screen.keys("Enter")
        text = self.screen.prompt()
        self.assertIn("chat template chatml", text)

    def end(self):
        self.screen.keys("C-d")
        self.screen.wait(lambda text: text.count("peak memory") == 1, "the summary")
        self.screen.type("echo status $?")
        self.screen.keys("Enter")
        self.screen.wait(lambda text: "status 0\n" in text, "exit status 0")

    def test_lines_are_edited(self):
        s = self.screen
        self.start("-n", "8")
        s.type("nothing of this")
        s.keys("C-c")
        s.wait(lambda text: text.rstrip().endswith("nothing of this\n>"), "the cleared line")
        s.type("Hallo wörlxd é")  # ... into "Hello wörld"
        s.keys("BSpace", "BSpace", "Left", "BSpace", "C-a", "Right", "DC", "e", "Enter")
        s.wait(lambda text: "> Hello wörld\n" in text, "the edited line")
        s.prompt()
        s.keys("Up", "C-e", "!", "Enter")  # the history, changed
        s.wait(lambda text: "> Hello wörld!\n" in text, "the line of the history")
        s.prompt()
        s.type("two \\")
        s.keys("Enter")
        s.wait(lambda text: text.rstrip().endswith("\n."), "the prompt that goes on")
        s.type("lines")
        s.keys("Enter")
        s.prompt()
        self.end()
        typed = self.stats()
        lines = subprocess.run([INSTINFER, *self.options("-n", "8")], timeout=HANG, check=True,
                               input="Hello wörld\nHello wörld!\ntwo \\\nlines\n".encode(),
                               capture_output=True)
        piped = self.stats()
        self.assertTrue(lines.stdout)
        self.assertEqual(typed["turns"], 3)
        self.assertEqual(typed["text_tokens"], piped["text_tokens"])
        for stats in (typed, piped):
            self.assertEqual(stats["prefill_tokens"] + stats["decode_tokens"],
                             len(stats["text_tokens"]))

    def test_interrupt_stops_the_answer_only(self):
        s = self.screen
        self.start()
        for said in ("first", "second"):
            before = len(s.text())
            s.type(said)
            s.keys("Enter")
            # The answer is long under way and has no end.
            s.wait(lambda text: len(text) > before + 300, "the answer")
            s.keys("C-c")
            s.prompt()
        s.keys("C-c")  # at an empty prompt: nothing
        s.prompt()
        self.end()
        stats = self.stats()
        ids = stats["text_tokens"]
        self.assertEqual((stats["turns"], stats["stop_reason"]), (2, "interrupt"))
        self.assertLess(len(ids), 20000)
        # Of each answer at most the last token was not computed when Ctrl-C came.
        done = stats["prefill_tokens"] + stats["decode_tokens"]
        self.assertLessEqual(len(ids) - done, 1)
        self.assertLessEqual(done, len(ids))

    def test_interrupt_of_a_prompt_takes_the_turn_back(self):
        s = self.screen
        self.start("-n", "4", "--chunk", "1", "-t", "1")
        s.type("short")
        s.keys("Enter")
        s.prompt()
        kept = len(s.text())
        s.type('"""')
        s.keys("Enter")
        for _ in range(12):
            s.type("many words that take their time to be read, " * 40)
            s.keys("Enter")
        s.type('"""')
        s.keys("Enter")
        s.wait(lambda text: "prefill [" in text, "the bar")
        s.keys("C-c")
        s.prompt()
        self.assertGreater(len(s.text()), kept)
        s.type("and then")
        s.keys("Enter")
        s.prompt()
        self.end()
        stats = self.stats()
        self.assertLess(len(stats["text_tokens"]), 300)
        self.assertEqual(stats["prompt_tokens"] + stats["generated_tokens"],
                         len(stats["text_tokens"]))


if __name__ == "__main__":
    if PART == "terminal" and not shutil.which("tmux"):
        sys.exit(missing("tmux"))
    case = {"pipe": Pipe, "terminal": Terminal}[PART]
    result = unittest.TextTestRunner(verbosity=1).run(
        unittest.defaultTestLoader.loadTestsFromTestCase(case))
    sys.exit(not result.wasSuccessful())
