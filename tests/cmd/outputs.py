#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Files that the commands write: never one that they read, refused before the work where they cannot
be written, whole or not there, and last time's file stays when a run fails. Standard library only.

outputs.py INSTINFER"""
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import needs  # noqa: E402

needs.heed_signals()

INSTINFER = os.path.abspath(sys.argv[1])
LAST = b'{"last": "run"}'


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.made = tempfile.TemporaryDirectory()
        cls.source = cls.made.name + "/source.gguf"
        shape = "--layers 2 --width 64 --heads 4 --kv-heads 2 --head-dim 16 --ffn 96 --type F16"
        subprocess.run([INSTINFER, "synth", *shape.split(), "-c", "400", "-o", cls.source],
                       check=True)

    @classmethod
    def tearDownClass(cls):
        cls.made.cleanup()

    def setUp(self):
        self.tmp = tempfile.TemporaryDirectory()
        self.dir = self.tmp.name
        self.model = self.path("model.gguf")
        write(self.model, read(self.source))
        self.prompt = self.path("prompt.txt")
        write(self.prompt, b"hello")

    def tearDown(self):
        left = [name for _, _, names in os.walk(self.dir) for name in names if ".part-" in name]
        self.tmp.cleanup()
        self.assertEqual(left, [])

    def path(self, name):
        return self.dir + "/" + name

    def run_it(self, *args, **kwargs):
        kwargs.setdefault("timeout", 60)
        kwargs.setdefault("cwd", self.dir)
        if "stdin" not in kwargs:
            kwargs.setdefault("input", b"")
        kwargs.setdefault("stdout", subprocess.PIPE)
        return subprocess.run([INSTINFER, *map(str, args)], stderr=subprocess.PIPE, **kwargs)

    def assert_error(self, r, code, *texts):
        self.assertEqual(r.returncode, code, r.stderr)
        lines = r.stderr.decode().splitlines()
        self.assertEqual(len(lines), 1, lines)
        for text in texts:
            self.assertIn(text, lines[0])


class Outputs(Case):
    def commands(self, model=None, prompt=None):
        """Each way to write a file, up to the file's name; what it reads; where that stands."""
        model, prompt = model or self.model, prompt or self.prompt
        engine = ["--kv", "ram:16M"]
        csv = ["bench", "model", "-m", model, *engine, "-p", 0, "-n", 1, "-r", 1, "--llama-bench",
               self.path("rival"), "--csv"]
        return [
            (["run", "-m", model, "-f", prompt, "-n", 1, *engine, "--stats"], ("-m", "-f")),
            (["logits", "-m", model, "-f", prompt, *engine, "-o"], ("-m", "-f")),
            (csv, ("-m", "--llama-bench")),
        ]

    def aliases(self, path):
        """Other names of one file."""
        folder, name = os.path.split(path)
        os.symlink(path, self.path("symbolic"))
        os.symlink("symbolic", self.path("link-to-link"))
        os.link(path, self.path("hard"))
        os.symlink(folder, self.path("folder"))
        return [path, name, "./" + name, "folder/" + name, self.path("symbolic"), "link-to-link",
                self.path("hard"), self.path("folder/../" + os.path.basename(folder) + "/" + name)]

    def test_an_input_is_no_output(self):
        write(self.path("rival"), b"#!/bin/sh\n")
        files = {"-m": self.model, "-f": self.prompt, "--llama-bench": self.path("rival")}
        names = {"-m": "--model", "-f": "--file", "--llama-bench": "--llama-bench"}
        for option, path in files.items():
            before = read(path)
            aliases = self.aliases(path)
            for command, reads in self.commands():
                if option not in reads:
                    continue
                for alias in aliases:
                    with self.subTest(command=command[0], option=option, alias=alias):
                        r = self.run_it(*command, alias)
                        self.assert_error(r, 2, "'" + alias + "'", names[option])
                        self.assertEqual(read(path), before)
            for alias in ("symbolic", "link-to-link", "hard", "folder"):
                os.unlink(self.path(alias))

    def test_an_input_under_another_name_is_no_output(self):
        link = self.path("link.gguf")
        os.symlink(self.model, link)
        for command, _ in self.commands(model=link)[:2]:
            self.assert_error(self.run_it(*command, self.model), 2, "--model")
        self.assertEqual(read(self.model), read(self.source))

    def test_no_part_of_a_model_is_an_output(self):
        parts = [self.path(f"m-{i:05}-of-00003.gguf") for i in (1, 2, 3)]
        for part in parts:
            write(part, b"part")
        os.link(parts[2], self.path("hard"))
        for command, _ in self.commands(model=parts[0]):
            for name in (*parts, "hard"):
                self.assert_error(self.run_it(*command, name), 2, "--model")
        # Names that only look like a part do no harm.
        for name in ("m-00004-of-00003.gguf", "m-00001-of-00002.gguf", "-00001-of-00003.gguf"):
            r = self.run_it(*self.commands()[0][0], name if name[0] == "m" else "./" + name)
            self.assertEqual(r.returncode, 0, r.stderr)
        for part in parts:
            self.assertEqual(read(part), b"part")

    def test_a_standard_stream_is_no_output(self):
        command = ["run", "-m", self.model, "-n", 1, "--kv", "ram:16M", "--stats"]
        with open(self.prompt, "rb") as f:
            self.assert_error(self.run_it(*command, self.prompt, "-f", "-", stdin=f), 2,
                              "standard input")
        self.assertEqual(read(self.prompt), b"hello")
        with open(self.path("out"), "wb") as f:
            self.assert_error(self.run_it(*command, "out", "-p", "x", stdout=f), 2,
                              "standard output")

    def test_two_outputs_are_two_files(self):
        os.symlink("new.csv", self.path("link"))
        for name in ("new.csv", "link", "./new.csv"):
            r = self.run_it("bench", "drive", "-c", 64, "-n", 1, "--csv", "new.csv", "--svg", name)
            self.assert_error(r, 2, "--svg", "another option")
        self.assertFalse(os.path.exists(self.path("new.csv")))
        r = self.run_it("bench", "drive", "-c", 64, "-n", 1, "--shape", "2/1x64", "--csv", "a.csv",
                        "--svg", "a.svg")
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertIn(b"q_heads", read(self.path("a.csv")))
        self.assertIn(b"</svg>", read(self.path("a.svg")))

    def outputs(self):
        """Each option that names an output, of a command that would fail later for another
        reason: what it says about the output, it says first."""
        nowhere = self.path("nowhere.gguf")
        return [
            ["run", "-m", nowhere, "-p", "x", "--stats"],
            ["logits", "-m", nowhere, "-p", "x", "-o"],
            ["bench", "model", "-m", nowhere, "--csv"],
            ["bench", "drive", "--kv", self.path("nowhere"), "--csv"],
            ["bench", "drive", "--kv", self.path("nowhere"), "--svg"],
            ["synth", "--layers", "4097", "-o"],
        ]

    def test_refused_before_the_work(self):
        os.mkdir(self.path("folder"))
        write(self.path("file"), b"")
        os.symlink("loop", self.path("loop"))
        os.symlink("missing/x", self.path("dangling"))
        for path, text in (("missing/x", "No such file"), ("folder", "directory"),
                           ("file/x", "Not a directory"), ("loop", "symbolic links"),
                           ("dangling", "No such file"), ("new/", "directory"), ("", ""),
                           ("/proc/self/x", ""), ("x" * 300, "too long"),
                           ("/dev/fd/99", "Bad file descriptor")):
            for command in self.outputs():
                with self.subTest(command=command[0], path=path):
                    r = self.run_it(*command, path)
                    self.assert_error(r, 1, path + ": ", text)
        self.assertEqual(sorted(os.listdir(self.dir)),
                         ["dangling", "file", "folder", "loop", "model.gguf", "prompt.txt"])

    def test_a_file_in_use_is_refused(self):
        program = self.path("program")
        write(program, read("/bin/sleep"))
        os.chmod(program, 0o755)
        p = subprocess.Popen([program, "60"])
        try:
            for command in self.outputs()[:5]:
                self.assert_error(self.run_it(*command, program), 1, "Text file busy")
        finally:
            p.kill()
            p.wait()

    def test_permissions(self):
        if os.geteuid() == 0:
            user = {"user": 65534, "group": 65534, "extra_groups": []}
            for folder in (self.dir, self.made.name):
                os.chmod(folder, 0o755)
        else:
            user = {}
        for name, mode in (("read-only", 0o555), ("sticky", 0o1777), ("open", 0o777)):
            os.mkdir(self.path(name))
            write(self.path(name + "/old"), LAST)
            os.chmod(self.path(name + "/old"), 0o444 if name == "open" else 0o666)
            os.chmod(self.path(name), mode)
        cases = [("read-only/new", "Permission"), ("read-only/old", "Permission"),
                 ("open/old", "Permission")]
        if user:  # the old file is somebody else's there
            cases.append(("sticky/old", "not permitted"))
        for path, text in cases:
            for command in self.outputs()[:3]:
                self.assert_error(self.run_it(*command, path, **user), 1, path, text)
        for path in ("read-only/old", "open/old", "sticky/old"):
            self.assertEqual(read(self.path(path)), LAST)
        os.chmod(self.path("read-only"), 0o755)

    def test_what_fails_leaves_last_times_file(self):
        failing = [
            (["run", "-m", "nowhere", "-p", "x", "--stats"], 1),
            (["run", "-m", self.model, "-p", "x" * 500, "--kv", "ram:16M", "--stats"], 1),
            (["run", "-m", self.model, "-f", "nowhere", "--kv", "ram:16M", "--stats"], 1),
            (["run", "-m", self.model, "-p", "x", "--kv", "ram:64K", "-c", 4000, "--group", 16,
              "--ignore-eos", "--stats"], 1),
            (["run", "-m", self.model, "--template", "x", "-p", "x", "--stats"], 2),
            (["run", "--bogus", "--stats"], 2),
            (["run", "-m", self.model, "-p", "x", "--chat", "--raw", "-c", 2, "--kv", "ram:16M",
              "--stats"], 1),
            (["logits", "-m", self.model, "--tokens", "1,100000", "--kv", "ram:16M", "-o"], 1),
            (["logits", "-m", self.model, "--tokens", "1,,2", "--kv", "ram:16M", "-o"], 2),
            (["bench", "model", "-m", self.model, "--kv", "ram:64K", "-d", 300, "-p", 0, "-n", 64,
              "--csv"], 1),
            (["bench", "model", "-m", self.model, "--kv", "ram:16M", "-p", 0, "-n", 1,
              "--llama-bench", "/bin/false", "--csv"], 1),
            (["bench", "drive", "-c", 64, "--kv", self.path("nowhere"), "--svg"], 1),
            (["synth", "--heads", 4, "--kv-heads", 3, "--overwrite", "-o"], 2),
            (["synth", "--overwrite", "--rope-scaling", "x", "-o"], 2),
        ]
        old = self.path("old")
        for command, code in failing:
            for present in (True, False):
                with self.subTest(command=command, present=present):
                    if present:
                        write(old, LAST)
                    elif os.path.exists(old):
                        os.unlink(old)
                    inode = os.stat(old).st_ino if present else None
                    r = self.run_it(*command, old)
                    self.assertEqual(r.returncode, code, r.stderr)
                    self.assertEqual(os.path.exists(old), present)
                    if present:
                        self.assertEqual((read(old), os.stat(old).st_ino), (LAST, inode))

    def test_a_closed_pipe_leaves_last_times_file(self):
        old = self.path("old")
        write(old, LAST)
        p = subprocess.Popen([INSTINFER, "run", "-m", self.model, "-p", "abc", "-c", "1000000",
                              "--kv", "ram:1G", "--ignore-eos", "--stats", old],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        p.stdout.read(5)
        p.stdout.close()
        err = p.stderr.read()
        p.stderr.close()
        self.assertEqual((p.wait(timeout=needs.HANG), b"standard output" in err), (1, True))
        self.assertEqual(read(old), LAST)

    def test_signals_leave_last_times_file(self):
        old = self.path("old")
        for numbers in ([signal.SIGTERM], [signal.SIGHUP], [signal.SIGQUIT],
                        [signal.SIGINT, signal.SIGINT]):
            write(old, LAST)
            p = subprocess.Popen([INSTINFER, "run", "-m", self.model, "-p", "abc", "-c", "1000000",
                                  "--kv", "ram:1G", "--ignore-eos", "--stats", old],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE,
                                                                       (0, 0)))
            p.stdout.read(5)
            self.assertEqual(len([n for n in os.listdir(self.dir) if ".part-" in n]), 1)
            if len(numbers) > 1:  # the second one has to come before the first has had effect
                p.send_signal(signal.SIGSTOP)
                p.send_signal(signal.SIGINT)
                p.send_signal(signal.SIGTERM)
                p.send_signal(signal.SIGCONT)
            else:
                p.send_signal(numbers[0])
            p.communicate(timeout=needs.HANG)
            self.assertIn(p.returncode, (-numbers[0], -signal.SIGTERM))
            self.assertEqual(read(old), LAST)
            self.assertEqual([n for n in os.listdir(self.dir) if ".part-" in n], [])
        # While a prompt is waited for, nothing else is going on.
        for number in (signal.SIGINT, signal.SIGTERM):
            p = subprocess.Popen([INSTINFER, "run", "-m", self.model, "-f", "-", "--kv", "ram:16M",
                                  "--stats", old], stdin=subprocess.PIPE, stderr=subprocess.PIPE,
                                 stdout=subprocess.PIPE)
            while not any(".part-" in n for n in os.listdir(self.dir)):
                time.sleep(0.01)
            p.send_signal(number)
            p.communicate(timeout=needs.HANG)
            self.assertEqual((p.returncode, read(old)), (-number, LAST))
        # What the parent ignores stays ignored.
        p = subprocess.Popen([INSTINFER, "run", "-m", self.model, "-f", "-", "--kv", "ram:16M", "-n",
                              "1", "--stats", old], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        while not any(".part-" in n for n in os.listdir(self.dir)):
            time.sleep(0.01)
        p.send_signal(signal.SIGHUP)
        p.communicate(b"x", timeout=needs.HANG)
        self.assertEqual(p.returncode, 0)
        json.loads(read(old))

    def test_a_limit_on_file_sizes_is_an_error(self):
        old = self.path("old")
        write(old, LAST)

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

        for command in (["run", "-m", self.model, "-p", "x", "-n", 1, "--kv", "ram:16M", "--stats"],
                        ["logits", "-m", self.model, "-p", "x", "--kv", "ram:16M", "-o"],
                        ["bench", "drive", "-c", 64, "-n", 1, "--shape", "2/1x64", "--svg"],
                        ["synth", "--overwrite", "-o"]):
            r = self.run_it(*command, old, preexec_fn=limit)
            self.assert_error(r, 1, old, "File too large")
            self.assertEqual(read(old), LAST)

    def test_a_full_disk(self):
        """On a tmpfs of 128 KiB, in a mount namespace of its own."""
        script = """
mkdir disk; mount -t tmpfs -o size=128k none disk; printf '%s' "$LAST" > disk/old
say() { echo "rc=$? $(cat disk/old | head -c 40) $(ls disk | wc -l)"; }
"$0" synth --vocab 260 --overwrite -o disk/old; say
head -c 200000 /dev/zero > disk/full 2>/dev/null || true
"$0" run -m nowhere -p x --stats disk/old; say
"$0" logits -m nowhere -p x -o disk/old; say
truncate -s 0 disk/full
"$0" logits -m "$MODEL" -p "$(head -c 390 /dev/zero | tr '\\0' x)" --all --kv ram:16M -o disk/old; say
rm disk/full; "$0" run -m "$MODEL" -p x -n 1 --kv ram:16M --stats disk/old >/dev/null; say
"""
        r = subprocess.run(["unshare", "-m", "sh", "-c", script, INSTINFER],
                           cwd=self.dir, capture_output=True, timeout=needs.HANG,
                           env=dict(os.environ, LAST=LAST.decode(), MODEL=self.model))
        out = r.stdout.decode().splitlines()
        if not os.path.isdir(self.path("disk")) or b"mount" in r.stderr or b"unshare" in r.stderr:
            needs.not_tested("a full disk: no file system can be mounted here")
            return
        same = LAST.decode()
        self.assertEqual(out[:4], [f"rc=1 {same} 1", f"rc=1 {same} 2", f"rc=1 {same} 2",
                                   f"rc=1 {same} 2"], r.stderr)
        self.assertTrue(out[4].startswith("rc=0 {"), out)
        err = r.stderr.decode().splitlines()
        self.assertEqual(len(err), 4, err)
        for line in err:
            self.assertIn("disk/old: No space left on device", line)

    def test_devices_and_pipes_are_written_straight(self):
        base = ["logits", "-m", self.model, "-p", "x", "--kv", "ram:16M", "-o"]
        self.assertEqual(self.run_it(*base, "file.npy").returncode, 0)
        expected = read(self.path("file.npy"))
        for name in ("/dev/stdout", "-", "/dev/fd/1", "/proc/self/fd/1"):
            r = self.run_it(*base, name)
            self.assertEqual((r.returncode, r.stdout, r.stderr), (0, expected, b""), name)
            with open(self.path("redirected"), "wb") as f:
                f.write(b"before")
                f.flush()
                r = self.run_it(*base, name, stdout=f)
                self.assertEqual((r.returncode, r.stderr), (0, b""))
                os.write(f.fileno(), b"after")
            self.assertEqual(read(self.path("redirected")), b"before" + expected + b"after")
        # By links, so that a fault cannot cost the machine its devices.
        os.symlink("/dev/null", self.path("null"))
        os.symlink("/dev/full", self.path("full"))
        os.mkfifo(self.path("pipe"))
        for command in (base, ["run", "-m", self.model, "-p", "x", "-n", 1, "--kv", "ram:16M",
                               "--stats"], ["synth", "-o"]):
            r = self.run_it(*command, "null")
            self.assertEqual((r.returncode, r.stderr), (0, b""))
            self.assert_error(self.run_it(*command, "full"), 1, "No space left")
        r = self.run_it("logits", "-m", self.model, "--tokens", "100000", "--kv", "ram:16M", "-o",
                        "null")
        self.assertEqual(r.returncode, 1)
        for name in ("null", "full"):
            self.assertTrue(os.path.islink(self.path(name)))
            self.assertTrue(stat.S_ISCHR(os.stat(self.path(name)).st_mode))
        reader = subprocess.Popen(["cat", self.path("pipe")], stdout=subprocess.PIPE)
        r = self.run_it(*base, "pipe")
        self.assertEqual((r.returncode, reader.communicate(timeout=needs.HANG)[0]), (0, expected))
        self.assertTrue(stat.S_ISFIFO(os.stat(self.path("pipe")).st_mode))
        # A failure leaves the pipe, too.
        reader = subprocess.Popen(["cat", self.path("pipe")], stdout=subprocess.PIPE)
        r = self.run_it("synth", "-o", "pipe")
        self.assertEqual((r.returncode, reader.communicate(timeout=needs.HANG)[0]), (1, b""), r.stderr)
        self.assertTrue(stat.S_ISFIFO(os.stat(self.path("pipe")).st_mode))

    def test_what_is_replaced(self):
        command = ["run", "-m", self.model, "-p", "x", "-n", 1, "--ignore-eos", "--kv", "ram:16M",
                   "--stats"]
        os.mkdir(self.path("there"))
        # Links stay, the file behind them is another one with the same permissions.
        write(self.path("there/old"), LAST)
        os.chmod(self.path("there/old"), 0o640)
        os.link(self.path("there/old"), self.path("hard"))
        os.symlink("there/old", self.path("link"))
        os.symlink("link", self.path("link2"))
        r = self.run_it(*command, "link2")
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        self.assertTrue(os.path.islink(self.path("link")) and os.path.islink(self.path("link2")))
        self.assertEqual(json.loads(read(self.path("there/old")))["generated_tokens"], 1)
        self.assertEqual(stat.S_IMODE(os.stat(self.path("there/old")).st_mode), 0o640)
        self.assertEqual(read(self.path("hard")), LAST)
        # A link to a file that is not there yet.
        os.symlink("there/new", self.path("dangling"))
        r = self.run_it(*command, "dangling", preexec_fn=lambda: os.umask(0o027))
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        self.assertTrue(os.path.islink(self.path("dangling")))
        json.loads(read(self.path("there/new")))
        self.assertEqual(stat.S_IMODE(os.stat(self.path("there/new")).st_mode), 0o640)
        # The longest name that there can be.
        for name in ("n" * 255, "\u20ac" * 85):
            r = self.run_it(*command, name)
            self.assertEqual((r.returncode, r.stderr), (0, b""))
            json.loads(read(self.path(name)))
        if os.geteuid() == 0:
            os.chown(self.path("there/old"), 1234, 4321)
            self.assertEqual(self.run_it(*command, "there/old").returncode, 0)
            st = os.stat(self.path("there/old"))
            self.assertEqual((st.st_uid, st.st_gid), (1234, 4321))

    def test_synth_replaces_only_when_told(self):
        old = self.path("old")
        write(old, LAST)
        self.assert_error(self.run_it("synth", "-o", old), 1, "exists", "--overwrite")
        self.assertEqual(read(old), LAST)
        r = self.run_it("synth", "--overwrite", "-o", old)
        self.assertEqual((r.returncode, read(old)[:4]), (0, b"GGUF"))

    def test_the_model_in_use_may_be_read_while_its_successor_is_made(self):
        """A file is replaced, not rewritten: whoever has it open keeps what he has."""
        with open(self.model, "rb") as f:
            r = self.run_it("synth", "--overwrite", "--seed", 9, "-o", self.model)
            self.assertEqual(r.returncode, 0, r.stderr)
            self.assertEqual(f.read(), read(self.source))
        self.assertNotEqual(read(self.model), read(self.source))


class ClosedDescriptors(Case):
    """Whatever of 0 to 2 is closed, no file takes its place."""

    def shell(self, closed, *args):
        script = "exec \"$@\" " + " ".join(f"{fd}>&-" for fd in closed)
        out, err = self.path("out"), self.path("err")
        with open(self.prompt, "rb") as i, open(out, "wb") as o, open(err, "wb") as e:
            r = subprocess.run(["sh", "-c", script, "sh", INSTINFER, *map(str, args)], stdin=i,
                               stdout=o, stderr=e, timeout=needs.HANG, cwd=self.dir)
        return r.returncode, read(out), read(err)

    def test_all_ways_to_close(self):
        kv, stats = self.path("kv"), self.path("stats")
        os.mkdir(kv)
        base = ["run", "-m", self.model, "-n", 60, "--temp", 0, "--ignore-eos", "--group", 16, "--kv",
                kv, "--stats", stats]
        code, text, _ = self.shell("", *base, "-p", "hello")
        self.assertEqual(code, 0)
        for closed in ("0", "1", "2", "01", "02", "12", "012"):
            for prompt in (["-p", "hello"], ["-f", "-"]):
                with self.subTest(closed=closed, prompt=prompt):
                    write(stats, LAST)
                    code, out, err = self.shell(closed, *base, *prompt)
                    lost = "1" in closed or ("0" in closed and "-f" in prompt)
                    self.assertEqual(code, 1 if lost else 0, err)
                    self.assertEqual(out, b"" if lost else text)
                    if lost:
                        self.assertEqual(read(stats), LAST)
                    else:
                        self.assertEqual(json.loads(read(stats))["prompt_tokens"], 6)
                    what = b"standard input" if "0" in closed and "-f" in prompt else \
                        b"standard output"
                    self.assertEqual(err, b"" if "2" in closed or not lost else
                                     b"instinfer: " + what + b": Bad file descriptor\n")
                    self.assertEqual(os.listdir(kv), [])
        self.assertEqual(read(self.model), read(self.source))

    def test_help_that_does_not_arrive(self):
        for args in (["--help"], ["--version"], ["run", "--help"], ["inspect", self.model],
                     ["tokenize", "-m", self.model, "-p", "x"]):
            code, _, err = self.shell("1", *args)
            self.assertEqual((code, err), (1, b"instinfer: standard output: Bad file descriptor\n"),
                             args)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=1)
