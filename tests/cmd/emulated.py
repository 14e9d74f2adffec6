#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Emulated drives under the commands: batches answer as on a file, whatever method, type of KV and
wear; what is modelled is told by parts; flash traces are what fio and MQSim read. Standard library
only.

emulated.py INSTINFER [fio]      fio: traces are replayed in fio"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import needs  # noqa: E402

needs.heed_signals()

INSTINFER = os.path.abspath(sys.argv[1])
FIO = sys.argv[2:] == ["fio"]
SECTOR = 512
# A device of two flash channels of 512-byte pages, most of which are read again, and whose blocks
# soon go bad.
WORN = """instinfer profile 1
[flash]
channels = 2
dies = 2
planes = 2
page = 512 B
spare = 32 B
pages_per_block = 8
size = 16 MiB
read = 20 us
program = 100 us
erase = 1 ms
bus = 400 MB/s
registers = 2
suspends = 2
suspend = 5 us
[wear]
endurance = 10
bad_blocks = 5 %
grown_bad = 60 %
spare_blocks = 50 %
retries_fresh = 0.5
[engine]
kernels = 2
gemv_units = 3
gemv = 100 MFLOPS
softmax_units = 3
softmax = 10 MFLOPS
filter = 1 GB/s
argtopk = 100 MHz
staging = 1 MiB
overlap = 1
[link]
rate = 20 MB/s
"""


def read(path):
    with open(path, "rb") as f:
        return f.read()


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tmp = tempfile.TemporaryDirectory()
        cls.model, cls.profile = cls.path("model.gguf"), cls.path("worn.profile")
        shape = "--layers 2 --width 64 --heads 4 --kv-heads 2 --head-dim 32 --ffn 96 --type F16"
        subprocess.run([INSTINFER, "synth", *shape.split(), "-c", "400", "-o", cls.model],
                       check=True)
        with open(cls.profile, "w") as f:
            f.write(WORN)

    @classmethod
    def tearDownClass(cls):
        cls.tmp.cleanup()

    @classmethod
    def path(cls, name):
        return cls.tmp.name + "/" + name

    def run_it(self, command, places, *args):
        """What --stats says."""
        stats = self.path("stats.json")
        kv = [word for place in places for word in ("--kv", place)]
        args = [command, "-m", self.model, "--row-cache", "off", "-t", 1, "--stats", stats, *kv, *args]
        r = subprocess.run([INSTINFER, *map(str, args)], stdin=subprocess.DEVNULL,
                           capture_output=True, timeout=needs.HANG)
        self.assertEqual(r.returncode, 0, r.stderr)
        self.out = r.stdout
        return json.loads(read(stats))


class Batch(Case):
    def answers(self, places, *args):
        source, out = self.path("in.jsonl"), self.path("out.jsonl")
        with open(source, "w") as f:
            for i in range(5):
                body = {"prompt": f"{i} said once " + "so on " * (20 + 3 * i), "seed": i,
                        "max_tokens": 20 + i, "ignore_eos": True, "temperature": i % 2}
                f.write(json.dumps({"custom_id": str(i), "method": "POST",
                                    "url": "/v1/completions", "body": body}) + "\n")
        s = self.run_it("batch", places, source, "-o", out, "--parallel", 3, *args)
        answers = [json.loads(l) for l in read(out).splitlines()]
        self.assertEqual([a["error"] for a in answers], [None] * 5, (places, args))
        choices = [a["response"]["body"]["choices"] for a in answers]
        os.remove(out)
        return [c[0]["text"] for c in choices], s

    def test_answers_of_a_file(self):
        worn = "nand:" + self.profile
        for args in ([], ["--kv-type", "q8"], ["--attention", "pages", "--heads", "1"],
                     ["--attention", "pages", "--heads", "1", "--kv-type", "q8"],
                     ["--attention", "sparf"]):
            args = ["--group", 32 if "pages" in args else 16, *args]
            expected, _ = self.answers([self.tmp.name], *args)
            self.assertEqual(len(set(expected)), 5)
            for places in ([worn], [worn + ",wear=1"], [worn + ",bad=off,retries=off"],
                           [f"{worn},seed={i}" for i in range(4)],
                           [worn + ",bad=off,retries=off"] * 4):
                texts, s = self.answers(places, *args)
                self.assertEqual(texts, expected, (args, places))
                self.assertEqual(s["failed_lines"], 0)
                quiet = "bad=off" in places[0]
                for d in s["drives"]:
                    self.assertTrue(d["read_pages"] and d["program_pages"], (args, places))
                    self.assertEqual(d["read_retries"] > 0, not quiet)
                    self.assertEqual(d["bad_blocks"] > 0, not quiet)
                if "wear=1" in places[0]:
                    self.assertGreater(s["drives"][0]["grown_bad_blocks"], 0)


class Lost(Case):
    def test_data_that_is_too_old(self):
        """Where ECC gives up, a command ends and says so in a line."""
        old = self.path("old.profile")
        with open(old, "w") as f:
            f.write(WORN.replace("[wear]\n", "[wear]\nretries_most = 2\nretries_aged = 1\n"
                                             "retention = 30 days\n"))
        args = ["run", "-m", self.model, "--row-cache", "off", "-p", "hello " * 40, "-n", "30",
                "--ignore-eos", "--group", "16", "--kv", f"nand:{old},bad=off,age="]
        for age, code in (0, 0), (90, 1):
            r = subprocess.run([INSTINFER, *args[:-1], args[-1] + str(age)], capture_output=True,
                               stdin=subprocess.DEVNULL, timeout=needs.HANG)
            self.assertEqual(r.returncode, code, r.stderr)
            lines = r.stderr.decode().splitlines()
            self.assertEqual(len(lines), code, lines)
            if code:
                self.assertIn("token group", lines[0])


class Modelled(Case):
    PROMPT = "hello " * 30  # 181 tokens

    def ask(self, more="", *args):
        return self.run_it("run", ["nand:" + self.profile + ",bad=off,retries=off" + more], "-p",
                           self.PROMPT, "-n", 21, "--ignore-eos", "--group", 16, "--temp", 0, *args)

    def test_parts(self):
        s, without = self.ask(), self.ask(",engine=off")
        d = s["drives"][0]
        # Of every token that is attended to, for each of 4 query heads: 2 x 32 products, two
        # operations each, on 2 x 3 units of 0.1 GFLOPS; and one score on as many of 10 millions. (The
        # units work on tiles of what lies in one piece together: some nanoseconds more.)
        gemv = s["attended_tokens"] * 4 * 2 * 32 * 2 / 0.6e9
        softmax = s["attended_tokens"] * 4 / 60e6
        self.assertLess(abs(d["modelled_gemv_seconds"] / gemv - 1), 0.01)
        self.assertLess(abs(d["modelled_softmax_seconds"] / softmax - 1), 0.01)
        self.assertLess(abs(d["modelled_engine_seconds"] / max(gemv, softmax) - 1), 0.01)
        self.assertEqual(d["modelled_argtopk_seconds"], 0)
        # The link carries K and V of the prompt down and back, which the host attends over, and for
        # each token that is decoded its q (fp32), k and v (fp16) down and an output up, with tables.
        for key in "modelled_engine_seconds", "modelled_link_seconds":
            self.assertEqual(s[key], d[key])
            self.assertEqual(without[key], 0)
        layers, wire = 2, 20e6
        kv, q, out = 2 * 2 * 32 * 2, 4 * 32 * 4, 4 * 32 * 4
        data = layers * (s["prefill_tokens"] * kv + s["decode_tokens"] * (kv + q + out)) / wire
        self.assertGreater(d["modelled_link_seconds"], data)
        self.assertLess(d["modelled_link_seconds"], 4 * data)
        self.assertGreater(s["modelled_attention_seconds"], gemv)
        self.assertEqual(without["text_tokens"], s["text_tokens"])

    def test_paced(self):
        """Decode waits for what the units take, in real time."""
        s = self.ask(",clock=paced")
        self.assertEqual(s["modelled_attention_seconds"], 0)
        self.assertGreater(s["attention_seconds"], s["modelled_engine_seconds"])

    def test_methods(self):
        for method in "sparf", "pages":
            s = self.ask("", "--attention", method, "--group", 32)
            self.assertGreater(s["drives"][0]["modelled_argtopk_seconds"], 0, method)


class Traces(Case):
    def trace(self, drives):
        iolog, mqsim = self.path("flash.iolog"), self.path("flash.trace")
        s = self.run_it("run", ["nand:" + self.profile] * drives, "-p", "hello " * 40, "-n", 30,
                        "--ignore-eos", "--group", 16, "--flash-trace", iolog,
                        "--flash-trace-mqsim", mqsim)
        return s, iolog, mqsim

    def test_what_mqsim_reads(self):
        """Its IO_Flow_Trace_Based: five columns with one blank between them (time, device, first
        sector, sectors, 1 for a read or 0 for a write), in which no time is before the last, and
        that end with the first line of another form."""
        s, iolog, mqsim = self.trace(2)
        number, last, total = "(?:0|[1-9][0-9]*)", 0, [0, 0]
        column = re.compile(f"({number}) ({number}) ({number}) ({number}) ([01])\n")
        size = 16 << 20
        with open(mqsim, newline="") as f:
            for n, text in enumerate(f):
                match = column.fullmatch(text)
                self.assertIsNotNone(match, (n, text))
                time, device, first, sectors, kind = map(int, match.groups())
                self.assertGreaterEqual(time, last)
                last = time
                self.assertLess(time, 1 << 63)
                self.assertIn(device, (0, 1))
                self.assertGreater(sectors, 0)
                self.assertLessEqual((first + sectors) * SECTOR, size)
                total[kind] += sectors * SECTOR
        self.assertEqual(total, [s["flash_program_bytes"], s["flash_read_bytes"]])

    def test_what_fio_reads(self):
        if not FIO:
            self.skipTest("emulated.py INSTINFER fio does")
        s, iolog, _ = self.trace(1)
        device = self.path("device")
        with open(device, "wb") as f:
            f.truncate(16 << 20)  # sparse
        r = subprocess.run(["fio", "--name=replay", "--read_iolog=" + iolog, "--replay_no_stall=1",
                            "--replay_redirect=" + device, "--ioengine=psync",
                            "--output-format=json"], capture_output=True, timeout=needs.HANG)
        self.assertEqual(r.returncode, 0, r.stderr)
        out = r.stdout.decode()
        job = json.loads(out[out.index("{"):])["jobs"][0]
        self.assertEqual(job["error"], 0)
        self.assertEqual(job["read"]["io_bytes"], s["flash_read_bytes"])
        self.assertEqual(job["write"]["io_bytes"], s["flash_program_bytes"])
        lines = read(iolog).decode().splitlines()
        for action in "read", "write":
            self.assertEqual(job[action]["total_ios"], sum(f" {action} " in l for l in lines))


if __name__ == "__main__":
    if FIO and not shutil.which("fio"):
        needs.not_tested("fio is not installed: no trace is replayed in it")
        sys.exit(needs.SKIP)
    unittest.main(argv=sys.argv[:1] + (["Traces.test_what_fio_reads"] if FIO else []))
