#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`instinfer bench drive` on small contexts: its numbers agree with each other. Standard library.

bench_drive.py INSTINFER"""
import csv
import os
import re
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom

INSTINFER = sys.argv[1]


class BenchDrive(unittest.TestCase):
    def setUp(self):
        self.tmp = tempfile.TemporaryDirectory(dir=os.getcwd())
        self.dir = self.tmp.name

    def tearDown(self):
        self.tmp.cleanup()

    def bench(self, *args):
        """Rows of the CSV as numbers where they are, and what was printed."""
        paths = [self.dir + "/" + name for name in ("x.csv", "x.svg")]
        r = subprocess.run([INSTINFER, "bench", "drive", "--csv", paths[0], "--svg", paths[1],
                            "-t", "2", *map(str, args)], capture_output=True, text=True)
        self.assertEqual(r.returncode, 0, r.stderr)
        with open(paths[0]) as f:
            rows = list(csv.DictReader(f))
        for row in rows:
            for name in row:
                if name not in ("method", "kv_type"):
                    row[name] = float(row[name])
        return rows, r.stdout, xml.dom.minidom.parse(paths[1])

    def test_ram_with_nand_geometry(self):
        rows, out, svg = self.bench("--contexts", "512,1024", "--shape", "4/4x128", "--shape",
                                    "8/2x64", "--page-channels", "4,8", "-n", 4, "--audits", 2)
        self.assertEqual(len(rows), 2 * 2 * 2 * 2)
        self.assertEqual(len([line for line in out.splitlines() if "/" in line.split()[0]]), 16)
        self.assertEqual(len(svg.getElementsByTagName("circle")), 2 * 2 * 3 * 2)
        for row in rows:
            pages = row["context"] * 4 * row["kv_heads"] * row["head_dim"] / 4096
            if row["method"] == "dense":
                self.assertGreaterEqual(row["read_bytes"], pages * 4096)
                self.assertEqual(row["captured"], 1)
                continue
            self.assertEqual(row["steps_sparf_steps"], 4)
            self.assertIn(row["page_channels"], (4, 8))
            self.assertLessEqual(row["dram_peak_bytes"], row["dram_bytes"])
            self.assertLessEqual(row["sparf_dram_bytes"], row["dram_peak_bytes"])
            self.assertGreaterEqual(row["steps_dense_pages"], 4 * pages)
            self.assertLessEqual(row["steps_token_kept_bytes"], row["steps_token_bytes"])
            self.assertLessEqual(row["steps_channel_kept_bytes"], row["steps_channel_bytes"])
            # All of the K copy beside all of K and V is the worst that can happen. A short context
            # with few channels per page is worth it; one page of many channels, of which nearly
            # every page holds one that is wanted, may not be.
            self.assertLessEqual(row["steps_channel_pages"], row["steps_dense_pages"] / 2)
            self.assertLessEqual(row["steps_token_pages"], row["steps_dense_pages"])
            self.assertAlmostEqual(row["read_bytes"], row["steps_flash_read_bytes"] / 4)
            if row["head_dim"] == 128:
                self.assertLess(row["read_bytes"], 0.9 * row["dense_bytes"])
            self.assertGreater(row["captured"], 0.3)  # K is clustered
            self.assertLessEqual(row["worst"], row["captured"])
            self.assertLess(row["waf"], 1.05)
            self.assertGreater(row["written_of_kv"], 1.45)  # K twice
            self.assertLess(row["written_of_kv"], 1.55)

    def test_disk(self):
        rows, _, _ = self.bench("--contexts", 512, "--shape", "8/2x128", "-n", 4, "--kv", self.dir)
        self.assertEqual([row["method"] for row in rows], ["sparf", "dense"])
        self.assertEqual(sorted(os.listdir(self.dir)), ["x.csv", "x.svg"])

    def test_emulated(self):
        # What a step takes is the model's: it has to read K and V, at no more than 8 flash channels
        # of 1.4 GB/s carry, or the port of a drive that has one, and at most of that.
        took = {}
        for profile, most in (("instcsd-zynq7045", 11.2), ("instcsd-zynq7045,engine=off", 11.2),
                              ("smartssd", 3.3)):
            rows, out, _ = self.bench("--contexts", 8192, "--shape", "8/8x128", "-n", 2,
                                      "--method", "dense", "--kv", "nand:" + profile)
            rate = 4 * 8192 * 8 * 128 / rows[0]["seconds"] / 1e9
            self.assertLess(rate, most)
            self.assertGreater(rate, 0.75 * most)
            self.assertIn("emulated NAND, " + profile.split(",")[0], out)
            took[profile] = rows[0]["seconds"]
        # Its flash channels begin nothing while 16.8 million products are made, 0.44 ms in all; dies
        # read on meanwhile.
        held, free = took["instcsd-zynq7045"], took["instcsd-zynq7045,engine=off"]
        self.assertGreater(held, free + 0.1e-3)
        self.assertLess(held, free + 0.6e-3)

    def test_locality_is_what_sparf_lives_on(self):
        def read(segment):
            rows, _, _ = self.bench("--contexts", 2048, "--shape", "4/4x128", "-n", 4,
                                    "--method", "sparf", "--segment", segment)
            return rows[0]["steps_token_pages"] / rows[0]["steps_dense_pages"]
        self.assertGreater(read(1), 1.5 * read(128))

    def test_pages(self):
        # A budget in bytes: the same whatever the context, and all where there is no more.
        rows, out, _ = self.bench("--contexts", "512,2048,4096", "--shape", "8/2x64", "--method",
                                  "pages", "--method", "dense", "--budget", "256K", "-n", 3)
        self.assertEqual([row["method"] for row in rows], ["dense", "pages"] * 3)
        for dense, pages in zip(rows[::2], rows[1::2]):
            self.assertLessEqual(pages["read_bytes"], 1.1 * (256 << 10) + 8192)
            self.assertGreaterEqual(pages["steps_pages_steps"], 3)
            self.assertGreater(pages["captured"], 0.3)
            self.assertEqual(dense["choosing"], 0)
            if pages["context"] > 512:
                self.assertTrue(0 < pages["choosing"] < 1)
                self.assertGreater(pages["read_bytes"], 0.8 * (256 << 10))
                self.assertGreater(pages["pages_dram_bytes"], 256 * pages["context"] / 28)
        rows, _, _ = self.bench("--contexts", "2048", "--shape", "8/2x64", "--method", "pages",
                                "--ratio", "1/4", "-n", 2)
        self.assertAlmostEqual(rows[0]["read_bytes"] / rows[0]["dense_bytes"], 0.25, delta=0.03)

    def test_pages_that_pieces_do_not_fill(self):
        """A ratio is one of bytes: 1/8 of the pages, whatever a piece has of its last one."""
        for shape, kind in (("8/2x80", "q8"), ("8/2x80", "q4"), ("8/2x96", "q4"), ("8/2x64", "f16"),
                            ("8/4x96", "q8"), ("8/2x112", "q8")):
            rows, _, _ = self.bench("--contexts", "8192", "--shape", shape, "--layers", 1, "-n", 4,
                                    "--audits", 0, "--method", "pages", "--kv", self.dir,
                                    "--kv-type", kind)
            part = rows[0]["read_bytes"] / rows[0]["dense_bytes"]
            self.assertLessEqual(part, 1.1 / 8, (shape, kind))
            self.assertGreater(part, 0.6 / 8, (shape, kind))

    def test_turns(self):
        """Rounds of all methods and types in one run, and how they compare, round by round."""
        rows, out, svg = self.bench("--contexts", "2048", "--shape", "8/2x64", "--method", "dense",
                                    "--method", "pages", "--kv-type", "q8,f16", "-n", 2, "--rounds",
                                    3, "--kv", self.dir)
        self.assertEqual([(row["method"], row["kv_type"]) for row in rows],
                         [("dense", "f16"), ("pages", "f16"), ("dense", "q8"), ("pages", "q8")])
        f16, _, q8, pages = rows
        self.assertAlmostEqual(q8["read_bytes"] / f16["read_bytes"], 0.5, delta=0.1)
        self.assertLess(pages["read_bytes"], 0.2 * q8["read_bytes"])
        self.assertEqual(pages["steps_pages_steps"] / pages["steps"], 1)
        self.assertEqual(pages["steps"], 3 * 2)
        said = re.findall(r"^# (\S+(?: q8)?) +([\d.]+) \(([\d.]+) to ([\d.]+)\) times as fast as (.*)",
                          out, re.M)
        self.assertEqual([(one, other) for one, _, _, _, other in said],
                         [("pages", "dense"), ("dense q8", "dense"),
                          ("pages q8", "dense of the same type"), ("pages q8", "dense")])
        for _, median, least, most, _ in said:
            self.assertTrue(0 < float(least) <= float(median) <= float(most))
        names = [text.firstChild.data for text in svg.getElementsByTagName("text")]
        self.assertIn("pages q8", names)

    def test_refusals(self):
        for args in (["--shape", "4x128"], ["--shape", "5/4x128"], ["--method", "magic"],
                     ["--sparf", "r=0"], ["--sparf", "k=1/"], ["--sparf", "r=4,"],
                     ["--group", 48], ["--contexts", "12,x"], ["--focus", 70],
                     ["--kv", "ram:1G"], ["--sparf", "r=65"], ["--ratio", "1/8"],
                     ["--method", "pages", "--ratio", "2"], ["--kv-type", "f16,q5"],
                     ["--kv-type", ""], ["--kv-type", "q8", "--method", "sparf"],
                     ["--rounds", 0], ["--rounds", 1000],
                     ["--method", "pages", "--ratio", "1/8", "--budget", "1M"]):
            r = subprocess.run([INSTINFER, "bench", "drive", *map(str, args)], capture_output=True,
                               text=True)
            self.assertEqual(r.returncode, 2, args)
            self.assertEqual(r.stderr.count("\n"), 1, r.stderr)
        for args in (["--kv", self.dir + "/none"], ["--csv", self.dir + "/none/x"],
                     ["--contexts", 10 ** 8], ["--dram", "1K"], ["--page", 1000],
                     ["--page-channels", 3]):
            r = subprocess.run([INSTINFER, "bench", "drive", "--contexts", "512", "--shape",
                                "2/2x64", "-n", "1", *map(str, args)], capture_output=True,
                               text=True)
            self.assertEqual(r.returncode, 1, args)
            self.assertEqual(r.stderr.count("\n"), 1, r.stderr)

    def test_odd_head_dims(self):
        rows, _, _ = self.bench("--contexts", 600, "--shape", "2/2x80", "--shape", "4/2x96", "-n",
                                "3")
        self.assertEqual([row["group"] for row in rows], [16] * 4)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
