#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What is said of a machine, a place and a model that are not as they should be: one line each, by
every command, and by inspect before anything runs. Standard library only."""
import os
import re
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from needs import HANG, not_tested  # noqa: E402

INSTINFER = sys.argv[1]


def run(*args, stdin=b"", **kwargs):
    return subprocess.run([INSTINFER, *map(str, args)], input=stdin, capture_output=True,
                          timeout=HANG, **kwargs)


class Surroundings(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        cls.model = cls.dir.name + "/model.gguf"
        shape = "--layers 2 --width 64 --heads 4 --kv-heads 2 --head-dim 16 --ffn 96 --type F32"
        r = run("synth", *shape.split(), "-c", 200, "-o", cls.model)
        assert r.returncode == 0, r.stderr

    @classmethod
    def tearDownClass(cls):
        cls.dir.cleanup()

    def commands(self, model, *options):
        """Every command with an engine, as a user would call it."""
        m = ["-m", model, *options]
        yield ["run", *m, "-p", "abc", "-n", 2, "--ignore-eos"], b""
        yield ["run", *m, "--chat", "--raw", "-n", 2], b"hello\n"
        yield ["logits", *m, "-p", "abc", "-o", self.dir.name + "/l.npy"], b""
        yield ["logits", *m, "-p", "abc", "--all", "-o", self.dir.name + "/l.npy"], b""
        if "-c" not in options:
            yield ["bench", "model", *m, "-p", 4, "-n", 2, "-r", 1], b""

    def poisoned(self, name, element, value):
        """A copy of the model with one number changed."""
        text = run("inspect", "-v", self.model).stdout.decode()
        at = int(re.search(r"^  %s F32 \[.*\] at (\d+)$" % re.escape(name), text, re.M)[1])
        with open(self.model, "rb") as f:
            data = bytearray(f.read())
        data[at + 4 * element:at + 4 * element + 4] = struct.pack("<f", value)
        path = self.dir.name + "/poisoned.gguf"
        with open(path, "wb") as f:
            f.write(data)
        return path

    def test_nothing_is_said_of_what_is_right(self):
        for args, stdin in self.commands(self.model, "--kv", "ram:16M"):
            with self.subTest(args=args):
                r = run(*args, stdin=stdin)
                self.assertEqual((r.returncode, r.stderr), (0, b""))

    def test_numbers_that_are_none(self):
        for name, value in (("blk.1.ffn_down.weight", float("nan")),
                            ("blk.0.attn_k.weight", float("inf")),
                            ("output_norm.weight", float("-inf"))):
            path = self.poisoned(name, 5, value)
            for args, stdin in self.commands(path, "--kv", "ram:16M"):
                with self.subTest(args=args):
                    r = run(*args, stdin=stdin)
                    self.assertEqual((r.returncode, len(r.stderr.splitlines())), (1, 1), r.stderr)
                    self.assertIn(b"tensor %s holds NaN or infinity" % name.encode(), r.stderr)
        path = self.poisoned("blk.1.attn_norm.weight", 3, 1e9)
        for args, stdin in self.commands(path, "--kv", "ram:16M"):
            with self.subTest(args=args):
                r = run(*args, stdin=stdin)
                self.assertEqual((r.returncode, len(r.stderr.splitlines())), (1, 1), r.stderr)
                self.assertRegex(r.stderr, rb"layer 1: [KV] of token \d+ exceeds fp16 \(65504\)")

    def warns(self, options, *texts):
        """A line each, from every command and from inspect; and it runs."""
        for args, stdin in self.commands(self.model, *options):
            with self.subTest(args=args):
                r = run(*args, stdin=stdin)
                lines = r.stderr.decode().splitlines()
                self.assertEqual((r.returncode, len(lines)), (0, len(texts)), lines)
                for line, text in zip(lines, texts):
                    self.assertTrue(line.startswith("instinfer: warning: "), line)
                    self.assertIn(text, line)
        r = run("inspect", self.model, *options)
        lines = [x for x in r.stdout.decode().splitlines() if x.startswith("warning: ")]
        self.assertEqual(len(lines), len(texts), r.stdout)
        for line, text in zip(lines, texts):
            self.assertIn(text, line)
        self.assertIn(b"\nruns here: yes\n", r.stdout)

    def test_warnings(self):
        self.warns(["--kv", "ram:16M", "-c", 201],
                   "a context of 201 tokens: the model was trained for 200")
        self.warns(["--kv", "ram:16M", "--memory", "1000T"], "--memory 1000T: only ")
        self.warns(["--kv", "ram:16M", "-c", 300, "--memory", "1000T"], "--memory 1000T: only ",
                   "trained for 200")

    def test_kv_in_memory(self):
        if os.system("stat -f -c %T /dev/shm | grep -q tmpfs") or not os.access("/dev/shm", os.W_OK):
            not_tested("KV in memory: /dev/shm is no tmpfs that can be written")
            return
        self.warns(["--kv", "/dev/shm", "--memory", "16M"],
                   "/dev/shm is memory (tmpfs): KV there, up to ")
        r = run("bench", "drive", "--contexts", 256, "--layers", 1, "--steps", 2, "--shape", "2/1x16",
                "--kv", "/dev/shm")
        self.assertEqual((r.returncode, r.stderr), (0, b"instinfer: warning: /dev/shm is memory "
                                                       b"(tmpfs): no disk is measured\n"))

    def test_inspect_says_what_would_be(self):
        r = run("inspect", self.model, "--kv", self.dir.name, "--memory", "16M", "-t", 2)
        text = r.stdout.decode()
        self.assertRegex(text, r"\nhere: \d+ CPUs, [0-9.]+[MGT] of memory available\n")
        self.assertRegex(text, r"\nKV of a context of 200 tokens takes \S+ in %s \(.+ free\)\n" % self.dir.name)
        self.assertRegex(text, r"\nmemory 16\.0M, chunk \d+, group \d+, 2 threads\n")
        for options, why in ((["--memory", "1M"], "--memory 1.0M is too small"),
                             (["--kv", "/no/such/dir"], "/no/such/dir: No such file"),
                             (["--kernels", "mmx"], "kernel set 'mmx'")):
            r = run("inspect", self.model, *options)
            self.assertEqual(r.returncode, 0)
            self.assertIn("runs here: no: " + why, r.stdout.decode())
        self.assertEqual(run("inspect", self.model, "--group", 48).returncode, 2)
        # Looking makes nothing.
        cache = self.dir.name + "/cache"
        r = run("inspect", self.model, env={**os.environ, "XDG_CACHE_HOME": cache})
        self.assertIn(b"runs here: yes", r.stdout)
        self.assertFalse(os.path.exists(cache))

    def test_no_home(self):
        env = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
        with open(self.dir.name + "/file", "w"):
            pass
        places = [{}, {"HOME": ""}, {"HOME": "here"}, {"HOME": "/no/such/home"},
                  {"HOME": self.dir.name + "/file"}, {"XDG_CACHE_HOME": self.dir.name + "/file"},
                  {"XDG_CACHE_HOME": "/proc/cache"}, {"HOME": "/proc/self"}]
        for place in places:
            for args, stdin in self.commands(self.model):
                with self.subTest(place=place, args=args):
                    r = run(*args, stdin=stdin, env={**env, **place})
                    self.assertEqual((r.returncode, len(r.stderr.splitlines())), (1, 1), r.stderr)
                    self.assertIn(b"--kv", r.stderr)
        self.assertFalse(os.path.exists("/no"))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
