#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`instinfer bench` with a tiny model and a script in llama-bench's place. Standard library only."""
import csv
import json
import os
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from needs import HANG  # noqa: E402

INSTINFER = sys.argv[1]
VOCAB, WIDTH, LAYERS, KV_DIM = 300, 64, 3, 32

# Says back what it was asked, at 1,000,000 tokens/s per token asked for.
FAKE = """#!/bin/sh
# Python ignores SIGPIPE itself, so the shell looks at what it inherited.
IGNORED=$(grep SigIgn /proc/self/status) exec {python} - "$@" <<'PYTHON'
import json, os, signal, sys
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open({log!r}, "a") as log:
    ignored = int(os.environ["IGNORED"].split()[1], 16)
    log.write(json.dumps([sys.argv[1:], ignored >> (signal.SIGPIPE - 1) & 1]) + "\\n")
depth, rows = int(args.get("-d", 0)), []
for prompt, tokens in ((int(args["-p"]), 0), (0, int(args["-n"]))):
    if prompt + tokens:
        rows.append(dict(n_prompt=prompt, n_gen=tokens, n_depth=depth, build_commit="abc123",
                         avg_ts=1e6 * (prompt + tokens)))
{mischief}
print(json.dumps(rows))
PYTHON
"""


def run(*args, **kwargs):
    return subprocess.run([INSTINFER, *map(str, args)], capture_output=True, timeout=HANG, **kwargs)


class Bench(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        cls.model = cls.dir.name + "/model.gguf"
        shape = f"--layers {LAYERS} --width {WIDTH} --heads 4 --kv-heads 2 --head-dim 16 --ffn 96"
        r = run("synth", *shape.split(), "--vocab", VOCAB, "--type", "F16", "-o", cls.model)
        assert r.returncode == 0, r.stderr

    @classmethod
    def tearDownClass(cls):
        cls.dir.cleanup()

    def path(self, name):
        return self.dir.name + "/" + name

    def fake(self, mischief="", name="llama-bench"):
        path = self.path(name)
        with open(path, "w") as f:
            f.write(FAKE.format(python=sys.executable, log=self.path("log"), mischief=mischief))
        os.chmod(path, 0o755)
        if os.path.exists(self.path("log")):
            os.unlink(self.path("log"))
        return path

    def bench(self, *args, kv="ram:16M"):
        return run("bench", "model", "-m", self.model, "--kv", kv, "-p", 8, "-n", 4, *args)

    def assert_error(self, r, code, *texts):
        self.assertEqual(r.returncode, code, r.stderr)
        lines = r.stderr.decode().splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertTrue(lines[0].startswith("instinfer: "), lines)
        for text in texts:
            self.assertIn(text, lines[0])

    def rows(self, path):
        with open(path, newline="") as f:
            return list(csv.DictReader(f))

    def test_usage(self):
        m = ["bench", "model", "-m", self.model]
        cases = [
            (["bench", "nonsense"], "'nonsense'"),
            (["bench", "model"], "bench model: no model given"),
            (m + ["--depth", "1,,2"], "--depth: '1,,2' is not a list of whole numbers"),
            (m + ["--depth", "x"], "--depth: 'x' is not a whole number"),
            (m + ["--depth", "-1"], "is out of range"),
            (m + ["-t", "1,0"], "-t: '1,0' is out of range (1 to 1024)"),
            (m + ["-t", ""], "-t: ''"),
            (m + ["--rounds", "0"], "--rounds"),
            (m + ["-p", "0", "-n", "0"], "nothing to measure"),
            (m + ["--llama-arg", "-x"], "needs --llama-bench"),
        ]
        for args, text in cases:
            with self.subTest(args=args):
                r = run(*args)
                self.assertEqual(r.stdout, b"")
                self.assert_error(r, 2, text)
        self.assertEqual(run("bench").returncode, 2)
        for args in (["--help"], ["model", "--help"]):
            r = run("bench", *args)
            self.assertEqual((r.returncode, r.stderr), (0, b""))
            self.assertIn(b"usage: instinfer bench", r.stdout)

    def test_alone(self):
        path = self.path("alone.csv")
        r = self.bench("-d", "0,50,20", "-t", "1,2", "-r", 2, "--csv", path)
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        rows = self.rows(path)
        want = [(t, d, test) for t in "12" for d in ("0", "50", "20") for test in ("prefill", "decode")]
        self.assertEqual([(w["threads"], w["depth"], w["test"]) for w in rows], want)
        table = [line for line in r.stdout.decode().splitlines() if line.startswith("|")]
        self.assertEqual(len(table), 2 + len(want))
        with open(path) as f:
            self.assertEqual({line.count(",") for line in f}, {16})
        self.assertEqual({line.count("|") for line in table}, {7})
        self.assertNotIn(b"llama.cpp", r.stdout)
        for w in rows:
            self.assertGreater(float(w["least"]), 0)
            self.assertLessEqual(float(w["least"]), float(w["tokens_per_s"]))
            self.assertLessEqual(float(w["tokens_per_s"]), float(w["most"]))
            self.assertEqual(w["ratio"], "")

    def test_bytes_per_token(self):
        stats, path = self.path("stats.json"), self.path("bytes.csv")
        run("run", "-m", self.model, "-p", "x", "-n", 1, "--kv", "ram:16M", "--stats", stats)
        with open(stats) as f:
            weights = json.load(f)["weight_bytes"] - VOCAB * WIDTH * 2  # one row of the embeddings
        r = self.bench("-d", "0,50", "-p", 0, "-n", 5, "-r", 1, "--csv", path)
        self.assertEqual(r.returncode, 0, r.stderr)
        for w in self.rows(path):
            self.assertEqual(w["test"], "decode")
            want = weights + LAYERS * KV_DIM * 4 * (int(w["depth"]) + 3)  # 1 to 5 tokens more
            got = float(w["gb_per_s"]) * 1e9 / float(w["tokens_per_s"])
            self.assertAlmostEqual(got / want, 1, places=4)

    def test_made_up(self):
        # A token behind a depth that was made up, and flushed, reads about all of it; behind one that
        # was computed no more than that, as its rows may still be on their way to the disk.
        want = 300 * LAYERS * KV_DIM * 4
        for more in ([], ["--made-up"]):
            path = self.path("made-up.csv")
            r = run("bench", "model", "-m", self.model, "-p", 8, "-n", 4, "-d", 300, "-r", 2, "--csv",
                    path, *more, "--kv", self.path("."), "--group", 16, "--row-cache", "off")
            self.assertEqual((r.returncode, r.stderr), (0, b""))
            prefill, decode = self.rows(path)
            self.assertEqual((prefill["depth"], decode["depth"]), ("300", "300"))
            if more:
                self.assertGreater(float(decode["flash_bytes_per_token"]), want / 2)
            self.assertLess(float(decode["flash_bytes_per_token"]), want * 2)

    def test_beside(self):
        path = self.path("beside.csv")
        r = self.bench("-d", "0,20", "-t", 2, "-r", 3, "--llama-bench", self.fake(), "--llama-arg",
                       "-fa", "--llama-arg=1", "--csv", path)
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        self.assertIn(b"commit abc123", r.stdout)
        table = [line for line in r.stdout.decode().splitlines() if line.startswith("|")]
        self.assertEqual({line.count("|") for line in table}, {9})
        rows = self.rows(path)
        self.assertEqual([(w["depth"], w["tokens"]) for w in rows],
                         [("0", "8"), ("0", "4"), ("20", "8"), ("20", "4")])
        for w in rows:
            theirs = 1e6 * int(w["tokens"])
            for key in ("llama_tokens_per_s", "llama_least", "llama_most"):
                self.assertAlmostEqual(float(w[key]) / theirs, 1, places=4)
            for ours, ratio in (("least", "ratio_least"), ("most", "ratio_most"),
                                ("tokens_per_s", "ratio")):
                self.assertAlmostEqual(float(w[ours]) / theirs / float(w[ratio]), 1, places=2)
        with open(self.path("log")) as f:
            calls = [json.loads(line) for line in f]
        self.assertEqual(len(calls), 6)
        common = ["-m", self.model, "-t", "2", "-p", "8", "-n", "4", "-r", "1", "-o", "json"]
        for i, (args, pipe_ignored) in enumerate(calls):
            self.assertEqual(args, common + (["-d", "20"] if i > 2 else []) + ["-fa", "1"])
            self.assertFalse(pipe_ignored)

    def test_bad_rivals(self):
        cases = [
            (["--llama-bench", "/no/such/llama-bench"], ["/no/such/llama-bench", "No such file"]),
            (["--llama-bench", self.model], ["model.gguf", "ermission denied"]),
            ("sys.stderr.write('loading\\ncannot open it\\n\\n'); sys.exit(3)",
             ["status 3: cannot open it"]),
            ("sys.exit(1)", ["status 1"]),
            ("os.kill(os.getpid(), signal.SIGKILL)", ["signal 9"]),
            ("print('[1, 2'); sys.exit()", ["did not print"]),
            ("print('hello')", ["did not print"]),
            ("rows = {'avg_ts': 1}", ["did not print"]),
            ("sys.exit()", ["did not print"]),
            ("rows = []", ["no result for prefill of 8 tokens at depth 0"]),
            ("rows = [3, None, 'x', rows[0]]", ["no result for decode of 4 tokens at depth 0"]),
            ("rows[0]['n_depth'] = 7", ["no result for prefill"]),
            ("rows[1]['avg_ts'] = 0", ["no result for decode"]),
            ("rows[1]['avg_ts'] = 'fast'", ["no result for decode"]),
            ("rows[0]['build_commit'] = 'y' * 500; rows[1]['avg_ts'] = -1", ["no result"]),
            ("sys.stderr.write('z' * 100000); sys.exit(9)", ["status 9: zzz"]),
        ]
        for i, (how, texts) in enumerate(cases):
            args = ["--llama-bench", self.fake(how, f"bad{i}")] if isinstance(how, str) else how
            with self.subTest(how=how):
                self.assert_error(self.bench("-r", 1, *args), 1, *texts)

    def test_other_errors(self):
        self.assert_error(run("bench", "model", "-m", "/no/such/model"), 1, "/no/such/model")
        self.assert_error(self.bench("--csv", "/no/such/dir/x.csv"), 1, "/no/such/dir/x.csv")
        self.assert_error(self.bench("-d", 4000, kv="ram:256K"), 1, "drive is full (see --kv-limit")
        with open("/dev/full", "w") as full:
            r = subprocess.run([INSTINFER, "bench", "model", "-m", self.model, "--kv", "ram:16M",
                                "-p", "8", "-n", "4"], stdout=full, stderr=subprocess.PIPE)
        self.assert_error(r, 1, "standard output")

    def test_small_stores(self):
        """Whatever the room, the turns are what they say or there is a clear error."""
        codes = set()
        for size in range(96, 1000, 64):
            r = self.bench("-d", 300, "-r", 4, "--group", 16, kv=f"ram:{size}K")
            codes.add(r.returncode)
            if r.returncode:
                self.assert_error(r, 1, "--kv-limit")
        self.assertEqual(codes, {0, 1})


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
