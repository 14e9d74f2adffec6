#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The batch command: every answer is what `run` says alone, every wrong line is one error, and
whatever ends the program the same command goes on to the same bytes. Standard library only.

batch.py INSTINFER [kills]      kills: 2,000 lines killed 50 times"""
import json
import os
import pty
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import needs  # noqa: E402

needs.heed_signals()

INSTINFER = os.path.abspath(sys.argv[1])
HEAVY = sys.argv[2:] == ["kills"]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def line(custom_id, body, url=COMPLETIONS, **more):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body, **more})


def body_of(answer):
    return answer["response"]["body"]


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.made = tempfile.TemporaryDirectory()
        cls.model = cls.made.name + "/model.gguf"
        shape = "--layers 2 --width 64 --heads 4 --kv-heads 2 --head-dim 16 --ffn 96 --type F16"
        subprocess.run([INSTINFER, "synth", *shape.split(), "-c", "400", "-o", cls.model],
                       check=True)

    @classmethod
    def tearDownClass(cls):
        cls.made.cleanup()

    def setUp(self):
        self.tmp = tempfile.TemporaryDirectory()
        self.dir = self.tmp.name

    def tearDown(self):
        self.tmp.cleanup()

    def path(self, name):
        return self.dir + "/" + name

    def engine(self):
        return ["-m", self.model, "--kv", "ram:64M", "--group", "16", "-t", "1"]

    def run_it(self, *args, **kwargs):
        kwargs.setdefault("timeout", 300)
        kwargs.setdefault("stdout", subprocess.PIPE)
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run([INSTINFER, *map(str, args)], cwd=self.dir, stderr=subprocess.PIPE,
                              **kwargs)

    def command(self, source, *args, out="out.jsonl"):
        engine = self.engine()
        if "--kv" in args:
            engine[2:4] = []
        return ["batch", source, "-o", out, *engine, *args]

    def batch(self, lines, *args, name="in.jsonl", out="out.jsonl", code=0):
        """The answers to these lines, or to a text as it is."""
        if not isinstance(lines, bytes):
            lines = "".join(l + "\n" for l in lines).encode()
        write(self.path(name), lines)
        r = self.run_it(*self.command(name, *args, out=out))
        self.assertEqual(r.returncode, code, r.stderr)
        self.assertEqual(r.stdout, b"")
        self.stderr = r.stderr.decode()
        if code:
            return None
        self.assertEqual(sorted(n for n in os.listdir(self.dir) if n.startswith(out)), [out])
        return [json.loads(l) for l in read(self.path(out)).splitlines()]

    def some_lines(self, n, tokens=12):
        return [line(f"id-{i}", {"prompt": f"{i} said once " + "so " * (i % 9),
                                 "max_tokens": 1 + i * 7 % tokens, "temperature": i % 4 / 2})
                for i in range(n)]

    def test_stats(self):
        lines = self.some_lines(5) + ["no JSON"]
        answers = self.batch(lines, "--stats", self.path("stats.json"), "--attention", "sparf",
                             "--audit", 1)
        s = json.loads(read(self.path("stats.json")))
        usage = [a["response"]["body"]["usage"] for a in answers if a["response"]]
        for key in ("prompt_tokens", "completion_tokens"):
            self.assertEqual(s[key.replace("completion", "generated")], sum(u[key] for u in usage))
        self.assertEqual((s["lines"], s["failed_lines"], s["stop_reason"]), (6, 1, "end"))
        self.assertEqual(s["prefill_tokens"] + s["shared_tokens"] > 0, True)
        self.assertGreater(s["sparf_steps"], 0)
        self.assertGreater(s["audited_tokens"], 0)
        self.assertLess(0, s["captured_worst"])
        self.assertEqual(s["drives"][0]["place"], "ram:64M")
        self.assertNotIn("text_tokens", s)
        self.assertGreater(s["peak_memory_bytes"], 0)
        self.batch(["x" * 10], "--stats", "out.jsonl", code=2)

    def test_trace(self):
        self.batch(self.some_lines(5), "--trace", self.path("trace.json"))
        events = json.loads(read(self.path("trace.json")))
        self.assertGreater(sum(e["name"] == "collect" for e in events), 3)
        self.batch(["x" * 10], "--trace", "out.jsonl", code=2)
        self.assertIn("--trace", self.stderr)

    def assert_error(self, r, code, *texts):
        self.assertEqual(r.returncode, code, r.stderr)
        lines = r.stderr.decode().splitlines()
        self.assertEqual(len(lines), 1, lines)
        for text in texts:
            self.assertIn(text, lines[0])


class Answers(Case):
    def test_format(self):
        answers = self.batch([
            line("one", {"model": "any", "prompt": "hello", "max_tokens": 5, "seed": 7}),
            line("two", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3,
                         "n": 2}, CHAT),
        ], "--template", "chatml")
        one, two = answers
        self.assertEqual(list(one), ["id", "custom_id", "response", "error"])
        self.assertEqual((one["custom_id"], one["error"]), ("one", None))
        self.assertEqual(one["response"]["status_code"], 200)
        self.assertTrue(one["id"].startswith("batch_req_"))
        body = body_of(one)
        self.assertEqual(body["object"], "text_completion")
        self.assertEqual((body["created"], body["seed"]), (0, 7))
        self.assertEqual(body["usage"], {"prompt_tokens": 6, "completion_tokens": 5,
                                         "total_tokens": 11})
        choice, = body["choices"]
        self.assertEqual({k: choice[k] for k in ("index", "logprobs", "finish_reason")},
                         {"index": 0, "logprobs": None, "finish_reason": "length"})
        body = body_of(two)
        self.assertEqual(body["object"], "chat.completion")
        self.assertEqual([c["index"] for c in body["choices"]], [0, 1])
        for choice in body["choices"]:
            self.assertEqual(choice["message"]["role"], "assistant")
        self.assertNotEqual(one["id"], two["id"])

    def alone(self, *args):
        r = self.run_it("run", *self.engine(), *args)
        self.assertEqual(r.returncode, 0, r.stderr)
        return r.stdout.decode()

    def test_each_text_is_what_run_says_alone(self):
        """Whatever runs beside it; from a file of KV too."""
        bodies = [
            ({"prompt": "hello", "max_tokens": 40, "seed": 1}, ["-p", "hello", "-n", 40, "--seed", 1]),
            ({"prompt": "hello", "max_tokens": 30, "temperature": 0},
             ["-p", "hello", "-n", 30, "--temp", 0]),
            ({"prompt": "once upon a time", "max_tokens": 50, "seed": 9, "top_p": 0.5, "top_k": 7,
              "min_p": 0}, ["-p", "once upon a time", "-n", 50, "--seed", 9, "--top-p", 0.5,
                            "--top-k", 7, "--min-p", 0]),
            ({"prompt": "x" * 150, "max_tokens": 20, "seed": 4, "temperature": 1.5},
             ["-p", "x" * 150, "-n", 20, "--seed", 4, "--temp", 1.5]),
            ({"prompt": "abc", "max_tokens": 60, "seed": 2, "repeat_penalty": 1.3,
              "repeat_last_n": 8, "ignore_eos": True},
             ["-p", "abc", "-n", 60, "--seed", 2, "--repeat-penalty", 1.3, "--repeat-last", 8,
              "--ignore-eos"]),
            ({"prompt": "stop here", "max_tokens": 200, "seed": 3, "stop": ["a", "e"]},
             ["-p", "stop here", "-n", 200, "--seed", 3, "--stop", "a", "--stop", "e"]),
            ({"prompt": "until it is full", "seed": 11}, ["-p", "until it is full", "--seed", 11]),
        ]
        chat = {"messages": [{"role": "system", "content": "be brief"},
                             {"role": "user", "content": [{"type": "text", "text": "hel"},
                                                          {"type": "text", "text": "lo"}]}],
                "max_completion_tokens": 25, "seed": 6}
        lines = [line(str(i), body) for i, (body, _) in enumerate(bodies)]
        lines.append(line("chat", chat, CHAT))
        expected = [self.alone(*args) for _, args in bodies]
        expected.append(self.alone("--chat", "--template", "chatml", "--system", "be brief", "-p",
                                   "hello", "-n", 25, "--seed", 6))
        self.assertGreater(len(set(expected)), 7)
        for more in (["--parallel", 1], ["--parallel", 3], ["--parallel", 8, "--kv", self.dir],
                     ["--parallel", 5, "--chunk", 7, "-t", 2],
                     ["--parallel", 4, "--kv", "ram:32M", "--kv", "ram:32M"]):
            answers = self.batch(lines, "--template", "chatml", *more)
            texts = [body_of(a)["choices"][0] for a in answers]
            texts = [c["text"] if "text" in c else c["message"]["content"] for c in texts]
            self.assertEqual(texts, expected, more)
            os.remove(self.path("out.jsonl"))

    def test_choices_and_prompts(self):
        answer, = self.batch([line("a", {"prompt": ["hello", "you there"], "n": 3, "seed": 20,
                                         "max_tokens": 9})])
        choices = body_of(answer)["choices"]
        self.assertEqual([c["index"] for c in choices], list(range(6)))
        for i, c in enumerate(choices):
            self.assertEqual(c["text"], self.alone("-p", ["hello", "you there"][i // 3], "-n", 9,
                                                   "--seed", 20 + i))
        self.assertEqual(body_of(answer)["usage"]["prompt_tokens"], 6 + 10)

    def test_tokens_are_a_prompt(self):
        ids = json.loads(self.run_it("tokenize", "-m", self.model, "-p", "hello", "--ids").stdout)
        answers = self.batch([line("text", {"prompt": "hello", "max_tokens": 6, "seed": 1}),
                              line("ids", {"prompt": ids, "max_tokens": 6, "seed": 1}),
                              line("lists", {"prompt": [ids, ids], "max_tokens": 6, "seed": 1}),
                              line("wrong", {"prompt": [1, 1 << 20], "max_tokens": 1})])
        texts = [[c["text"] for c in body_of(a)["choices"]] for a in answers[:3]]
        self.assertEqual(texts[0], texts[1])
        self.assertEqual(texts[0][0], texts[2][0])
        self.assertIn("vocabulary", answers[3]["error"]["message"])

    def test_seeds(self):
        """Lines that say none draw differently, and the answer's seed gives the text again."""
        lines = [line(str(i), {"prompt": "hello", "max_tokens": 12}) for i in range(4)]
        answers = self.batch(lines)
        texts = [body_of(a)["choices"][0]["text"] for a in answers]
        self.assertEqual(len(set(texts)), 4)
        for a, text in zip(answers, texts):
            self.assertEqual(text, self.alone("-p", "hello", "-n", 12, "--seed",
                                              body_of(a)["seed"]))
        other = self.batch(lines, "--seed", 5, out="other.jsonl")
        self.assertNotEqual(texts, [body_of(a)["choices"][0]["text"] for a in other])

    def test_logprobs(self):
        completion, chat, plain = self.batch([
            line("a", {"prompt": "hello", "max_tokens": 8, "seed": 3, "logprobs": 4}),
            line("b", {"messages": [{"role": "user", "content": "x"}], "logprobs": True,
                       "top_logprobs": 2, "temperature": 0, "max_tokens": 6}, CHAT),
            line("c", {"prompt": "hello", "max_tokens": 8, "seed": 3}),
        ], "--template", "chatml")
        choice = body_of(completion)["choices"][0]
        self.assertEqual(choice["text"], body_of(plain)["choices"][0]["text"])
        lp = choice["logprobs"]
        self.assertEqual([len(lp[k]) for k in ("tokens", "token_logprobs", "top_logprobs",
                                               "text_offset")], [8] * 4)
        for p, top in zip(lp["token_logprobs"], lp["top_logprobs"]):
            self.assertLess(p, 0)
            self.assertLessEqual(p, max(top.values()) + 1e-6)
        content = body_of(chat)["choices"][0]["logprobs"]["content"]
        self.assertEqual(len(content), 6)
        for token in content: # greedy
            self.assertEqual(token["logprob"], token["top_logprobs"][0]["logprob"])
            self.assertEqual(token["bytes"], token["top_logprobs"][0]["bytes"])
            self.assertEqual(len(token["top_logprobs"]), 2)

    def test_a_conversation_of_before(self):
        """Its tokens are those of the same turns in `run --chat`, but for what the model said."""
        messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"},
                    {"role": "user", "content": "three"}]
        text = ("<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
                "<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n")
        chat, plain = self.batch([
            line("a", {"messages": messages, "seed": 1, "max_tokens": 20}, CHAT),
            line("b", {"prompt": text, "seed": 1, "max_tokens": 20}),
        ], "--template", "chatml")
        self.assertEqual(body_of(chat)["choices"][0]["message"]["content"],
                         body_of(plain)["choices"][0]["text"])
        self.assertEqual(body_of(chat)["usage"], body_of(plain)["usage"])

    def test_order(self):
        lines = self.some_lines(40)
        ordered = self.batch(lines)
        self.assertEqual([a["custom_id"] for a in ordered], [f"id-{i}" for i in range(40)])
        text = read(self.path("out.jsonl"))
        self.batch(lines, "--unordered", "--parallel", 4, out="un.jsonl")
        unordered = read(self.path("un.jsonl"))
        self.assertNotEqual(text, unordered)
        self.assertEqual(sorted(text.splitlines()), sorted(unordered.splitlines()))

    def test_defaults_of_the_command_line(self):
        lines = [line("a", {"prompt": "hello", "seed": 8})]
        answer, = self.batch(lines, "-n", 9, "--temp", 0.4, "--top-k", 5, "--stop", "zzz")
        self.assertEqual(body_of(answer)["choices"][0]["text"],
                         self.alone("-p", "hello", "-n", 9, "--seed", 8, "--temp", 0.4, "--top-k",
                                    5))


def nested(depth):
    return '{"a":' * depth + "1" + "}" * depth


class Errors(Case):
    def test_one_for_each_wrong_line(self):
        ok = {"prompt": "hello", "max_tokens": 2}
        hi = [{"role": "user", "content": "hi"}]
        cases = [
            ("", None, None),
            ("nonsense", "invalid_json", "byte 1"),
            ('{"custom_id": "x"', "invalid_json", "byte"),
            ("[1]", "invalid_json", "not an object"),
            (line("x", ok) + " x", "invalid_json", "follows"),
            (nested(5000), "invalid_json", ""),
            ("[" * 100000, "invalid_json", ""),
            ('{"custom_id":"lone","method":"POST","url":"/v1/completions","body":{"prompt":'
             '"\\ud800"}}', "invalid_json", ""),
            ('{"custom_id":"nul","method":"POST","url":"/v1/completions","body":{"prompt":'
             '"a\\u0000b"}}', "invalid_json", "NUL"),
            (line("e1", ok, extra=1), "unsupported_field", "extra"),
            (line(5, ok), "invalid_request", "custom_id"),
            (line("", ok), "invalid_request", "custom_id"),
            (line("e2", ok, "/v1/embeddings"), "invalid_request", "url"),
            (line("e3", 5), "invalid_request", "body"),
            (line("e4", {}), "invalid_request", "body.prompt"),
            (line("e5", {}, CHAT), "invalid_request", "body.messages"),
            (line("e6", {**ok, "max_tokens": 0}), "invalid_request", "body.max_tokens"),
            (line("e7", {**ok, "max_tokens": 1.5}), "invalid_request", "body.max_tokens"),
            (line("e8", {**ok, "temperature": "hot"}), "invalid_request", "body.temperature"),
            (line("e9", {**ok, "temperature": -1}), "invalid_request", "body.temperature"),
            (line("f1", {**ok, "seed": -1}), "invalid_request", "body.seed"),
            (line("f2", {**ok, "stop": [1]}), "invalid_request", "body.stop"),
            (line("f3", {**ok, "stop": ""}), "invalid_request", "body.stop"),
            (line("f4", {**ok, "n": 129}), "invalid_request", "body.n"),
            (line("f5", {**ok, "logit_bias": {"5": 1}}), "unsupported_field", "body.logit_bias"),
            (line("f6", {**ok, "frequency_penalty": 0.5}), "unsupported_field",
             "body.frequency_penalty"),
            (line("f7", {**ok, "best_of": 2}), "unsupported_field", "body.best_of"),
            (line("f8", {**ok, "stream": True}), "unsupported_field", "body.stream"),
            (line("f9", {**ok, "temprature": 1}), "unsupported_field", "body.temprature"),
            (line("g1", {**ok, "messages": hi}), "unsupported_field", "body.messages"),
            (line("g2", {"messages": hi, "tools": [{}]}, CHAT), "unsupported_field", "body.tools"),
            (line("g3", {"messages": hi, "response_format": {"type": "json_object"}}, CHAT),
             "unsupported_field", "body.response_format"),
            (line("g4", {"messages": [{"role": "tool", "content": ""}]}, CHAT), "invalid_request",
             "body.messages[0]"),
            (line("g5", {"messages": hi + hi}, CHAT), "invalid_request", "body.messages"),
            (line("g6", {"messages": hi + [{"role": "assistant", "content": "x"}]}, CHAT),
             "invalid_request", "body.messages"),
            (line("g7", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
                  CHAT), "unsupported_field", "body.messages[0]"),
            (line("g8", {"messages": [{"role": "user", "content": "x", "name": "y"}]}, CHAT),
             "unsupported_field", "body.messages[0]"),
            (line("g9", {"messages": hi}, CHAT), "no_chat_template", "--template"),
            (line("h1", {"prompt": "x" * 500}), "context_length_exceeded", "400"),
            (line("h2", {"prompt": []}), "invalid_request", "body.prompt"),
            ('{"custom_id":"h3","method":"POST","url":"/v1/completions","body":{"prompt":"a",'
             '"max_tokens":2,"max_tokens":3}}', "invalid_request", "body.max_tokens is there twice"),
            (line("h4", {"messages": hi, "max_tokens": 2, "max_completion_tokens": 3}, CHAT),
             "invalid_request", "body.max_tokens"),
            (line("h5", {**ok, "max_completion_tokens": 3}), "unsupported_field",
             "body.max_completion_tokens"),
            (line("h6", {**ok, "logprobs": 21}), "invalid_request", "body.logprobs"),
            (line("h7", {"messages": hi, "top_logprobs": 2}, CHAT), "invalid_request",
             "body.top_logprobs"),
            ('{"custom_id":"h8","method":"POST","url":"/v1/completions","body":{"prompt":"a",'
             '"temperature":1e999}}', "invalid_request", "body.temperature"),
        ]
        good = [line("null", {**ok, "stop": None, "n": None, "unknown": None, "logit_bias": {},
                              "presence_penalty": 0, "user": "me", "metadata": {"a": "b"}}),
                line("good", ok)]
        lines = [good[0], *(c[0] for c in cases), good[1], good[1]]
        answers = self.batch(lines)
        self.assertIsNone(answers[0]["error"])
        self.assertIsNone(answers[-2]["error"])
        self.assertEqual(answers[-1]["error"]["code"], "duplicate_custom_id")
        numbers = [i + 2 for i, c in enumerate(cases) if c[0]]
        cases = [c for c in cases if c[0]]
        self.assertEqual(len(answers), len(cases) + 3)
        for number, (text, code, what), answer in zip(numbers, cases, answers[1:]):
            with self.subTest(line=text[:100]):
                self.assertIsNone(answer["response"])
                error = answer["error"]
                self.assertEqual(error["code"], code, error)
                self.assertIn(what, error["message"])
                self.assertTrue(error["message"].startswith(f"line {number}: "), error)
                self.assertEqual(error["line"], number)
        self.assertEqual(self.stderr.splitlines(),
                         [f"instinfer: warning: {len(cases) + 1} of {len(cases) + 3} lines are "
                          "answered with an error"])

    def test_bytes_and_ends_of_lines(self):
        ok = line("a", {"prompt": "hello", "max_tokens": 2, "seed": 1}).encode()
        text = (b"\xef\xbb\xbf" + ok + b"\r\n\r\n   \n" + ok.replace(b'"a"', b'"b"')
                + b" \r\n\xff\xfe\n" + ok.replace(b'"a"', b'"c"').replace(b"hello", b"h\0llo")
                + b"\n" + ok.replace(b'"a"', b'"d"').replace(b"hello", b"h\xc3llo") + b"\n"
                + b" " * 5000000 + b"\n" + b"[" + b"1," * 5000000 + b"1]\n"
                + b'"' + b"x" * 10000000 + b"\n" + b"[" + b"1," * 1500000 + b"1]\n"
                + ok.replace(b'"a"', b'"last"'))
        answers = self.batch(text)
        self.assertEqual([a["custom_id"] for a in answers],
                         ["a", "b", None, None, None, None, None, None, None, "last"])
        self.assertEqual([a["error"] and (a["error"]["code"], a["error"]["line"]) for a in answers],
                         [None, None, ("invalid_json", 5), ("invalid_json", 6),
                          ("invalid_json", 7), ("line_too_long", 8), ("line_too_long", 9),
                          ("line_too_long", 10), ("out_of_memory", 11), None])
        choices = [body_of(answers[i])["choices"] for i in (0, 1, -1)]
        self.assertEqual(choices[0], choices[1])
        self.assertEqual(choices[0], choices[2])

    def test_refused_before_the_work(self):
        write(self.path("in.jsonl"), (line("a", {"prompt": "x", "max_tokens": 1}) + "\n").encode())
        write(self.path("empty"), b"\n \n")
        os.symlink("in.jsonl", self.path("same"))
        os.mkdir(self.path("folder"))
        cases = [
            (["batch", "in.jsonl", *self.engine()], 2, "-o"),
            (["batch", "-o", "out", *self.engine()], 2, "name a file"),
            (["batch", "in.jsonl", "-o", "out"], 2, "-m"),
            (["batch", "in.jsonl", "x", "-o", "out", *self.engine()], 2, "'x'"),
            (self.command("in.jsonl", out="in.jsonl"), 2, "--file"),
            (self.command("in.jsonl", out="same"), 2, "--file"),
            (self.command("in.jsonl", out=self.model), 2, "--model"),
            (self.command("none.jsonl"), 1, "none.jsonl"),
            (self.command("empty"), 1, "no lines"),
            (self.command("folder"), 1, "no file"),
            (self.command("in.jsonl", out="nowhere/out"), 1, "nowhere/out"),
            (self.command("in.jsonl", "--share", "0/2"), 2, "--share"),
            (self.command("in.jsonl", "--share", "3/2"), 2, "--share"),
            (self.command("in.jsonl", "--share", "auto"), 2, "mpirun"),
            (self.command("in.jsonl", out="-"), 2, "--part"),
            (["batch", "--merge", "-o", "out"], 2, "no parts"),
        ]
        before = sorted(os.listdir(self.dir))
        text = read(self.path("in.jsonl"))
        environment = {k: v for k, v in os.environ.items()
                       if not k.startswith(("OMPI_", "PMI_", "SLURM_"))}
        for args, code, what in cases:
            with self.subTest(args=args):
                self.assert_error(self.run_it(*args, env=environment), code, what)
                self.assertEqual(sorted(os.listdir(self.dir)), before)
                self.assertEqual(read(self.path("in.jsonl")), text)


class Resume(Case):
    def expected(self, lines, *args):
        self.batch(lines, *args, out="expected.jsonl")
        return read(self.path("expected.jsonl"))

    def kill_often(self, lines, kills, *args):
        """Kills the command again and again, each time with some more answers or at any instant, then
        lets it end. How often it left some of the answers."""
        rnd = random.Random(5)
        command = [INSTINFER, *map(str, self.command("in.jsonl", *args))]
        expected = self.expected(lines, *args)
        part = self.path("out.jsonl.part")
        killed = partial = 0

        def size():
            return os.path.getsize(part) if os.path.exists(part) else 0

        while killed < kills:
            p = subprocess.Popen(command, cwd=self.dir, stderr=subprocess.PIPE)
            if killed % 3:
                enough = size() + rnd.random() * 2 * len(expected) / kills
                while p.poll() is None and size() < enough:
                    time.sleep(0.001)
            else:
                time.sleep(rnd.random() * 0.1)
            p.kill()
            stderr = p.communicate()[1]
            if p.returncode == 0: # it was quicker
                self.assertEqual(read(self.path("out.jsonl")), expected)
                os.remove(self.path("out.jsonl"))
                continue
            self.assertEqual(p.returncode, -signal.SIGKILL, stderr)
            killed += 1
            partial += os.path.exists(part) and 1 < read(part).count(b"\n") <= len(lines)
            if os.path.exists(self.path("out.jsonl")): # after it was done, before the part went
                self.assertEqual(read(self.path("out.jsonl")), expected)
                os.remove(self.path("out.jsonl"))
        r = subprocess.run(command, cwd=self.dir, stderr=subprocess.PIPE, timeout=3000)
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertEqual(read(self.path("out.jsonl")), expected)
        self.assertEqual(sorted(os.listdir(self.dir)), ["expected.jsonl", "in.jsonl", "out.jsonl"])
        return partial

    def test_killed(self):
        lines = self.some_lines(150, 40)
        lines[7] = "nonsense"
        lines[30] = lines[31]
        self.assertGreater(self.kill_often(lines, 12, "--parallel", 3), 3)

    def part_of(self, lines, *args):
        """What an interrupted run left, with some but not all answers."""
        write(self.path("in.jsonl"), "".join(l + "\n" for l in lines).encode())
        part = self.path("out.jsonl.part")
        for _ in range(100):
            p = subprocess.Popen([INSTINFER, *map(str, self.command("in.jsonl", *args))],
                                 cwd=self.dir, stderr=subprocess.PIPE)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and p.poll() is None:
                if os.path.exists(part) and read(part).count(b"\n") > 3:
                    break
                time.sleep(0.002)
            p.send_signal(signal.SIGINT)
            stderr = p.communicate()[1]
            if p.returncode == 130:
                self.assertIn(b"the same command goes on", stderr)
                return read(part)
            self.assertEqual(p.returncode, 0, stderr)
            os.remove(self.path("out.jsonl"))
        self.fail("it could not be interrupted")

    def test_torn_parts(self):
        lines = self.some_lines(60, 60)
        expected = self.expected(lines)
        whole = self.part_of(lines)
        records = whole.splitlines(keepends=True)
        self.assertLess(len(records), 61)
        part, rnd = self.path("out.jsonl.part"), random.Random(1)
        torn = [whole[:n] for n in [0, 1, 5, 20, len(records[0]) - 1, len(records[0]),
                                    len(records[0]) + 1, len(whole) - 1]
                + [rnd.randrange(len(whole)) for _ in range(6)]]
        flipped = bytearray(whole)
        flipped[len(records[0]) + 60] ^= 1
        torn += [bytes(flipped), whole + b"\0" * 5000, whole + b"7 0123456789abcdef {}\n",
                 whole + b"garbage"]
        for text in torn:
            write(part, text)
            r = self.run_it(*self.command("in.jsonl"))
            self.assertEqual(r.returncode, 0, (len(text), r.stderr))
            self.assertEqual(read(self.path("out.jsonl")), expected)
            os.remove(self.path("out.jsonl"))

    def test_answers_of_another_run_are_not_taken(self):
        lines = self.some_lines(60, 60)
        whole = self.part_of(lines)
        part = self.path("out.jsonl.part")
        other = self.path("other.gguf")
        data = bytearray(read(self.model))
        data[-100] ^= 1
        write(other, data)
        changes = [(["-c", "300"], "context"), (["--temp", "0.5"], "sampling"),
                   (["--seed", "9"], "seed"), (["-n", "3"], "predict"),
                   (["--stop", "x"], "stop"), (["--ignore-eos"], "flags"),
                   (["--template", "chatml"], "template"), (["-m", other], "model"),
                   (["--attention", "sparf"], "attention")]
        for args, what in changes:
            with self.subTest(args=args):
                r = self.run_it(*self.command("in.jsonl", *args))
                self.assert_error(r, 1, "out.jsonl.part", f"its {what} is")
                self.assertEqual(read(part), whole)
        write(self.path("in.jsonl"), read(self.path("in.jsonl")) + b"\n")
        self.assert_error(self.run_it(*self.command("in.jsonl")), 1, "its input is")
        write(part, b"a file of the user's\n")
        self.assert_error(self.run_it(*self.command("in.jsonl")), 1, "not what a batch left")
        write(part, b"a file of the user's without an end")
        self.assert_error(self.run_it(*self.command("in.jsonl")), 1, "not what a batch left")
        self.assertEqual(read(part), b"a file of the user's without an end")
        # How fast, and how many at a time, is nobody's business.
        write(self.path("in.jsonl"), read(self.path("in.jsonl"))[:-1])
        write(part, whole)
        r = self.run_it(*self.command("in.jsonl", "--parallel", 2, "-t", 2, "--chunk", 5))
        self.assertEqual(r.returncode, 0, r.stderr)

    def begun(self):
        """A process in the middle of its work."""
        lines = self.some_lines(400, 100)
        write(self.path("in.jsonl"), "".join(l + "\n" for l in lines).encode())
        p = subprocess.Popen([INSTINFER, *map(str, self.command("in.jsonl"))], cwd=self.dir,
                             stderr=subprocess.PIPE)
        part = self.path("out.jsonl.part")
        while not os.path.exists(part) or os.path.getsize(part) == 0:
            self.assertIsNone(p.poll())
            time.sleep(0.002)
        return p

    def test_one_process_at_a_time(self):
        p = self.begun()
        self.assert_error(self.run_it(*self.command("in.jsonl")), 1, "another process")
        p.kill()
        p.communicate()

    def test_requests_that_change_meanwhile(self):
        p = self.begun()
        with open(self.path("in.jsonl"), "a") as f:
            f.write("one more\n")
        stderr = p.communicate()[1]
        self.assertEqual(p.returncode, 1)
        self.assertIn(b"changed while in use", stderr)
        self.assertFalse(os.path.exists(self.path("out.jsonl")))

    def test_a_full_disk(self):
        lines = self.some_lines(60, 60)
        expected = self.expected(lines)
        for limit in (10, 300, 3000, len(expected) - 10):
            shutil.rmtree(self.dir + "/x", ignore_errors=True)
            full = self.run_it(*self.command("in.jsonl"), preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_FSIZE, (limit, limit)))
            self.assert_error(full, 1, "out.jsonl", "File too large")
            self.assertFalse(os.path.exists(self.path("out.jsonl")))
            r = self.run_it(*self.command("in.jsonl"))
            self.assertEqual(r.returncode, 0, r.stderr)
            self.assertEqual(read(self.path("out.jsonl")), expected)
            os.remove(self.path("out.jsonl"))

    def test_a_closed_pipe(self):
        lines = self.some_lines(30)
        expected = self.expected(lines)
        command = [INSTINFER, *map(str, self.command("in.jsonl", "--part", "kept", out="-"))]
        out, into = os.pipe()
        os.close(out)
        r = subprocess.run(command, cwd=self.dir, stdout=into, stderr=subprocess.PIPE, timeout=300)
        os.close(into)
        self.assert_error(r, 1, "Broken pipe")
        self.assertEqual(read(self.path("kept")).count(b"\n"), 31) # all is there
        r = subprocess.run(command, cwd=self.dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           timeout=300)
        self.assertEqual((r.returncode, r.stdout), (0, expected), r.stderr)
        self.assertFalse(os.path.exists(self.path("kept")))


class Shares(Case):
    def test_shares_and_merge(self):
        lines = self.some_lines(50)
        lines[3], lines[10] = "nonsense", lines[11]
        self.batch(lines, out="expected.jsonl")
        expected = read(self.path("expected.jsonl"))
        environments = [{"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "3"},
                        {"PMI_RANK": "1", "PMI_SIZE": "3"},
                        {"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}]
        for e in environments:
            r = self.run_it(*self.command("in.jsonl", "--share", "auto"), env={**os.environ, **e})
            self.assertEqual(r.returncode, 0, r.stderr)
        parts = [f"out.jsonl.{i}-of-3" for i in (1, 2, 3)]
        self.assertEqual(sorted(os.listdir(self.dir)), ["expected.jsonl", "in.jsonl", *parts])
        merge = ["batch", "--merge"]
        self.assert_error(self.run_it(*merge, *parts[:2], "-o", "out.jsonl"), 1, "have no answer")
        self.assert_error(self.run_it(*merge, *parts, parts[0], "-o", "out.jsonl"), 1, "too")
        self.assert_error(self.run_it(*merge, *parts, "-o", parts[1]), 2, parts[1])
        self.assert_error(self.run_it(*merge, "in.jsonl", "-o", "out.jsonl"), 1, "not what a batch")
        r = self.run_it(*merge, *reversed(parts), "-o", "out.jsonl")
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        self.assertEqual(read(self.path("out.jsonl")), expected)
        # Parts of other runs do not mix.
        r = self.run_it(*self.command("in.jsonl", "--share", "2/3", "--temp", "0.1", out="b"))
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assert_error(self.run_it(*merge, parts[0], "b.2-of-3", parts[2], "-o", "c"), 1,
                          "its sampling is")

    def test_a_share_goes_on(self):
        lines = self.some_lines(40, 40)
        self.batch(lines, out="expected.jsonl")
        for i in (1, 2):
            command = [INSTINFER, *map(str, self.command("in.jsonl", "--share", f"{i}/2"))]
            for delay in (0.02, 0.06, 0.12, 0.2, None):
                p = subprocess.Popen(command, cwd=self.dir, stderr=subprocess.PIPE)
                try:
                    p.wait(delay)
                except subprocess.TimeoutExpired:
                    p.kill()
                stderr = p.communicate()[1]
                if p.returncode == 0:
                    break
                self.assertEqual(p.returncode, -signal.SIGKILL, stderr)
        r = self.run_it("batch", "--merge", "out.jsonl.1-of-2", "out.jsonl.2-of-2", "-o",
                        "out.jsonl")
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertEqual(read(self.path("out.jsonl")), read(self.path("expected.jsonl")))


class Sizes(Case):
    def test_many_lines_in_little_memory(self):
        """100,000 lines, few of which are requests: time and memory of a line."""
        n = 100000
        with open(self.path("in.jsonl"), "w") as f:
            for i in range(n):
                f.write(f'{{"custom_id":"{i}","method":"POST","url":"/v1/completions","body":'
                        f'{{"prompt":"x","n":{1 if i % 20000 == 0 else 0},"max_tokens":3}}}}\n')
        p = subprocess.Popen([INSTINFER, *map(str, self.command("in.jsonl", "--memory", "16M"))],
                             cwd=self.dir, stderr=subprocess.PIPE)
        peak = 0
        while p.poll() is None:
            try:
                with open(f"/proc/{p.pid}/status") as f:
                    peak = max(peak, sum(int(l.split()[1]) for l in f
                                         if l.startswith(("RssAnon:", "RssShmem:"))))
            except (FileNotFoundError, ProcessLookupError):
                pass
            time.sleep(0.005)
        stderr = p.stderr.read()
        p.stderr.close()
        self.assertEqual(p.returncode, 0, stderr)
        self.assertGreater(peak, 0)
        if "INST_SANITIZED" not in os.environ: # that takes memory of its own
            self.assertLess(peak, 16 << 10)
        with open(self.path("out.jsonl")) as f:
            ids = [json.loads(l)["custom_id"] for l in f]
        self.assertEqual(ids, [str(i) for i in range(n)])

    def test_many_choices_and_little_room(self):
        """More than fit at a time take turns: nobody fails, nothing changes."""
        lines = [line(str(i), {"prompt": "word " * 60, "max_tokens": 80, "n": 4, "seed": i})
                 for i in range(6)]
        self.batch(lines, "--parallel", 1, out="expected.jsonl")
        self.batch(lines, "--parallel", 8, "--kv-limit", "700K")
        self.assertEqual(read(self.path("out.jsonl")), read(self.path("expected.jsonl")))
        self.assertNotIn("error", self.stderr)

    def test_what_the_engine_fails(self):
        """One that the store has no room for is one error; where none has room, nothing is lost."""
        long_one = line("long", {"prompt": "x" * 380, "max_tokens": 3})
        lines = [long_one, *self.some_lines(5)]
        small = ["--kv", self.dir, "--kv-limit", "150K", "--parallel", 2]
        answers = self.batch(lines, *small)
        self.assertEqual([a["custom_id"] for a in answers], ["long"] + [f"id-{i}" for i in range(5)])
        self.assertEqual(answers[0]["error"]["code"], "engine_error")
        self.assertIn("full", answers[0]["error"]["message"])
        self.assertTrue(all(a["error"] is None for a in answers[1:]))
        lines = self.some_lines(4) + [line(f"l{i}", {"prompt": f"{i}" + "x" * 379, "max_tokens": 3})
                                      for i in range(30)]
        self.batch(lines, *small, out="b.jsonl", code=1)
        self.assertRegex(self.stderr, r"15 before it failed in a row: .*full \(4 of 34 lines are "
                         r"answered; the same command goes on\)")
        r = self.run_it(*self.command("in.jsonl", out="b.jsonl"))
        self.assertEqual((r.returncode, r.stderr), (0, b""))
        self.assertTrue(all(json.loads(l)["error"] is None
                            for l in read(self.path("b.jsonl")).splitlines()))

    def test_progress_on_a_terminal(self):
        write(self.path("in.jsonl"),
              "".join(l + "\n" for l in self.some_lines(300, 150)).encode())
        ours, theirs = pty.openpty()
        p = subprocess.Popen([INSTINFER, *map(str, self.command("in.jsonl", "--attention", "pages",
                                                              "--piece", 16, "--audit", 1))], cwd=self.dir,
                             stderr=theirs, stdout=subprocess.DEVNULL)
        os.close(theirs)
        shown = b""
        while True:
            ready, _, _ = select.select([ours], [], [], 300)
            try:
                piece = os.read(ours, 4096) if ready else b""
            except OSError:
                piece = b""
            if not piece:
                break
            shown += piece
        os.close(ours)
        self.assertEqual(p.wait(), 0)
        self.assertRegex(shown.decode(), r"\d+/300 lines, [\d.]+ tokens/s, .* left; captured mass "
                                         r".*; KL to dense .* tokens flipped")
        self.assertRegex(shown.decode(), r"300 lines, \d+ tokens in .*; KL to dense")


class Heavy(Resume):
    def test_2000_lines_killed_50_times(self):
        lines = self.some_lines(2000, 40)
        self.assertGreater(self.kill_often(lines, 50), 20)


if __name__ == "__main__":
    suite = unittest.TestSuite()
    load = unittest.defaultTestLoader
    if HEAVY:
        suite.addTest(Heavy("test_2000_lines_killed_50_times"))
    else:
        for case in (Answers, Errors, Resume, Shares, Sizes):
            suite.addTests(load.loadTestsFromTestCase(case))
    sys.exit(not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful())
