#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Files that the scripts write: never an input, whole or not there, and the old one stays when the
work fails. Standard library only."""
import os
import pathlib
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
sys.path[:0] = [str(TOOLS), str(ROOT / "tests")]
import needs  # noqa: E402
import output_file  # noqa: E402

needs.heed_signals()

OLD = "last time's"


class OutputFile(unittest.TestCase):
    def setUp(self):
        self.tmp = tempfile.TemporaryDirectory()
        self.dir = pathlib.Path(self.tmp.name)
        self.old = self.dir / "old"
        self.old.write_text(OLD)

    def tearDown(self):
        left = [path.name for path in self.dir.rglob("*.part-*")]
        self.tmp.cleanup()
        self.assertEqual(left, [])

    def test_an_input_is_no_output(self):
        names = [self.old, self.dir / "link", self.dir / "hard", self.dir / "folder/old"]
        names[1].symlink_to("old")
        os.link(self.old, names[2])
        (self.dir / "folder").symlink_to(".")
        for name in names:
            for other in names:
                with self.subTest(name=name, other=other):
                    with self.assertRaises(output_file.Refused) as caught:
                        output_file.write_text(name, "new", [self.dir / "nowhere", other])
                    self.assertEqual(str(caught.exception), f"{name}: is read, too ({other})")
        self.assertEqual(self.old.read_text(), OLD)

    def test_the_work_is_not_begun(self):
        (self.dir / "folder").mkdir()
        (self.dir / "loop").symlink_to("loop")
        for name in ("missing/x", "folder", "old/x", "loop", "x" * 300):
            with self.subTest(name=name), self.assertRaises(OSError):
                with output_file.writing(self.dir / name):
                    self.fail("begun")
        if os.geteuid():
            self.old.chmod(0o444)
            with self.assertRaises(PermissionError), output_file.writing(self.old):
                self.fail("begun")

    def test_what_fails_leaves_the_old_file(self):
        for path in self.old, self.dir / "new":
            for error in ValueError, KeyboardInterrupt, SystemExit:
                with self.assertRaises(error), output_file.writing(path) as file:
                    file.write("half")
                    file.flush()
                    raise error
        self.assertEqual(self.old.read_text(), OLD)
        self.assertFalse((self.dir / "new").exists())

    def test_signals(self):
        script = ("import output_file, sys\n"
                  "with output_file.writing(sys.argv[1]) as file:\n"
                  "    file.write('half'); file.flush(); print(flush=True); sys.stdin.read()\n")
        for number in signal.SIGTERM, signal.SIGHUP, signal.SIGINT:
            p = subprocess.Popen([sys.executable, "-c", script, self.old], cwd=TOOLS,
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE)
            p.stdout.readline()
            self.assertEqual(len(list(self.dir.glob("old.part-*"))), 1)
            p.send_signal(number)
            p.communicate(timeout=needs.HANG)
            self.assertNotEqual(p.returncode, 0)
            self.assertEqual(list(self.dir.glob("old.part-*")), [])
            self.assertEqual(self.old.read_text(), OLD)
        self.assertIs(signal.getsignal(signal.SIGTERM), signal.SIG_DFL)
        done = []
        thread = threading.Thread(target=lambda: done.append(
            output_file.write_text(self.old, "new")))
        thread.start()
        thread.join()
        self.assertEqual((done, self.old.read_text()), ([None], "new"))
        self.assertIs(signal.getsignal(signal.SIGTERM), signal.SIG_DFL)

    def test_what_is_replaced(self):
        self.old.chmod(0o640)
        os.link(self.old, self.dir / "hard")
        (self.dir / "link").symlink_to("old")
        output_file.write_text(self.dir / "link", "new\r\n\u20ac")
        self.assertTrue((self.dir / "link").is_symlink())
        self.assertEqual(self.old.read_bytes(), "new\r\n\u20ac".encode())
        self.assertEqual(stat.S_IMODE(self.old.stat().st_mode), 0o640)
        self.assertEqual((self.dir / "hard").read_text(), OLD)
        (self.dir / "dangling").symlink_to("fresh")
        mask = os.umask(0o027)
        with output_file.writing(self.dir / "dangling", "wb") as file:
            file.write(b"\xff")
        os.umask(mask)
        self.assertEqual((self.dir / "fresh").read_bytes(), b"\xff")
        self.assertEqual(stat.S_IMODE((self.dir / "fresh").stat().st_mode), 0o640)
        output_file.write_text(self.dir / ("\u20ac" * 85), "long")
        self.assertEqual((self.dir / ("\u20ac" * 85)).read_text(), "long")

    def test_devices_and_pipes(self):
        (self.dir / "null").symlink_to("/dev/null")  # the device itself out of danger
        output_file.write_text(self.dir / "null", "x")
        with self.assertRaises(ValueError), output_file.writing(self.dir / "null"):
            raise ValueError
        self.assertTrue((self.dir / "null").is_char_device())
        os.mkfifo(self.dir / "pipe")
        reader = subprocess.Popen(["cat", self.dir / "pipe"], stdout=subprocess.PIPE)
        output_file.write_text(self.dir / "pipe", "through")
        self.assertEqual(reader.communicate(timeout=needs.HANG)[0], b"through")
        self.assertTrue((self.dir / "pipe").is_fifo())

    def test_a_table_of_the_documentation(self):
        page = self.dir / "page.md"
        text = "a\n<!-- begin t -->\nold\n<!-- end t -->\nb\n"
        page.write_text(text)
        command = [sys.executable, TOOLS / "doc_table.py", page, "t"]
        r = subprocess.run(command, input=b"", capture_output=True)
        self.assertEqual((r.returncode, page.read_text()), (1, text))
        r = subprocess.run(command, input=b"new\n", capture_output=True)
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        self.assertEqual(page.read_text(), text.replace("old", "\nnew\n"))


if __name__ == "__main__":
    unittest.main()
