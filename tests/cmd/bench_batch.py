#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`instinfer bench batch` with tiny models and a script in FlexGen's place. Standard library only."""
import csv
import json
import os
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from needs import HANG  # noqa: E402

INSTINFER = sys.argv[1]
LAYERS, KV_DIM = 3, 32

# Decodes 40 tokens/s, 50 with --cpu-cache-compute.
FAKE = """#!{python}
import json, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
args = dict(zip(sys.argv[2:], sys.argv[3:]))
batch = int(args["--gpu-batch-size"]) * int(args["--num-gpu-batches"])
row = dict(peer="flexgen 0.1.8", batch=batch, prompt=int(args["--prompt-len"]),
           decode_tok_s=50 if "--cpu-cache-compute" in sys.argv else 40, disk_read_MB_step=1)
{mischief}
print(json.dumps(row))
"""


def run(*args):
    return subprocess.run([INSTINFER, *map(str, args)], capture_output=True, timeout=HANG)


class BenchBatch(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory(dir=os.getcwd())
        cls.model = cls.synth("model", LAYERS, "--heads 4 --kv-heads 2 --head-dim 16")

    @classmethod
    def tearDownClass(cls):
        cls.dir.cleanup()

    @classmethod
    def synth(cls, name, layers, heads):
        path = f"{cls.dir.name}/{name}.gguf"
        shape = f"--layers {layers} --width 64 {heads} --ffn 64 --vocab 300 --type F16"
        r = run("synth", *shape.split(), "-o", path)
        assert r.returncode == 0, r.stderr
        return path

    def path(self, name):
        return self.dir.name + "/" + name

    def bench(self, *args, model=None):
        return run("bench", "batch", "-m", model or self.model, "-n", 2, *args)

    def rows(self, path):
        with open(path, newline="") as f:
            return list(csv.DictReader(f))

    def assert_error(self, r, code, text):
        self.assertEqual(r.returncode, code, r.stderr)
        lines = r.stderr.decode().splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertIn(text, lines[0])

    def test_usage(self):
        cases = [
            (["--batch", "0"], "--batch"),
            (["--depth", "0"], "--depth"),
            (["--flexgen-arg", "x"], "needs --flexgen"),
            (["--method", "nonsense", "--kv", "ram:16M"], "nonsense"),
            (["--method", "dense", "--heads", 1], "need --attention pages"),
            (["--method", "dense", "--index-on-disk"], "need --attention pages"),
            (["--method", "pages", "--index-on-disk", "--look", 9], "goes without --look"),
            (["--flexgen", self.model, "--kv", "ram:16M"], "OPT-1.3B has 24 layers"),
        ]
        for args, text in cases:
            with self.subTest(args=args):
                r = self.bench(*args)
                self.assertNotEqual(r.returncode, 0)
                self.assertEqual(r.stdout, b"")
                self.assert_error(r, r.returncode, text)
        self.assert_error(run("bench", "batch"), 2, "no model given")

    def test_options_of_a_method(self):
        """They hold for it alone, however it is named."""
        table = self.path("table.csv")
        for args, methods in ((["--attention", "pages"], ["pages"]),
                              (["--method", "dense", "--method", "pages"], ["dense", "pages"])):
            r = self.bench("-b", "2", "-d", "100", "-r", 1, *args, "--heads", 1, "--piece", 16,
                           "--kv", self.path("."), "--csv", table)
            self.assertEqual((r.returncode, r.stderr), (0, b""))
            self.assertEqual([w["method"] for w in self.rows(table)], methods)

    def test_batches(self):
        table, picture = self.path("table.csv"), self.path("picture.svg")
        r = self.bench("-b", "1,3", "-d", "40,100", "-r", 1, "--method", "dense", "--method", "sparf",
                       "--kv", self.path("."), "--group", 16, "--row-cache", "off", "--bound", "--csv",
                       table, "--svg", picture)
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        rows = self.rows(table)
        self.assertEqual([(w["depth"], w["batch"], w["method"]) for w in rows],
                         [(d, b, m) for d in ("40", "100") for b in "13" for m in ("dense", "sparf")])
        for w in rows:
            self.assertEqual(w["rounds"], "1")
            self.assertGreater(float(w["least"]), 0)
            self.assertLessEqual(float(w["least"]), float(w["tokens_per_s"]))
            self.assertGreater(float(w["empty_tokens_per_s"]), 0)
            self.assertGreater(float(w["predicted_tokens_per_s"]), 0)
            self.assertEqual(w["ratio"], "")
            self.assertGreater(float(w["of_raw"]), 0)
            reading = float(w["flash_bytes_per_step"]) / float(w["gb_per_s"]) * float(w["of_raw"])
            longer = max(int(w["batch"]) / float(w["null_tokens_per_s"]), reading / 1e9)
            self.assertAlmostEqual(float(w["of_bound"]) * longer * float(w["tokens_per_s"])
                                   / int(w["batch"]), 1, delta=0.02)
        # The first batch predicts itself, unless attention was too quick to be seen.
        for w in rows:
            if w["batch"] == "1" and float(w["empty_tokens_per_s"]) > float(w["tokens_per_s"]):
                self.assertAlmostEqual(float(w["predicted_tokens_per_s"]) / float(w["tokens_per_s"]),
                                       1, places=3)
        # Three sequences of 100 tokens are read three times as much as one.
        flash = {(w["depth"], w["batch"], w["method"]): float(w["flash_bytes_per_step"]) for w in rows}
        self.assertGreater(flash["100", "1", "dense"], 80 * LAYERS * KV_DIM * 4)
        self.assertGreater(flash["100", "3", "dense"], 3 * 80 * LAYERS * KV_DIM * 4)
        self.assertLess(flash["100", "3", "dense"], 2 * 3 * 100 * LAYERS * KV_DIM * 4 + 3 * 65536)
        text = r.stdout.decode()
        self.assertIn("synthetic (llama)", text.splitlines()[1])
        self.assertEqual(len([line for line in text.splitlines() if line.startswith("|")]),
                         2 + len(rows))
        root = xml.etree.ElementTree.parse(picture).getroot()
        self.assertTrue(root.tag.endswith("svg"))
        self.assertNotIn("-0", [element.text for element in root.iter()])

    def fake(self, mischief=""):
        path = self.path("flexgen")
        with open(path, "w") as f:
            f.write(FAKE.format(python=sys.executable, log=self.path("log"), mischief=mischief))
        os.chmod(path, 0o755)
        return path

    def test_flexgen(self):
        opt = self.synth("opt", 24, "--heads 32 --kv-heads 32 --head-dim 64")
        table, script = self.path("flexgen.csv"), self.fake()
        args = ["-b", "2,16", "-d", 33, "-r", 2, "--kv", self.path("."), "--flexgen"]
        r = self.bench(*args, script, "--flexgen-arg", "--percent", "--csv", table, model=opt)
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        self.assertIn(b"FlexGen: flexgen 0.1.8", r.stdout)
        for w in self.rows(table):
            self.assertEqual((w["flexgen_tokens_per_s"], w["flexgen_host_tokens_per_s"]), ("40", "50"))
            self.assertAlmostEqual(float(w["tokens_per_s"]) / 50 / float(w["ratio"]), 1, places=2)
        with open(self.path("log")) as f:
            calls = [json.loads(line) for line in f]
        self.assertEqual(len(calls), 2 * 2 * 2)
        with open("/proc/cpuinfo") as f:
            bf16 = any("bf16" in line for line in f if line.startswith(("flags", "Features")))
        common = ["--fg-cold", "--fg-fast-prefill", "--fg-dtype", "bf16" if bf16 else "fp32"]
        for i, call in enumerate(calls):
            at_once, batches = ("2", "1") if i < 4 else ("8", "2")
            want = [self.path("."), "--prompt-len", "33", "--gen-len", "3", "--gpu-batch-size",
                    at_once, "--num-gpu-batches", batches, *common]
            want += ["--cpu-cache-compute"] if i % 2 else []
            self.assertEqual(call, want + ["--percent"])
        for mischief, text in (("row['batch'] = 7", "a batch of 7"), ("row = {}", "decode_tok_s"),
                               ("sys.exit('no torch here')", "no torch here"),
                               ("print('{'); sys.exit()", "decode_tok_s")):
            with self.subTest(mischief=mischief):
                r = self.bench(*args, self.fake(mischief), model=opt)
                self.assertEqual(r.returncode, 1)
                self.assertIn(text, r.stderr.decode().splitlines()[-1])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
