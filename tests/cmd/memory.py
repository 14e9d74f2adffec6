#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""--memory is kept, as seen from outside: RssAnon + RssShmem of the process, sampled every 10 ms.
And nothing is left behind by Ctrl-C or kill -9. Standard library only.

memory.py INSTINFER MODELS quick|large|sparf"""
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from needs import HANG, MORE, heed_signals  # noqa: E402

heed_signals()

INSTINFER, MODELS, PART = sys.argv[1:4]
RECALL = MODELS + "/recall.gguf"
M = 1 << 20


def read(path):
    with open(path, "rb") as f:
        return f.read()


def text_of(n):
    """n bytes, so n tokens for a vocabulary of bytes."""
    return "".join(random.Random(n).choices("abcdefghijklmnopqrstuvwxyz .,", k=n))


def meter(pid):
    """RssAnon + RssShmem; 0 when the process is gone."""
    try:
        status = read(f"/proc/{pid}/status").decode()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(kib) * 1024 for kib in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", status))


class Memory(unittest.TestCase):
    def setUp(self):
        self.tmp = tempfile.TemporaryDirectory(dir=os.getcwd())
        self.dir = self.tmp.name
        self.kv = self.dir + "/kv"
        os.mkdir(self.kv)

    def tearDown(self):
        self.tmp.cleanup()

    def start(self, model, *args, stdout=subprocess.DEVNULL):
        self.stats_path = self.dir + "/stats.json"
        command = [INSTINFER, "run", "-m", model, "--kv", self.kv, "--temp", "0", "--ignore-eos",
                   "-v", "--stats", self.stats_path, *map(str, args)]
        return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE)

    def prompt(self, text):
        path = self.dir + "/prompt"
        with open(path, "w") as f:
            f.write(text)
        return path

    def metered(self, model, budget, *args):
        """Runs to the end; (peak seen from outside, stats)."""
        p = self.start(model, "--memory", budget, *args)
        peak = 0
        while p.poll() is None:
            peak = max(peak, meter(p.pid))
            time.sleep(0.01)
        err = p.stderr.read().decode()
        p.stderr.close()
        self.assertEqual(p.returncode, 0, err)
        stats = json.loads(read(self.stats_path))
        print(f"{os.path.basename(model)} {' '.join(map(str, args[2:]))}: budget "
              f"{budget / M:.2f}M, peak {peak / M:.2f}M, own {stats['peak_memory_bytes'] / M:.2f}M,"
              f" chunk {stats['chunk']}, {stats['threads']} threads", flush=True)
        self.assertLessEqual(peak, budget)
        self.assertLessEqual(stats["peak_memory_bytes"], budget)
        # The process looks less often than we do, but at its own work: neither is far off.
        self.assertGreaterEqual(stats["peak_memory_bytes"], peak * 0.8)
        self.assertLessEqual(stats["budget_peak_bytes"], budget)
        self.assertEqual(os.listdir(self.kv), [])
        return peak, stats

    def refused(self, budget, *args):
        """None, or the budget that the refusal names as enough."""
        r = subprocess.run([INSTINFER, "run", "-m", RECALL, "-p", "x", "-n", "0", "--kv", self.kv,
                            "--memory", str(budget), *map(str, args)], capture_output=True)
        if r.returncode == 0:
            return None
        self.assertEqual(r.returncode, 1)
        err = r.stderr.decode()
        self.assertEqual(err.count("\n"), 1, err)
        return re.search(r"is too small for this model at context \d+: at least (\S+) needed",
                         err).group(1)

    def down_to_the_least(self, *args):
        """Finds the least budget that is accepted, and keeps it and larger ones."""
        low, high = 64 * 1024, 64 * M  # refused, accepted
        self.assertIsNotNone(self.refused(low, *args))
        while high - low > 4096:
            middle = (low + high) // 2
            said = self.refused(middle, *args)
            if said is None:
                high = middle
            else:
                self.assertIsNone(self.refused(said, *args), f"{middle}: {said} is too little")
                low = middle
        prompt = self.prompt(text_of(800))
        for budget in high, high + high // 8, 2 * high:
            self.metered(RECALL, budget, "-f", prompt, "-n", 10, *args)


class Sparf(Memory):
    ARGS = ("--attention", "sparf", "--sparf", "r=8,k=1/8,local=16", "--group", 32)

    @unittest.skipUnless(MORE, "long")
    def test_16k_tokens_of_recall_in_8_mib(self):
        prompt = self.prompt(text_of(16000))
        _, stats = self.metered(RECALL, 8 * M, "-f", prompt, "-n", 20, "-c", 16384, "-t", 4,
                                "--audit", "0.2", *self.ARGS)
        self.assertEqual(stats["sparf_steps"], 3 * stats["decode_tokens"])
        self.assertGreater(stats["channel_pages"], 0)
        self.assertGreater(stats["token_pages"], 0)
        self.assertGreater(stats["audits"], 0)
        self.assertLess(stats["channel_bytes"] + stats["token_bytes"], stats["dense_bytes"])
        self.assertLessEqual(stats["sparf_dram_bytes"], 8 * M)

    def test_every_budget_down_to_the_least(self):
        self.down_to_the_least("-c", 16384, "-t", 2, *self.ARGS)


class Large(Memory):
    def test_320_mib_of_kv_in_16_mib(self):
        model = self.dir + "/mha.gguf"
        # Wide heads rather than many tokens: computing them grows with their square.
        shape = ("--layers 16 --width 512 --heads 16 --kv-heads 16 --head-dim 128 --ffn 512 "
                 "--vocab 300 --type f16 -c 2500")
        subprocess.run([INSTINFER, "synth", *shape.split(), "-o", model], check=True)
        _, stats = self.metered(model, 16 * M, "-f", self.prompt(text_of(2487)), "-n", 12,
                                "-c", 2500)
        self.assertEqual(len(stats["text_tokens"]), 2500)
        self.assertEqual(stats["text_tokens"][0], 1)
        self.assertEqual(stats["kv_bytes_per_token"] * 2500, 2500 * 16 * 16 * 128 * 4)
        self.assertGreater(stats["stream_bytes"], 300 * M)
        self.assertGreater(stats["decode_flash_read_bytes"], 10 * 300 * M)

    def test_16k_tokens_of_recall_in_8_mib(self):
        prompt = self.prompt(text_of(16000))
        _, stats = self.metered(RECALL, 8 * M, "-f", prompt, "-n", 20, "-c", 16384, "-t", 8)
        self.assertGreater(stats["stream_bytes"],
                           stats["kv_bytes_per_token"] * (stats["prompt_tokens"] - 256))


class Quick(Memory):
    def test_every_budget_down_to_the_least(self):
        shapes = ["-c", 65536, "-t", 2], ["-c", 16384, "-t", 1], ["-c", 16384, "-t", 4]
        for args in shapes if MORE else shapes[:1]:
            self.down_to_the_least(*args)

    def test_three_drives(self):
        self.down_to_the_least("-c", 16384, "-t", 2, *["--kv", self.kv] * 2)

    def test_interrupt_leaves_nothing(self):
        for what, n in ("prefill", 60000), ("decode", 500):
            with self.subTest(what):
                p = self.start(RECALL, "-f", self.prompt(text_of(n)), "-c", 65536, "--memory",
                               "16M", stdout=subprocess.PIPE)
                if what == "decode":
                    p.stdout.read(200)  # no token has so many bytes as to make these ten
                self.wait_for_kv(p)
                p.send_signal(signal.SIGINT)
                err = p.communicate(timeout=HANG)[1].decode()
                self.assertEqual(p.returncode, 130, err)
                last = err.splitlines()[-1]
                self.assertIn("(interrupt)", last)
                self.assertIn("peak memory", last)
                stats = json.loads(read(self.stats_path))
                self.assertEqual(stats["stop_reason"], "interrupt")
                if what == "prefill":
                    self.assertEqual(stats["generated_tokens"], 0)
                    self.assertLess(stats["prefill_tokens"], n)
                else:
                    self.assertGreater(stats["generated_tokens"], 10)
                self.assertEqual(os.listdir(self.kv), [])

    def wait_for_kv(self, p):
        """Until the process has written to its unnamed file in the KV directory."""
        while p.poll() is None:
            for fd in os.listdir(f"/proc/{p.pid}/fd"):
                try:
                    path = f"/proc/{p.pid}/fd/{fd}"
                    if os.readlink(path).startswith(self.kv) and \
                            os.stat(path).st_blocks * 512 > M // 4:
                        return
                except FileNotFoundError:
                    pass
            time.sleep(0.01)
        self.fail("no KV was written")

    def test_kill_leaves_nothing(self):
        p = self.start(RECALL, "-f", self.prompt(text_of(60000)), "-c", 65536)
        self.wait_for_kv(p)
        self.assertEqual(os.listdir(self.kv), [])  # it has no name even now
        p.kill()
        p.communicate()
        self.assertEqual(os.listdir(self.kv), [])


if __name__ == "__main__":
    case = {"quick": Quick, "large": Large, "sparf": Sparf}[PART]
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    sys.exit(not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful())
