#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it: results, error lines, exit codes. Standard library only."""
import array
import ast
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from needs import HANG, heed_signals, not_tested  # noqa: E402

heed_signals()

INSTINFER, VOCABULARIES = sys.argv[1], sys.argv[2]
STATS_KEYS = """prompt_tokens generated_tokens prefill_tokens_per_s decode_tokens_per_s
flash_read_bytes flash_program_bytes stream_bytes waf space_amplification attended_tokens
attended_tokens_from_flash peak_memory_bytes kv_path text_tokens""".split()


def run(*args, stdin=b"", **kwargs):
    kwargs.setdefault("timeout", HANG)
    return subprocess.run([INSTINFER, *map(str, args)], input=stdin, capture_output=True, **kwargs)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, text):
    with open(path, "w") as f:
        f.write(text)


def read_npy(path):
    data = read(path)
    assert data[:8] == b"\x93NUMPY\x01\x00"
    n = struct.unpack("<H", data[8:10])[0]
    header = ast.literal_eval(data[10:10 + n].decode())
    assert header["descr"] == "<f4" and not header["fortran_order"] and (10 + n) % 64 == 0
    values = array.array("f", data[10 + n:])
    assert len(values) == header["shape"][0] * header["shape"][1]
    return header["shape"], values


SANITIZED = any(name in read(INSTINFER) for name in (b"__asan_init", b"__tsan_init"))


class Cli(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        cls.model = cls.dir.name + "/model.gguf"
        shape = "--layers 3 --width 64 --heads 4 --kv-heads 2 --head-dim 16 --ffn 96 --type F16"
        r = run("synth", *shape.split(), "-c", 400, "-o", cls.model)
        assert r.returncode == 0, r.stderr

    @classmethod
    def tearDownClass(cls):
        cls.dir.cleanup()

    def path(self, name):
        return self.dir.name + "/" + name

    def run_model(self, *args, **kwargs):
        return run("run", "-m", self.model, "--kv", "ram:16M", *args, **kwargs)

    def assert_error(self, r, code, *texts):
        self.assertEqual(r.returncode, code, r.stderr)
        self.assertEqual(r.stdout, b"")
        lines = r.stderr.decode().splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertTrue(lines[0].startswith("instinfer: "), lines)
        for text in texts:
            self.assertIn(text, lines[0])

    def test_trace_tells_all_time(self):
        """Stages follow each other and fill the steps, waits lie inside, commands end once."""
        path = self.path("trace.json")
        r = self.run_model("-p", "x" * 40, "-n", 8, "--ignore-eos", "--trace", path)
        self.assertEqual(r.returncode, 0, r.stderr)
        events = json.loads(read(path))
        stages = [e for e in events if e.get("cat") == "stage"]
        names = [e["name"] for e in stages]
        layer = ["qkv", "send", "collect", "finish"]
        self.assertEqual(names[:8], ["embed", "qkv", "send", "attend", "collect", "finish", "qkv",
                                     "send"])
        self.assertEqual(names[-15:], ["embed"] + 3 * layer + ["end", "logits"])
        self.assertEqual(names.count("logits"), 9)  # the last token is computed, too
        self.assertEqual([e["args"].get("layer") for e in stages[-14:-2]], sum(
            ([i] * 4 for i in range(3)), []))
        for a, b in zip(stages, stages[1:]):
            self.assertLessEqual(a["ts"] + a["dur"], b["ts"] + 0.01)
        step = stages[-15:]
        whole = step[-1]["ts"] + step[-1]["dur"] - step[0]["ts"]
        self.assertLessEqual(sum(e["dur"] for e in step), whole * 1.001)
        waits = [e for e in events if e.get("cat") == "wait"]
        self.assertTrue(waits)
        begun, ended = {}, {}
        for e in events:
            if e.get("cat") == "command":
                count = begun if e["ph"] == "b" else ended
                count[e["name"]] = count.get(e["name"], 0) + 1
        self.assertEqual(begun, ended)
        self.assertEqual(begun["ATTEND"], 8 * 3)
        self.assertEqual(begun["COLLECT"], 8 * 3)
        self.assertEqual(begun["WRITE"], 3)

    def test_usage_errors_name_the_flag(self):
        m = ["run", "-m", self.model, "-p", "x"]
        cases = [
            (["nonsense"], "'nonsense'"),
            (["run", "--bogus"], "--bogus"),
            (["run", "stray"], "'stray'"),
            (["run", "-p", "x"], "-m MODEL"),
            (["run", "-m", self.model], "-p TEXT"),
            (m + ["-f", "y"], "-p or -f"),
            (m + ["-n"], "-n needs a value"),
            (m + ["-n", "ten"], "-n: 'ten' is not a whole number"),
            (m + ["-n", "-1"], "-n: '-1' is out of range"),
            (m + ["-n", "1e3"], "-n: '1e3'"),
            (m + ["-c", "0"], "-c: '0' is out of range"),
            (m + ["-t", "0"], "-t: '0' is out of range (1 to 1024)"),
            (m + ["-t", "99999999999999999999"], "-t:"),
            (m + ["--temp", "hot"], "--temp: 'hot' is not a number"),
            (m + ["--temp", "-1"], "--temp: '-1' is out of range"),
            (m + ["--temp", "nan"], "--temp: 'nan'"),
            (m + ["--top-p=1.5"], "--top-p: '1.5' is out of range"),
            (m + ["--min-p", ""], "--min-p: ''"),
            (m + ["--seed", "4294967296"], "--seed: '4294967296'"),
            (m + ["--memory", "lots"], "--memory: 'lots' is not a size"),
            (m + ["--memory", "0"], "--memory: '0'"),
            (m + ["--kv-limit", "99999999999T"], "--kv-limit:"),
            (m + ["--group", "48"], "run: a token group of 48: must be a power of two"),
            (m + ["--group", "8"], "--group: '8' is out of range"),
            (m + ["--attention", "sparse"], "attention 'sparse'"),
            (m + ["--kv", "null:"] * 65, "at most 64"),
            (m + ["--on-drive-loss", "weep"], "'weep' is not fail or recompute"),
            (m + ["--attention", "sparf", "--page-channels", "3"], "3 channels in a page"),
            (m + ["--stop", ""], "--stop"),
            (m + ["--ignore-eos=1"], "--ignore-eos takes no value"),
            (["logits", "-m", self.model, "-p", "x"], "-o FILE.npy"),
            (["logits", "-m", self.model, "-o", "x"], "--tokens"),
            (["logits", "-m", self.model, "-o", self.path("t.npy"), "--tokens", "1,,2"], "--tokens"),
            (["tokenize", "-p", "x"], "-m MODEL"),
            (["inspect"], "MODEL"),
            (["synth"], "-o FILE.gguf"),
            (["synth", "-o", "x", "--type", "Q9"], "--type: 'Q9'"),
        ]
        for args, text in cases:
            with self.subTest(args=args):
                self.assert_error(run(*args), 2, text)
        r = run()
        self.assertEqual(r.returncode, 2)
        self.assertIn(b"usage:", r.stderr)

    def test_run_time_errors(self):
        m = ["run", "-m", self.model, "-p", "x"]
        cases = [
            (["run", "-m", "/no/such/file", "-p", "x"], "/no/such/file"),
            (["run", "-m", "/dev/null", "-p", "x"], "null"),
            (["run", "-m", self.model, "-f", "/no/such/text"], "/no/such/text"),
            (m + ["--kv", "/no/such/dir"], "/no/such/dir"),
            (m + ["--kv", "ram:"], "ram:SIZE"),
            (m + ["--kv", "ram:1M", "--kv", "/no/such/dir"], "/no/such/dir"),
            (m + ["--memory", "600K"], "at least"),
            (m + ["-c", "1"], "does not fit in the context of 1"),
            (m + ["--kernels", "mmx"], "mmx"),
            (m + ["--stats", "/no/such/dir/s.json"], "/no/such/dir/s.json"),
            (["run", "-m", self.model, "-p", "x" * 500, "--kv", "ram:16M"], "501 tokens"),
            (["inspect", "/no/such/file"], "/no/such/file"),
            (["logits", "-m", self.model, "-p", "x", "-o", "/no/such/dir/x.npy"], "x.npy"),
            (["logits", "-m", self.model, "--tokens", "1,100000", "-o", self.path("z.npy"),
              "--kv", "ram:16M"], "100000"),
            (["synth", "-o", self.model], "model.gguf"),
        ]
        for args, text in cases:
            with self.subTest(args=args):
                self.assert_error(run(*args), 1, text)
        self.assertFalse(os.path.exists(self.path("z.npy")))

    def test_help_and_version(self):
        for args in [["--help"], ["-h"], ["--version"]] + [
                [c, "--help"] for c in "run logits tokenize inspect synth".split()]:
            r = run(*args)
            self.assertEqual((r.returncode, r.stderr), (0, b""), args)
            self.assertTrue(r.stdout)
        text = run("run", "--help").stdout.decode()
        for flag in """-m -p -f -n -c -t --temp --top-k --top-p --min-p --repeat-penalty --seed --stop
                --ignore-eos --kv --kv-limit --memory --group --attention --stats -v""".split():
            self.assertIn(flag, text)

    def test_several_drives(self):
        stats = self.path("drives.json")

        def ask(*places):
            kv = [word for place in places for word in ("--kv", place)]
            r = run("run", "-m", self.model, "-p", "hello " * 40, "-n", 30, "--temp", 0, *kv,
                    "--ignore-eos", "--group", 16, "--stats", stats, "--row-cache", "off")
            self.assertEqual((r.returncode, r.stderr), (0, b""))
            return r.stdout, json.loads(read(stats))

        one, alone = ask("ram:16M")
        self.assertEqual([d["place"] for d in alone["drives"]], ["ram:16M"])
        for places in (["ram:16M"] * 2, ["ram:16M", self.dir.name, "ram:9M@1G"], ["ram:4M"] * 5,
                       ["nand:instcsd-zynq7045", "nand:ssd-980pro,clock=paced"]):
            text, s = ask(*places)
            self.assertEqual(s["lost_drives"], 0)
            self.assertEqual((text, s["text_tokens"]), (one, alone["text_tokens"]))
            self.assertEqual([d["place"] for d in s["drives"]], places)
            for name in "flash_read_bytes", "flash_program_bytes", "stream_bytes":
                self.assertEqual(sum(d[name] for d in s["drives"]), s[name])
            self.assertEqual(s["attended_tokens"], alone["attended_tokens"])
        # Two KV heads over two drives: the same work for both.
        _, s = ask("ram:16M", "ram:16M")
        self.assertEqual(*(d["stream_bytes"] for d in s["drives"]))
        self.assertEqual(s["stream_bytes"], alone["stream_bytes"])

    def test_flash_traces(self):
        stats, iolog, mqsim = map(self.path, ("stats.json", "iolog", "mqsim"))
        for kv in ["ram:16M"], ["nand:instcsd-zynq7045"], ["ram:16M", "nand:ssd-980pro"]:
            places = [word for place in kv for word in ("--kv", place)]
            r = run("run", "-m", self.model, "-p", "hello " * 40, "-n", 30, "--ignore-eos",
                    "--group", 16, "--row-cache", "off", "--stats", stats, "--flash-trace", iolog,
                    "--flash-trace-mqsim", mqsim, *places)
            self.assertEqual((r.returncode, r.stderr), (0, b""))
            s = json.loads(read(stats))
            lines = read(iolog).decode().splitlines()
            self.assertEqual(lines[0], "fio version 3 iolog")
            drives = [f"drive{i}" for i in range(len(kv))]
            end = {d: {} for d in drives}  # of each block: where the next program goes
            total, time, opened, sectors = {"read": 0, "write": 0}, 0, [], []
            for line in lines[1:]:
                at, drive, action, *place = line.split(" ")
                self.assertGreaterEqual(int(at), time)
                time = int(at)
                if action in ("add", "open", "close"):
                    opened.append((drive, action))
                    continue
                self.assertIn((drive, "open"), opened)
                offset, length = map(int, place)
                if action in total:
                    total[action] += length
                    sectors.append((drive[5:], offset // 512, length // 512,
                                    int(action == "read")))
                if action == "write":  # goes on where the block's last one ended, or begins one
                    if offset in end[drive]:
                        end[drive].pop(offset)
                    end[drive][offset + length] = True
                if action == "read":
                    self.assertTrue(any(e >= offset + length for e in end[drive]))
            self.assertEqual(sorted(opened), sorted((d, a) for d in drives
                                                    for a in ("add", "open", "close")))
            # What was in flight at the end is told and counted, too.
            self.assertEqual(total["write"], s["flash_program_bytes"])
            self.assertEqual(total["read"], s["flash_read_bytes"])
            self.assertGreater(total["read"], 0)
            rows = [tuple(map(int, line.split(" "))) for line in read(mqsim).decode().splitlines()]
            self.assertEqual([(str(d), at, n, r) for _, d, at, n, r in rows], sectors)
            self.assertEqual(sorted(row[0] for row in rows), [row[0] for row in rows])

    def test_quiet_in_a_pipe_and_stats(self):
        stats = self.path("stats.json")
        r = self.run_model("-p", "hello", "-n", 40, "--temp", 0, "--stats", stats, "--group", 16,
                           "--ignore-eos")
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        r.stdout.decode()  # valid UTF-8
        s = json.loads(read(stats))
        for key in STATS_KEYS:
            self.assertIn(key, s)
        self.assertEqual(s["prompt_tokens"], 6)  # <s> and five bytes
        self.assertEqual(s["generated_tokens"], 40)
        self.assertEqual(len(s["text_tokens"]), 46)
        self.assertEqual(s["text_tokens"][:2], [1, 3 + ord("h")])
        # 3 layers; the token at position n attends to n + 1.
        self.assertEqual(s["attended_tokens"], 3 * sum(range(7, 47)))
        self.assertGreater(s["attended_tokens_from_flash"], 0)
        self.assertEqual(s["stream_bytes"], s["stream_bytes"] // 16 * 16)
        self.assertGreater(s["peak_memory_bytes"], 100000)
        again = self.run_model("-f", "-", "-n", 40, "--temp", 0, "-t", 2, "--ignore-eos",
                               stdin=b"hello")
        self.assertEqual(again.stdout, r.stdout)
        v = self.run_model("-p", "hello", "-n", 3, "-v")
        self.assertIn(b"weights", v.stderr)
        self.assertIn(b"WAF", v.stderr)

    def test_what_is_read_from_a_file(self):
        """KV that fits is never read back; what is read says nothing about the text."""
        stats = self.path("read.json")

        def ask(*args):
            r = run("run", "-m", self.model, "--kv", self.dir.name, "-p", "hello " * 40, "-n", 40,
                    "--chunk", 64, "--temp", 0, "--ignore-eos", "--group", 16, "--stats", stats, *args)
            self.assertEqual((r.returncode, r.stderr), (0, b""))
            s = json.loads(read(stats))
            self.assertGreater(s["flash_program_bytes"], 0)
            return r.stdout, s

        sparf = ("--attention", "sparf", "--sparf", "r=4,k=1/8")
        for method in ((), sparf):
            # On a slow disk the first rows are on their way, and in memory, all the time: ask again.
            for _ in range(5):
                text, s = ask(*method)
                self.assertEqual(s["flash_read_bytes"], 0)
                if s["cache_hit_bytes"] > 0:
                    break
            self.assertGreater(s["cache_hit_bytes"], 0)
            self.assertGreater(s["cached_bytes"], 0)
            other, off = ask("--row-cache", "off", "--request-cost", 1, *method)
            self.assertEqual(other, text)
            # What is on its way to a slow disk is in memory still, and not read.
            self.assertGreater(off["attended_tokens_from_flash"], 0)
            self.assertGreaterEqual(off["flash_read_bytes"], off["decode_flash_read_bytes"])
            self.assertEqual((off["cache_hit_bytes"], off["bridged_bytes"]), (0, 0))
            self.assertNotIn("request", off["kv_path"])
            other, s = ask("--row-cache", "off", "--request-cost", "64K", *method)
            self.assertEqual(other, text)
            self.assertLessEqual(s["read_ahead_hits"], s["read_ahead_rows"])

    def test_quality_is_said(self):
        stats = self.path("quality.json")

        def ask(*args):
            r = run("run", "-m", self.model, "--kv", "ram:64M", "-p", "hello " * 40, "-n", 12, "-v",
                    "--temp", 0, "--ignore-eos", "--group", 16, "--stats", stats, *args)
            self.assertEqual(r.returncode, 0, r.stderr)
            return r.stdout, r.stderr.decode().splitlines()[-1], json.loads(read(stats))

        _, line, s = ask()
        self.assertTrue(line.endswith("; attention exact"), line)
        self.assertNotIn("kl_mean", s)
        sparse = ("--attention", "pages", "--ratio", "1/8", "--piece", 16, "--newest", 16)
        text, line, s = ask(*sparse)
        self.assertRegex(line, r"; captured mass 0\.\d+, worst head 0\.\d+ \(predicted\)$")
        self.assertLess(s["predicted_worst"], s["predicted_mean"])
        self.assertEqual(s["audited_tokens"], 0)
        other, line, s = ask(*sparse, "--audit", 0.5)
        self.assertEqual(other, text)
        self.assertRegex(line, r"worst head 0\.\d+ \(measured\); KL to dense [\d.e-]+ nats/token, "
                               r"at most [\d.e-]+; \d+ of 6 tokens flipped$")
        self.assertEqual(s["audited_tokens"], 6)
        self.assertGreater(s["kl_worst"], s["kl_mean"])
        self.assertGreater(s["kl_mean"], 0)
        self.assertGreater(s["audit_seconds"], 0)

    def test_seed_and_length(self):
        outs = [self.run_model("-p", "abc", "-n", 30, "--temp", 2, "--ignore-eos", "--seed", s).stdout
                for s in (1, 1, 2)]
        self.assertEqual(outs[0], outs[1])
        self.assertNotEqual(outs[0], outs[2])
        stats = self.path("s2.json")
        r = self.run_model("-p", "abc", "-c", 20, "--ignore-eos", "--stats", stats)
        self.assertEqual(r.returncode, 0)
        s = json.loads(read(stats))
        self.assertEqual((s["stop_reason"], len(s["text_tokens"])), ("context", 20))
        r = self.run_model("-p", "abc", "-n", 0)
        self.assertEqual((r.returncode, r.stdout), (0, b""))

    def test_stop_text(self):
        r = self.run_model("-p", "abc", "-n", 60, "--temp", 0, "--ignore-eos")
        text = r.stdout.decode()
        if len(text) > 6:
            stop = text[3:5]
            cut = self.run_model("-p", "abc", "-n", 60, "--temp", 0, "--ignore-eos", "--stop", stop)
            self.assertEqual(cut.stdout.decode(), text[:text.index(stop)])

    def test_null_drive_says_so(self):
        r = run("run", "-m", self.model, "-p", "abc", "-n", 5, "--kv", "null:", "--ignore-eos")
        self.assertEqual(r.returncode, 0)
        self.assertIn(b"meaningless", r.stderr)

    def test_weights_in_memory(self):
        """--no-mmap: the same text; the weights are then memory of the process."""
        model, seen = self.path("large.gguf"), []
        r = run("synth", "--layers", 4, "--width", 256, "--heads", 4, "--kv-heads", 2, "--head-dim",
                64, "--ffn", 1024, "-c", 400, "-o", model)
        self.assertEqual(r.returncode, 0, r.stderr)
        for more in ([], ["--no-mmap"]):
            path = self.path("weights.json")
            r = run("run", "-m", model, "-p", "abc", "-n", 8, "--temp", 0, "--ignore-eos", "--kv",
                    "ram:16M", "--memory", "64M", "--stats", path, *more)
            self.assertEqual(r.returncode, 0, r.stderr)
            seen.append((r.stdout, json.loads(read(path))["peak_memory_bytes"]))
        self.assertEqual(seen[0][0], seen[1][0])
        if not SANITIZED:
            self.assertGreater(seen[1][1] - seen[0][1], 0.8 * os.path.getsize(model))

    def test_store_leaves_nothing_behind(self):
        store = self.path("store")
        os.mkdir(store)
        r = run("run", "-m", self.model, "-p", "abc" * 30, "-n", 50, "--kv", store, "--group", 16,
                "--ignore-eos")
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        self.assertEqual(os.listdir(store), [])
        env = dict(os.environ, XDG_CACHE_HOME=self.path("cache"))
        r = run("run", "-m", self.model, "-p", "abc", "-n", 5, env=env)
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertEqual(os.listdir(self.path("cache/instinfer")), [])

    def test_memory_stays_in_budget(self):
        if SANITIZED:
            not_tested("memory within the budget: a sanitizer has its own")
            self.skipTest("sanitized")
        model, stats, text = self.path("wide.gguf"), self.path("wide.json"), self.path("wide.txt")
        run("synth", *("--layers 4 --width 256 --heads 8 --kv-heads 8 --head-dim 64 --ffn 256 "
                       "--type F16 --overwrite").split(), "-c", 3000, "-o", model)
        write(text, "the quick brown fox. " * 95)
        for memory in (6 << 20, 12 << 20):
            r = run("run", "-m", model, "-f", text, "-n", 30, "--kv", self.dir.name, "--memory",
                    memory, "-t", 2, "--stats", stats, "--ignore-eos")
            self.assertEqual(r.returncode, 0, r.stderr)
            s = json.loads(read(stats))
            self.assertGreater(s["kv_bytes_per_token"] * len(s["text_tokens"]), 14 << 20)
            self.assertLessEqual(s["peak_memory_bytes"], memory)
            self.assertLessEqual(s["waf"], 1.05)

    def test_full_store_is_a_clear_error(self):
        for kv in (["--kv", "ram:256K"], ["--kv", self.dir.name, "--kv-limit", "256K"]):
            r = run("run", "-m", self.model, "-p", "abcdefgh" * 20, "-c", 4000, "-n", 3000,
                    "--ignore-eos", "--group", 16, *kv)
            self.assertEqual(r.returncode, 1)
            lines = [x for x in r.stderr.splitlines() if b": warning: a context of 4000" not in x]
            self.assertEqual(len(lines), 1, r.stderr)
            self.assertIn(b"drive is full (see --kv-limit", lines[0])

    def test_interrupt_ends_cleanly(self):
        stats = self.path("int.json")
        p = subprocess.Popen([INSTINFER, "run", "-m", self.model, "-p", "abc", "-c", "1000000",
                              "--kv", "ram:1G", "--ignore-eos", "-v", "--stats", stats],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        p.stdout.read(20)
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=HANG)
        self.assertEqual(p.returncode, 130, err)
        self.assertIn(b"interrupt", err)
        self.assertEqual(json.loads(read(stats))["stop_reason"], "interrupt")

    def test_a_drive_that_takes_too_long(self):
        # A disk of 2 KiB/s, and more KV than memory: WRITE waits for room.
        model = self.path("slow.gguf")
        shape = "--layers 8 --width 32 --heads 4 --kv-heads 4 --head-dim 32 --ffn 32 -c 4000"
        r = run("synth", *shape.split(), "-o", model)
        self.assertEqual(r.returncode, 0, r.stderr)
        options = ["run", "-m", model, "-p", "abcdefgh" * 300, "--memory", "8M", "--kv",
                   "ram:64M@2K", "--group", "16", "--row-cache", "off"]
        r = run(*options, "--drive-timeout", 0.3)
        self.assertEqual(r.returncode, 1)
        self.assertRegex(r.stderr, rb"^instinfer: \w+ of layer \d: ram:64M@2K: no answer in 0.3 s\n$")
        # Ctrl-C does not wait for it either, and neither does the end of the program.
        with subprocess.Popen([INSTINFER, *options], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as p:
            time.sleep(1)
            self.assertIsNone(p.poll())
            p.send_signal(signal.SIGINT)
            _, err = p.communicate(timeout=HANG)
        self.assertEqual(p.returncode, 130, err)

    def test_closed_stdout_is_an_error(self):
        p = subprocess.Popen([INSTINFER, "run", "-m", self.model, "-p", "abc", "-c", "1000000",
                              "--kv", "ram:1G", "--ignore-eos"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        p.stdout.read(5)
        p.stdout.close()
        err = p.stderr.read()
        p.stderr.close()
        self.assertEqual(p.wait(timeout=HANG), 1)
        self.assertIn(b"standard output", err)

    def test_terminal_sees_the_bar_and_the_summary(self):
        master, slave = pty.openpty()
        text = self.path("long.txt")
        write(text, "x y z " * 400)
        p = subprocess.Popen([INSTINFER, "run", "-m", self.model, "-f", text, "-n", "3", "-c", "20000",
                              "--kv", "ram:64M", "--chunk", "1", "-t", "1", "--ignore-eos"],
                             stdout=subprocess.DEVNULL, stderr=slave)
        os.close(slave)
        seen = b""
        while select.select([master], [], [], HANG)[0]:
            try:
                part = os.read(master, 65536)
            except OSError:
                break
            if not part:
                break
            seen += part
        os.close(master)
        self.assertEqual(p.wait(timeout=HANG), 0)
        self.assertIn(b"weights", seen)
        self.assertIn(b"prefill [", seen)
        self.assertIn(b"peak memory", seen)

    def test_tokenize(self):
        r = run("tokenize", "-m", self.model, "-p", "ab", "--ids")
        ids = json.loads(r.stdout)
        self.assertEqual(ids[0], 1)
        self.assertEqual(ids[-2:], [3 + ord("a"), 3 + ord("b")])
        no_bos = json.loads(run("tokenize", "-m", self.model, "-f", "-", "--ids", "--no-bos",
                                stdin=b"ab").stdout)
        self.assertEqual(no_bos, ids[1:])
        special = json.loads(run("tokenize", "-m", self.model, "-p", "</s>", "--ids",
                                 "--no-bos").stdout)
        plain = json.loads(run("tokenize", "-m", self.model, "-p", "</s>", "--ids", "--no-bos",
                               "--no-special").stdout)
        self.assertIn(2, special)
        self.assertNotIn(2, plain)
        self.assertEqual(len(run("tokenize", "-m", self.model, "-p", "ab").stdout.splitlines()),
                         len(ids))
        self.assertNotIn(b"warning", r.stderr)
        r = run("tokenize", "-m", VOCABULARIES + "/ggml-vocab-gpt-2.gguf", "-p", "Hello world", "--ids")
        self.assertEqual(json.loads(r.stdout), [15496, 995])

    def test_no_special(self):
        out, other = self.path("special.npy"), self.path("plain.npy")
        def ids(*args):
            return json.loads(run("tokenize", "-m", self.model, "--ids", *args).stdout)
        for text in ("a</s>b", "<s>", "</s>"):
            plain, parsed = ids("-p", text, "--no-special"), ids("-p", text)
            self.assertGreater(len(plain), len(parsed), text)
            stats = self.path("stats.json")
            for flags, want in (["--no-special"], plain), ([], parsed):
                r = self.run_model("-p", text, "-n", 1, "--ignore-eos", "--stats", stats, *flags)
                self.assertEqual(r.returncode, 0, r.stderr)
                self.assertEqual(json.loads(read(stats))["text_tokens"][:-1], want)
                logits = ["logits", "-m", self.model, "--kv", "ram:16M", "--all"]
                r = run(*logits, "-p", text, "-o", out, *flags)
                self.assertEqual(r.returncode, 0, r.stderr)
                run(*logits, "--tokens", ",".join(map(str, want)), "-o", other)
                self.assertEqual(read(out), read(other))

    def test_two_begin_tokens_are_told(self):
        out = self.path("begin.npy")
        model = ["-m", self.model]
        commands = [["tokenize", *model], ["run", *model, "--kv", "ram:16M", "-n", 1],
                    ["logits", *model, "--kv", "ram:16M", "-o", out]]
        for command in commands:
            for text, lines in ("<s>Hi", 1), ("<s><s>Hi", 1), ("<s>", 1), ("Hi", 0), ("Hi<s>", 0):
                r = run(*command, "-p", text)
                self.assertEqual(r.returncode, 0, r.stderr)
                self.assertEqual(r.stderr.count(b"two begin tokens"), lines, (command, text))
                self.assertEqual(len(r.stderr.splitlines()), lines, r.stderr)
                r = run(*command, "-p", text, "--no-special")
                self.assertEqual(r.stderr, b"", (command, text))
        r = run(*commands[0], "-p", "<s>Hi", "--no-bos")
        self.assertEqual(r.stderr, b"")

    def test_logits(self):
        out, last = self.path("all.npy"), self.path("last.npy")
        base = ["logits", "-m", self.model, "--kv", "ram:16M"]
        ids = [1, 100, 101, 102, 103]
        tokens = ",".join(map(str, ids))
        self.assertEqual(run(*base, "--tokens", tokens, "--all", "-o", out).returncode, 0)
        self.assertEqual(run(*base, "--tokens", tokens, "-o", last).returncode, 0)
        shape, every = read_npy(out)
        self.assertEqual(shape[0], 5)
        last_shape, values = read_npy(last)
        self.assertEqual(last_shape, (1, shape[1]))
        self.assertEqual(values, every[4 * shape[1]:])
        for extra in (["--chunk", 1], ["--chunk", 3, "-t", 2], ["--group", 16, "--kernels",
                                                               "reference"]):
            other = self.path("other.npy")
            self.assertEqual(run(*base, "--tokens", tokens, "--all", "-o", other, *extra).returncode, 0)
            self.assertEqual(read(other), read(out), extra)

    def test_inspect(self):
        r = run("inspect", self.model, "-v")
        self.assertEqual(r.returncode, 0, r.stderr)
        for text in (b"llama", b"3 layers", b"runs here: yes", b"F16", b"blk.0.attn_q.weight"):
            self.assertIn(text, r.stdout)
        r = run("inspect", VOCABULARIES + "/ggml-vocab-qwen2.gguf")
        self.assertEqual(r.returncode, 0)
        self.assertIn(b"runs here: no", r.stdout)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
