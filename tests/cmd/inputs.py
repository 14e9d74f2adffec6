#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Text and weights that come from outside: read in pieces, within the budget, and not on when they
cannot fit, whatever the source; lines of other systems; files that shrink while they are in use.
Standard library only.

inputs.py INSTINFER"""
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from needs import HANG, heed_signals, not_tested  # noqa: E402

heed_signals()

INSTINFER = os.path.abspath(sys.argv[1])
M = 1 << 20
BOM = b"\xef\xbb\xbf"


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


SANITIZED = any(name in read(INSTINFER) for name in (b"__asan_init", b"__tsan_init"))


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tmp = tempfile.TemporaryDirectory()
        shape = "--layers 2 --width 64 --heads 4 --kv-heads 2 --head-dim 16 --ffn 96 --type F16"
        cls.model, cls.wide = cls.path("model.gguf"), cls.path("wide.gguf")
        for path, context in (cls.model, "400"), (cls.wide, "4000000"):
            subprocess.run([INSTINFER, "synth", *shape.split(), "-c", context, "-o", path],
                           check=True)

    @classmethod
    def tearDownClass(cls):
        cls.tmp.cleanup()

    @classmethod
    def path(cls, name):
        return cls.tmp.name + "/" + name

    def start(self, *args, **kwargs):
        return subprocess.Popen([INSTINFER, *map(str, args)], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, **kwargs)

    def run_it(self, *args, **kwargs):
        kwargs.setdefault("timeout", HANG)
        if "stdin" not in kwargs:
            kwargs.setdefault("input", b"")
        return subprocess.run([INSTINFER, *map(str, args)], capture_output=True, **kwargs)

    def assert_line(self, code, err, *texts):
        lines = err.decode().splitlines()
        self.assertEqual((code, len(lines)), (1, 1), err)
        self.assertTrue(lines[0].startswith("instinfer: "), lines)
        for text in texts:
            self.assertIn(text, lines[0])


# Runs a command and writes the most memory that it had: a process of its own, as the peak of a
# child begins with that of its parent.
METER = """
import os, resource, sys
pid = os.fork()
if not pid:
    os.execv(sys.argv[2], sys.argv[2:])
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
with open(sys.argv[1], "w") as f:
    f.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
os._exit(status & 255)
"""


class Endless:
    """Bytes without end into a pipe; `taken` is how many went."""

    def __init__(self, piece, fd, first=b""):
        self.piece, self.fd, self.taken = piece * (1 + 65536 // len(piece)), fd, 0
        os.write(fd, first)
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self):
        try:
            while self.taken < 400 * M:
                self.taken += os.write(self.fd, self.piece)
        except BrokenPipeError:
            pass
        os.close(self.fd)


class Sizes(Case):
    def commands(self):
        """Everything that reads a text, up to the file's name, and what it says of a text that is
        too long."""
        engine = ["-m", self.model, "--kv", "ram:16M", "--memory", "8M"]
        context = "does not fit in the context of 400 tokens (see -c)"
        return [
            (["run", *engine, "-n", 1, "-f"], context),
            (["run", *engine, "-n", 1, "--chat", "--raw", "-f"], context),
            (["logits", *engine, "-o", "/dev/null", "-f"], context),
            (["tokenize", "-m", self.model, "--memory", "8M", "-f"],
             "does not fit in the memory budget (see --memory)"),
            (["run", "-m", self.wide, "--kv", "ram:64M", "--memory", "26M", "-n", 1, "-f"],
             "does not fit in the "),  # memory, or what is known of a file: the context
        ]

    def measured(self, *args, **kwargs):
        """Status, error text, most memory in bytes."""
        peak = self.path("peak")
        p = subprocess.run([sys.executable, "-S", "-c", METER, peak, INSTINFER, *map(str, args)],
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=HANG, **kwargs)
        return p.returncode, p.stderr, int(read(peak)) * 1024

    def check(self, name, said, result):
        code, err, peak = result
        self.assert_line(code, err, name + ": a text of more than", said)
        if not SANITIZED:  # the program itself has 4 MiB
            self.assertLess(peak, 40 * M)

    def test_every_source_is_bounded(self):
        large, fifo = self.path("large"), self.path("fifo")
        with open(large, "wb") as f:
            for _ in range(100):
                f.write(b"Once upon a time\n" * (M // 17))
        os.mkfifo(fifo)
        for command, said in self.commands():
            with self.subTest(command=command):
                self.check(large, said, self.measured(*command, large))
                self.check("/dev/zero", said, self.measured(*command, "/dev/zero"))
                with open(large, "rb") as f:
                    self.check("standard input", said, self.measured(*command, "-", stdin=f))
                with open("/dev/zero", "rb") as f:
                    self.check("standard input", said, self.measured(*command, "-", stdin=f))
                out, into = os.pipe()
                endless = Endless(b"Once upon a time\n", into)
                self.check("standard input", said, self.measured(*command, "-", stdin=out))
                os.close(out)
                endless.thread.join()
                self.assertLess(endless.taken, 32 * M)
                out, into = os.pipe()
                endless = Endless(b"x", into)
                name = f"/dev/fd/{out}"
                self.check(name, said, self.measured(*command, name, pass_fds=[out]))
                os.close(out)
                endless.thread.join()
                # Both ends at once, so that nobody waits for the other in vain.
                end = os.open(fifo, os.O_RDWR)
                into = os.open(fifo, os.O_WRONLY)
                endless = Endless(b"\n", into)
                self.check(fifo, said, self.measured(*command, fifo))
                os.close(end)
                endless.thread.join()

    def test_a_conversation_is_bounded(self):
        base = ["run", "--chat", "--raw", "-m", self.model, "--kv", "ram:16M", "--memory", "8M", "-n",
                3, "--temp", 0, "--ignore-eos"]
        for first, piece in ((b"", b"x"), (b"", b"\0"), (b"", b"x\\\n"), (b"", b" \r"),
                             (b'"""', b"text\n"), (b'"""\n', b"\r\n"), (b'"""', b"x")):
            with self.subTest(first=first, piece=piece):
                out, into = os.pipe()
                endless = Endless(piece, into, first)
                code, err, peak = self.measured(*base, stdin=out)
                os.close(out)
                endless.thread.join()
                self.assertLess(endless.taken, M)
                if not SANITIZED:
                    self.assertLess(peak, 40 * M)
                self.assert_line(code, err, "this turn", "400", "(see -c)")
        # What is left of the context counts, not all of it.
        r = self.run_it(*base, "-c", 60, "--stats", self.path("s.json"),
                        input=b"hello, you there\n" + b"x" * 100000 + b"\n")
        self.assert_line(r.returncode, r.stderr, "this turn: a text of more than", "that are left",
                         "of the context of 60")

    def test_the_text_is_the_same_from_everywhere(self):
        """Longer than a piece of any kind, and through pipes in crumbs."""
        text = "".join(f"{i} caf\u00e9 \u20ac\r\n" for i in range(15000)).encode()
        path, fifo = self.path("text"), self.path("fifo2")
        write(path, text)
        os.mkfifo(fifo)
        base = ["tokenize", "-m", self.model, "--ids", "-f"]
        expected = json.loads(self.run_it(*base, path).stdout)
        self.assertEqual(len(expected), 1 + len(text))  # a vocabulary of bytes
        self.assertEqual(json.loads(self.run_it(*base, "-", input=text).stdout), expected)
        with open(path, "rb") as f:
            f.seek(7)  # from where the descriptor is
            self.assertEqual(json.loads(self.run_it(*base, "-", stdin=f).stdout)[1:],
                             expected[1 + 7:])
        with open(fifo, "w+b", buffering=0) as end:
            p = self.start(*base, fifo)
            with open(fifo, "wb", buffering=0) as into:
                time.sleep(0.2)
                end.close()
                for i in range(0, len(text), 9999):
                    into.write(text[i:i + 9999])
            self.assertEqual(json.loads(p.communicate(timeout=HANG)[0]), expected)
        p = self.start(*base, "-", stdin=subprocess.PIPE)
        for i in range(300):
            p.stdin.write(text[i:i + 1])
            p.stdin.flush()
        self.assertEqual(json.loads(p.communicate(timeout=HANG)[0])[1:], expected[1:301])
        # A prompt that just fits, and one that does not.
        for n, code in ((399, 0), (400, 1)):
            write(path, b"x" * n)
            r = self.run_it("run", "-m", self.model, "--kv", "ram:16M", "-n", 0, "-f", path)
            self.assertEqual(r.returncode, code, r.stderr)
        self.assert_line(1, r.stderr, "401 tokens", "context of 400")

    def test_text_counts_in_the_budget(self):
        path = self.path("long")
        write(path, b"x" * 200000)
        for memory in (4 * M, 16 * M, 64 * M):
            r = self.run_it("tokenize", "-m", self.model, "-f", "-", "--ids", "--memory", memory,
                            input=b"y" * (2 * memory))
            self.assert_line(r.returncode, r.stderr, "standard input", "(see --memory)")
        r = self.run_it("tokenize", "-m", self.model, "-f", path, "--ids", "--memory", "8M")
        self.assertEqual((r.returncode, r.stderr), (0, b""))

    def test_interrupt_while_waiting(self):
        for more in ([], ["--chat", "--raw"]):
            p = self.start("run", "-m", self.model, "--kv", "ram:16M", *more, "-f", "-",
                           stdin=subprocess.PIPE)
            p.stdin.write(b"some")
            p.stdin.flush()
            left = bytearray(4)
            while fcntl.ioctl(p.stdin, termios.FIONREAD, left) or any(left):
                time.sleep(0.01)  # until it was read
            time.sleep(0.2)
            p.send_signal(signal.SIGINT)
            p.communicate(timeout=HANG)
            self.assertIn(p.returncode, (130, -signal.SIGINT))

    def test_what_is_no_text(self):
        os.makedirs(self.path("folder"), exist_ok=True)
        for command, _ in self.commands():
            for name, text in ((self.path("folder"), "directory"), (self.path("none"), "No such")):
                r = self.run_it(*command, name)
                self.assert_line(r.returncode, r.stderr, name, text)


class Shrinking(Case):
    def test_a_prompt_that_shrinks(self):
        path = self.path("prompt")
        for wait in (0, 0.05, 0.2):
            write(path, b"Once upon a time there was\n" * (4 * M // 27))
            p = self.start("tokenize", "-m", self.model, "-f", path, "--ids")
            time.sleep(wait)
            os.truncate(path, 0)
            _, err = p.communicate(timeout=HANG)
            self.assertEqual((p.returncode, err), (0, b""))

    def test_weights_that_shrink(self):
        model, stats = self.path("shrinking.gguf"), self.path("stats.json")
        shape = ("--layers 4 --width 256 --heads 8 --kv-heads 8 --head-dim 32 --ffn 1024 --type F16 "
                 "--overwrite -c 1000000")
        for threads, size, command in ((1, 0, "run"), (4, 0, "run"), (4, 100000, "run"),
                                       (2, 4096, "logits")):
            with self.subTest(threads=threads, size=size, command=command):
                subprocess.run([INSTINFER, "synth", *shape.split(), "-o", model], check=True)
                write(stats, b"old")
                more = ["-p", "abc", "--ignore-eos", "--stats", stats] if command == "run" else \
                    ["--tokens", ",".join(["5"] * 30000), "-o", stats]
                p = self.start(command, "-m", model, "--kv", "ram:1G", "-t", threads, *more)
                if command == "run":
                    p.stdout.read(20)
                while model.encode() not in read(f"/proc/{p.pid}/maps"):
                    time.sleep(0.01)
                os.truncate(model, size)
                _, err = p.communicate(timeout=HANG)
                self.assert_line(p.returncode, err, os.path.realpath(model) + ": ", "shortened")
                self.assertEqual(read(stats), b"old")
                self.assertEqual([n for n in os.listdir(self.tmp.name) if ".part-" in n], [])

    def test_a_signal_that_is_only_sent(self):
        if SANITIZED:
            not_tested("SIGBUS from outside: a sanitizer has it")
            return
        p = self.start("run", "-m", self.wide, "-p", "abc", "--ignore-eos", "-c", 1000000, "--kv",
                       "ram:1G", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)))
        p.stdout.read(20)
        p.send_signal(signal.SIGBUS)
        _, err = p.communicate(timeout=HANG)
        self.assertEqual((p.returncode, err), (-signal.SIGBUS, b""))


class Lines(Case):
    def chat(self, text):
        stats = self.path("chat.json")
        r = self.run_it("run", "--chat", "--raw", "-m", self.wide, "-c", 20000, "--kv", "ram:16M", "-n",
                        2, "--temp", 0, "--ignore-eos", "--stats", stats, input=text)
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        s = json.loads(read(stats))
        return s["turns"], s["text_tokens"], r.stdout

    def test_turns(self):
        for text in (b"hello\nyou\n", b"hello\nyou", b"\n\nhello\n\n\nyou\n\n",
                     b'"""\nfirst\nsecond"""\nmore\n', b'"""first\n\nthird\n"""\n', b"one\\\ntwo\n",
                     b"one\\\n\\\nthree\n", b'"""never\nended\n', b"ends\\", b"a\n" + b"b" * 300,
                     b"x" * 4095 + b"\n", b"y" * 4096 + b"\n"):
            expected = self.chat(text)
            with self.subTest(text=text[:20]):
                crlf = text.replace(b"\n", b"\r\n")
                self.assertEqual(self.chat(crlf), expected)
                self.assertEqual(self.chat(BOM + text), expected)
                self.assertEqual(self.chat(BOM + crlf), expected)
        # Files that were put together, each with its mark; a last line of which the end is missing.
        self.assertEqual(self.chat(BOM + b"one\r\n" + BOM + b"two\r\n"), self.chat(b"one\ntwo\n"))
        self.assertEqual(self.chat(b"one\r\ntwo\r"), self.chat(b"one\ntwo\n"))
        self.assertEqual(self.chat(BOM), self.chat(b""))
        self.assertEqual(self.chat(BOM + b"\r\n"), self.chat(b""))
        # What is inside a line is text.
        turns, tokens, _ = self.chat(b"a\rb" + BOM + b"c\n")
        self.assertEqual(turns, 1)
        for byte in b"\r" + BOM:
            self.assertIn(3 + byte, tokens)
        self.assertEqual(self.chat(b"\xef\xbb\n")[0], 1)  # no mark

    def other_encodings(self):
        text = "hello\r\nyou\r\n"
        for name in ("utf-16", "utf-32"):
            yield text.encode(name)  # with its mark
            yield (b"\xfe\xff" if name == "utf-16" else b"\0\0\xfe\xff") + text.encode(name + "-be")

    def test_other_encodings_are_refused(self):
        path = self.path("foreign")
        for data in self.other_encodings():
            write(path, data)
            base = ["-m", self.model, "--kv", "ram:16M"]
            for command, name in (
                    (["run", *base, "-f", path], path), (["run", *base, "-f", "-"], ""),
                    (["run", *base, "--chat", "--raw"], ""),
                    (["run", *base, "--chat", "--raw", "-f", path], path),
                    (["logits", *base, "-f", path, "-o", "/dev/null"], path),
                    (["tokenize", "-m", self.model, "-f", path], path)):
                with self.subTest(command=command[0], data=data[:4]):
                    r = self.run_it(*command, input=data)
                    self.assert_line(r.returncode, r.stderr, (name or "standard input") + ": ",
                                     "UTF-16", "iconv")

    def ids(self, *args, **kwargs):
        r = self.run_it("tokenize", "-m", self.model, "--ids", *args, **kwargs)
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        return json.loads(r.stdout)

    def test_a_file_is_its_text(self):
        path = self.path("text.txt")
        text = b"one\r\n\r\ntwo\r"
        write(path, text)
        plain = self.ids("-f", path)
        for byte in b"\r", b"\n":
            self.assertEqual(plain.count(3 + byte[0]), text.count(byte))
        write(path, BOM + text)
        self.assertEqual(self.ids("-f", path), plain)
        self.assertEqual(self.ids("-f", "-", input=BOM + text), plain)
        # Once, in front, and whole; what the command line says is meant.
        write(path, BOM + BOM + b"x")
        self.assertEqual(self.ids("-f", path)[-4:], [3 + b for b in BOM + b"x"])
        write(path, b"\xef\xbb")
        self.assertEqual(self.ids("-f", path)[-2:], [3 + b for b in b"\xef\xbb"])
        self.assertEqual(self.ids("-p", BOM.decode() + "x")[-4:], [3 + b for b in BOM + b"x"])
        p = self.start("tokenize", "-m", self.model, "--ids", "-f", "-", stdin=subprocess.PIPE)
        for byte in BOM + b"xy":  # the mark in pieces
            p.stdin.write(bytes([byte]))
            p.stdin.flush()
            time.sleep(0.05)
        self.assertEqual(json.loads(p.communicate(timeout=HANG)[0])[-2:], [3 + ord("x"), 3 + ord("y")])

    def test_stop_texts(self):
        base = ["run", "-m", self.model, "--kv", "ram:16M", "-p", "abc", "-n", 60, "--temp", 0,
                "--ignore-eos"]
        text = self.run_it(*base).stdout.decode()
        self.assertGreater(len(text), 6)
        stop = text[3:5]
        for given in (stop, stop + "\r", BOM.decode() + stop, BOM.decode() + stop + "\r"):
            out = self.run_it(*base, "--stop", given).stdout.decode()
            self.assertEqual(out, text[:text.index(stop)])
        for given in ("\r", "\r\n", "\n"):  # these are meant as they are
            self.assertEqual(self.run_it(*base, "--stop", given).returncode, 0)
        r = self.run_it(*base, "--stop", BOM.decode())
        self.assertEqual(r.returncode, 2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=1)
