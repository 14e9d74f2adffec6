#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`instinfer sim` as a user sees it; and docs/sim.md says what it prints. Standard library only."""
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from needs import HANG  # noqa: E402

INSTINFER, ROOT = sys.argv[1:3]
MORE = os.environ.get("INST_MORE") == "1"
SYSTEMS = ("insta insta_sparf insta_pages hilos direct flexgen flexgen_gds flexgen_sparq deepspeed "
           "recompute queueing").split()


def sim(*args):
    r = subprocess.run([INSTINFER, "sim", *map(str, args)], capture_output=True, text=True,
                       timeout=HANG)
    return r


def block(name, page="sim"):
    with open(f"{ROOT}/docs/{page}.md", encoding="utf-8") as f:
        return f.read().split(f"<!-- begin {name} -->\n")[1].split(f"<!-- end {name} -->")[0].strip()


def cells(line):
    return [c.strip() for c in line.strip("|").split(" | ")]


class Sim(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()

    def tearDown(self):
        self.dir.cleanup()

    def test_wrong(self):
        file = self.dir.name + "/file"
        open(file, "w").close()
        for args, says in (
                (["--model", "gpt-9"], "opt-13b"), (["--system", "x"], "insta_sparf"),
                (["--set", "run"], "NAME=VALUE"), (["--set", "ru=1"], "NAME=VALUE"),
                (["--set", "run=99"], "out of range"), (["--set", "run=1x"], "out of range"),
                (["--set", "run=nan"], "out of range"), (["-o", "x"], "--paper"),
                (["--paper"], "-o DIR"), (["--wear", "--real"], "--wear"),
                (["--own-blocks"], "--wear"),
                (["--trace-selections", file], "no selections in it"),
                (["--trace-selections", file, "--fit"], "--paper"),
                (["--beyond"], "-o DIR"), (["--paper", "--beyond", "-o", "x"], "one at a time"),
                (["--real", "--sample", 257], "--sample"), (["--drives", 0], "--drives"),
                (["--drive", "ssd-980pro"], "engine"), (["--gpu", "no"], "no"),
                (["--gpu", "instcsd-zynq7045"], "gpu"), (["--heads", 40, "--kv-heads", 3], "40/3"),
                (["--paper", "-o", file], "is not a folder"), (["x"], "unexpected"),
                (["--paper", "-o", self.dir.name + "/no/such"], "No such file")):
            r = sim(*args)
            self.assertIn(r.returncode, (1, 2), args)
            self.assertEqual(r.stdout, "", args)
            self.assertEqual(r.stderr.count("\n"), 1, r.stderr)
            self.assertIn(says, r.stderr)

    def test_systems(self):
        """All of them, what they say of memory, and numbers that agree with each other."""
        path = self.dir.name + "/s.csv"
        r = sim("-b", 64, "--csv", path)
        self.assertEqual((r.returncode, r.stderr), (0, ""))
        with open(path, encoding="utf-8") as f:
            rows = {x["system"]: x for x in csv.DictReader(f)}
        self.assertEqual(list(rows), SYSTEMS)
        for name, row in rows.items():
            self.assertIn(f"\n{name} ", r.stdout)
            n = {k: float(v) for k, v in row.items()
                 if k not in ("system", "model", "out_of_memory")}
            parts = sum(n[k] for k in ("kv_s", "engine_s", "transfer_s", "host_s", "gpu_s"))
            self.assertAlmostEqual(parts / n["step_s"], 1, delta=0.01, msg=name)
            speed = 64 * 1024 / (n["prefill_s"] + 1024 * n["step_s"])
            self.assertAlmostEqual(speed / n["tokens_per_s"], 1, delta=1e-4)
        # 80.5 GB at 11.2 GB/s; SparF reads about half, pages an eighth.
        self.assertAlmostEqual(float(rows["insta"]["kv_s"]), 7.19, delta=0.01)
        self.assertAlmostEqual(float(rows["insta_pages"]["phi"]), 0.125, delta=1e-6)
        self.assertAlmostEqual(float(rows["insta_pages"]["kv_s"]), 7.19 / 8, delta=0.05)
        r = sim("-b", 128, "-s", "flexgen")
        self.assertIn("flexgen        out of memory: VRAM", r.stdout)
        r = sim("-b", 4096, "-s", "insta_sparf", "--input", 8192)
        self.assertIn("out of memory: ", r.stdout)

    def test_recorded_selections(self):
        """What a real run records says which pages it read; the simulator reads by it."""
        trace, stats = self.dir.name + "/trace", self.dir.name + "/stats"
        for method in "sparf", "pages":
            subprocess.run([INSTINFER, "run", "-m", ROOT + "/models/stories260K.gguf", "-p",
                            "Once upon a time", "-n", "150", "--ignore-eos", "--temp", "0",
                            "--group", "16", "--row-cache", "off", "--kv", "ram:100M",
                            "--attention", method, "--trace-selections", trace, "--stats", stats],
                           check=True, capture_output=True, timeout=HANG)
            with open(stats, encoding="utf-8") as f:
                s = json.load(f)
            r = sim("-s", "insta_" + method, "--trace-selections", trace)
            self.assertEqual((r.returncode, r.stderr), (0, ""))
            read, dense = map(int, re.search(r"its run: (\d+) of (\d+) pages", r.stdout).groups())
            if method == "sparf":
                self.assertEqual((read, dense), (s["token_pages"], s["dense_pages"]))
            else:  # 4 KiB pages; rows that the run found on their way to flash were not read
                self.assertEqual(dense * 4096, s["pages_dense_bytes"])
                self.assertLessEqual(s["pages_read_bytes"], read * 4096)
                self.assertGreater(s["pages_read_bytes"], 0.98 * read * 4096)
            self.assertLess(read, dense)
        r = sim("--trace-selections", trace, "--trace-selections", trace)
        self.assertEqual((r.returncode, r.stdout), (2, ""))
        with open(trace, "a", encoding="utf-8") as f:
            f.write("0 0 0 0 1 1 0 - 1\n")
        r = sim("--trace-selections", trace)
        self.assertEqual((r.returncode, r.stderr.count("\n")), (1, 1))
        self.assertIn(trace, r.stderr)

    def test_shipped_selections(self):
        """docs/sim.md: what the recorded selections of the recall model come to."""
        paths = [f"{ROOT}/docs/example/recall-{m}.selections" for m in ("sparf", "pages")]
        args = [a for path in paths for a in ("--trace-selections", path)]
        r = sim("-b", 4, "-s", "insta_sparf", "-s", "insta_pages", *args)
        self.assertEqual((r.returncode, r.stderr), (0, ""))
        says = "\n".join(r.stdout.replace(ROOT + "/", "").split("\n")[1:7])
        self.assertEqual(block("recorded").strip("`\n"), says)
        # The statistical model, told how long runs are, has the share of pages.
        here, model = map(float, re.search(r"here: ([\d.]+) .*; ([\d.]+) by", r.stdout).groups())
        self.assertAlmostEqual(here / model, 1, delta=0.01)

    def test_wear(self):
        """All writes of four batches through the real FTL, on flash that must be used again."""
        small = self.dir.name + "/small.profile"
        with open(ROOT + "/profiles/instcsd-zynq7045.profile", encoding="utf-8") as f:
            text = f.read()
        for a, b in (("\nchannels = 8 ", "\nchannels = 4 "), ("\ndies = 32 ", "\ndies = 2 "),
                     ("\npages_per_block = 256 ", "\npages_per_block = 64 ")):
            self.assertIn(a, text)
            text = text.replace(a, b)
        with open(small, "w", encoding="utf-8") as f:
            f.write(text)

        def wear(*more):
            r = sim("--wear", "--drive", small, "-d", 20, "-b", 4, "--layers", 8, "--output", 64,
                    "--generations", 4, *more)
            self.assertEqual((r.returncode, r.stderr), (0, ""))
            return {c[0]: c for c in map(cells, r.stdout.split("\n")) if c[0].startswith("insta")
                    for c in [[x.strip("| ") for x in c]]}

        rows, own = wear(), wear("--own-blocks")
        self.assertEqual(list(rows), ["insta", "insta_sparf", "insta_pages"])
        for name, row in rows.items():
            kv, accepted, waf, programmed, erased = map(float, row[2:7])
            least, mean, most = map(float, row[7].split(" / "))
            # 1,088 tokens, of which channel pages cover 1,024.
            self.assertAlmostEqual(accepted, 1 + (name == "insta_sparf") * 512 / 1088, delta=1e-3)
            self.assertTrue(1 <= waf < 1.005, waf)
            self.assertAlmostEqual(programmed, accepted * waf, delta=1e-3)
            self.assertTrue(programmed - 1e-3 <= erased < 1.2 * programmed, erased)
            # Blocks take turns, whichever was erased last.
            self.assertTrue(2 < mean < most <= least + 2, row)
            arithmetic, years = map(float, row[9:11])
            self.assertTrue(0.8 * arithmetic < years < 1.05 * arithmetic, row)
            # Sequences that do not share blocks leave more of them partly empty.
            self.assertGreater(float(own[name][6]), erased)

    def test_drives(self):
        """Heads are whole: 14 drives are as slow as 16; more drives are never slower."""
        speeds = []
        for drives in (1, 2, 14, 16, 20):
            r = sim("-d", drives, "-s", "insta")
            speeds.append(float(r.stdout.split("insta ")[1].split()[0]))
        self.assertEqual(speeds[2], speeds[3])
        self.assertEqual(speeds, sorted(speeds))

    def test_paper(self):
        """Every file, and the table of the document; its ranges only where there is time."""
        out = self.dir.name + "/paper"
        r = sim("--paper", "-o", out, *([] if MORE else ["--no-ranges"]))
        self.assertEqual((r.returncode, r.stderr), (0, ""))
        figures = ["fig%02d" % n for n in (4, 5, 6, *range(14, 24))]
        expected = {f"{n}.{kind}" for n in figures for kind in ("csv", "svg")}
        expected |= {n + ".csv" for n in "table1 table3 endurance constants deviations".split()}
        self.assertEqual(set(os.listdir(out)), expected)
        for name in expected:
            with open(out + "/" + name, encoding="utf-8") as f:
                text = f.read()
            self.assertGreater(text.count("\n"), 2, name)
            self.assertFalse(name.endswith(".csv") and "nan" in text, name)
        documented, printed = block("deviations").split("\n"), r.stdout.strip().split("\n")
        self.assertEqual(len(documented), len(printed))
        for says, is_so in zip(documented, printed):
            a, b = cells(says), cells(is_so)
            if not MORE and len(a) > 6:
                a[6] = b[6] = ""
            self.assertEqual(a, b)
        with open(out + "/deviations.csv", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        self.assertEqual(len(rows), len(documented) - 4)
        for row in rows:
            off = float(row["ours"]) / float(row["paper"]) - 1
            self.assertAlmostEqual(off, float(row["deviation"]), delta=1e-3)
            self.assertTrue(abs(off) <= 0.1 or row["reason"], row)
            self.assertIn(row["class"], ("fitted", "held out", "assumption", "implied"))

    @unittest.skipUnless(MORE, "ten seconds: cmd/sim_more")
    def test_beyond(self):
        """The table of the document and its figures."""
        out = self.dir.name + "/beyond"
        r = sim("--beyond", "-o", out)
        self.assertEqual((r.returncode, r.stderr), (0, ""))
        self.assertEqual(block("even", "near-storage"), r.stdout.strip())
        kept = ROOT + "/docs/near-storage/"
        self.assertEqual(sorted(os.listdir(out)), sorted(os.listdir(kept)))
        for name in os.listdir(out):
            with open(out + "/" + name, encoding="utf-8") as a, \
                    open(kept + name, encoding="utf-8") as b:
                self.assertEqual(a.read(), b.read(), name)

    def test_real(self):
        """Our own drive in virtual time: the same each time, and dense reads what there is."""
        args = ("--real", "-s", "insta", "--heads", 8, "--layers", 2, "--sample", 2, "-b", 8,
                "--input", 256, "--output", 256)
        a, b = sim(*args), sim(*args)
        self.assertEqual((a.returncode, a.stderr), (0, ""))
        self.assertEqual(*(re.sub("(?m)^simulated in .*", "", x.stdout) for x in (a, b)))
        self.assertIn("real drive, dense: 8 heads, a layer of 8 sequences of 320 tokens (2 run)",
                      a.stdout)
        self.assertNotIn("real drive, sparf", a.stdout)

    @unittest.skipUnless(MORE, "ten seconds: cmd/sim_more")
    def test_wear_documented(self):
        """The bytes of docs/sim.md, by the first of six batches."""
        r = sim("--wear", "-d", 20, "-b", 64, "--layers", 10, "--generations", 1)
        self.assertEqual((r.returncode, r.stderr), (0, ""))
        rows, documented = ([cells(line) for line in text.split("\n") if line.startswith("| insta")]
                            for text in (r.stdout, block("wear")))
        self.assertEqual(len(rows), 3)
        self.assertTrue(documented)
        for says in documented:
            row = next(r for r in rows if r[0] == says[0])
            for column in 3, 4, 5:
                self.assertAlmostEqual(float(row[column]) / float(says[column]), 1, delta=0.01)

    @unittest.skipUnless(MORE, "ten seconds: cmd/sim_more")
    def test_real_documented(self):
        """The lines of --real in docs/sim.md, but for what other kernels' last bits may change."""
        r = sim("--real", "-s", "insta", "-s", "insta_sparf", "-s", "insta_pages")
        self.assertEqual((r.returncode, r.stderr), (0, ""))
        printed = [line for line in r.stdout.split("\n") if line.startswith("real drive")]
        documented = block("real").strip("`\n").split("\n")
        self.assertEqual(len(printed), len(documented))
        for is_so, says in zip(printed, documented):
            number = r"[\d.]+(?:e[+-]\d+)?"
            self.assertEqual(re.sub(number, "N", is_so), re.sub(number, "N", says))
            for a, b in zip(re.findall(number, is_so), re.findall(number, says)):
                self.assertAlmostEqual(float(a) / float(b), 1, delta=0.03, msg=says)

    def test_constants(self):
        r = sim("--constants")
        self.assertEqual(block("constants"), "```\n" + r.stdout + "```")
        self.assertLessEqual(sum(x.startswith("fitted") for x in r.stdout.split("\n")), 6)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
