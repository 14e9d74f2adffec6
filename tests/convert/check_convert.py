#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds tools/convert against Hugging Face Transformers.

tests/data/convert has what Transformers and SentencePiece make of small
checkpoints (tools/reference/make_convert_goldens.py). Here the checkpoints are
made again, converted, and `instinfer` is asked for logits and token ids. Needs
NumPy (tests/needs.py says what happens without it).
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import needs  # noqa: E402

try:
    import numpy as np
except ImportError:
    sys.exit(needs.missing("NumPy (python3-numpy)"))

sys.path.insert(0, str(ROOT / "tools/convert"))
DATA = ROOT / "tests/data/convert"
INSTINFER = sys.argv[1]

import architectures  # noqa: E402
import checkpoints  # noqa: E402
import gguf_file  # noqa: E402
import hf_to_gguf  # noqa: E402

# Relative rms. K and V are rounded to fp16, weights to the type.
LARGEST_RMS = {
    None: 2e-3,
    "f32": 2e-3,
    "f16": 2e-3,
    "bf16": 2e-2,
    "q8_0": 4e-2,
}
# What small models do not have of their class's settings.
NOTES = {"phi3": ["eos_token_id 32000: the vocabulary has 400 tokens"]}
CASES = {c["name"]: c for c in json.loads((DATA / "cases.json").read_text())}
TOKENS = json.loads((DATA / "tokens.json").read_text())


def instinfer(*arguments, text=None):
    result = subprocess.run(
        [INSTINFER, *map(str, arguments)],
        input=text,
        capture_output=True,
        timeout=needs.HANG,
        check=False,
    )
    if result.returncode:
        raise AssertionError(result.stderr.decode())
    return result.stdout


def build(case, folder):
    """The checkpoint again."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(case["config"]))
    weights = case["tensors"], case["norm"]
    if case["shards"]:
        checkpoints.write_sharded(folder, *weights, case["shards"])
    else:
        checkpoints.write_safetensors(folder / "model.safetensors", *weights)
    for path in (DATA / "tokenizers" / case["tokenizer"]).iterdir():
        shutil.copy(path, folder)
    return folder


class Convert(unittest.TestCase):
    def setUp(self):
        work = tempfile.TemporaryDirectory()
        self.addCleanup(work.cleanup)
        self.work = pathlib.Path(work.name)
        self.out = self.work / "out.gguf"

    def convert(self, folder, *options):
        """Exit status and what it said."""
        said = io.StringIO()
        arguments = [str(folder), "-o", str(self.out), *options]
        with contextlib.redirect_stderr(said):
            status = hf_to_gguf.main(arguments)
        return status, said.getvalue()

    def converted(self, folder, *options, notes=()):
        """It is, and says what is not kept in one line each."""
        status, said = self.convert(folder, *options)
        self.assertEqual(status, 0, said)
        lines = said.splitlines()
        self.assertEqual(len(lines), len(notes), said)
        for line, note in zip(lines, notes, strict=True):
            self.assertTrue(line.startswith("hf_to_gguf: not kept: "), line)
            self.assertIn(note, line)

    def logits(self, case):
        path = self.work / "logits.npy"
        ids = ",".join(map(str, case["tokens"]))
        instinfer(
            *("logits", "-m", self.out, "--tokens", ids, "--all", "-o", path),
            *("--kv", "ram:64M", "--group", "16"),
        )
        return np.load(path)[case["positions"]]

    def distance(self, case):
        expected = np.load(DATA / f"{case['name']}.npy").astype(np.float64)
        square = ((self.logits(case) - expected) ** 2).mean()
        return np.sqrt(square / (expected**2).mean())

    def test_logits(self):
        for name, case in CASES.items():
            folder = build(case, self.work / name)
            for kind in LARGEST_RMS:
                more = ["--overwrite"] + (["--type", kind] if kind else [])
                with self.subTest(name=name, type=kind):
                    self.converted(folder, *more, notes=NOTES.get(name, ()))
                    rms = self.distance(case)
                    print(f"{name:9} {kind or 'own':5} rms {rms:.1e}")
                    self.assertLess(rms, LARGEST_RMS[kind])

    def test_token_ids(self):
        done = set()
        for case in CASES.values():
            name = case["tokenizer"]
            if name in done:
                continue
            done.add(name)
            folder = build(case, self.work / name)
            notes = NOTES.get(case["name"], ())
            self.converted(folder, "--overwrite", notes=notes)
            wanted = TOKENS["ids"][name]
            for text, ids in zip(TOKENS["texts"], wanted, strict=True):
                if ids is None:
                    continue
                with self.subTest(tokenizer=name, text=text):
                    got = instinfer(
                        *("tokenize", "-m", self.out, "-f", "-", "--ids"),
                        text=text.encode(),
                    )
                    self.assertEqual(json.loads(got), ids)
        self.assertEqual(done, TOKENS["ids"].keys())

    def test_every_architecture_has_a_case(self):
        named = {n for row in architectures.ARCHITECTURES for n in row.classes}
        seen = {
            n for c in CASES.values() for n in c["config"]["architectures"]
        }
        self.assertEqual(named - seen, {"OPTModel"})

    def test_opt_without_the_prefix(self):
        """Old OPT checkpoints are of OPTModel: other names, same weights."""
        case = CASES["opt"]
        folder = build(case, self.work / "old")
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = raw[8 : 8 + size].replace(b'"model.decoder.', b'"decoder.')
        length = len(header).to_bytes(8, "little")
        path.write_bytes(length + header + raw[8 + size :])
        self.converted(folder)
        self.assertLess(self.distance(case), LARGEST_RMS[None])

    def test_pytorch(self):
        try:
            import torch
        except ImportError:
            needs.not_tested("checkpoints written by PyTorch: it is not here")
            self.skipTest("no PyTorch")
        for name in ("opt", "qwen3", "smollm"):  # F16, BF16, F32
            folder = build(CASES[name], self.work / name)
            self.converted(folder, "--overwrite")
            whole = self.out.read_bytes()
            state = {}
            for key, shape, dtype in CASES[name]["tensors"]:
                values = checkpoints.weights(
                    key, shape, dtype, CASES[name]["norm"]
                )
                kinds = {"F16": torch.float16, "BF16": torch.bfloat16}
                tensor = torch.from_numpy(values)
                state[key] = tensor.to(kinds.get(dtype, torch.float32))
            (folder / "model.safetensors").unlink()
            torch.save(state, folder / "pytorch_model.bin")
            self.converted(folder, "--overwrite")
            self.assertEqual(self.out.read_bytes(), whole)
        self.out.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 no")
        self.refused(folder, "PyTorch cannot read it")

    def test_small_parts_give_the_same_file(self):
        folder = build(CASES["llama"], self.work / "parts")
        self.convert(folder, "--type", "q8_0")
        whole = self.out.read_bytes()
        with unittest.mock.patch.object(hf_to_gguf, "PART_BYTES", 1000):
            self.convert(folder, "--type", "q8_0", "--overwrite")
        self.assertEqual(self.out.read_bytes(), whole)

    def refused(self, folder, *texts):
        status, said = self.convert(folder)
        self.assertEqual(status, 1, said)
        self.assertEqual(said.count("\n"), 1, said)
        self.assertTrue(said.startswith("hf_to_gguf: "), said)
        for text in texts:
            self.assertIn(text, said)
        self.assertEqual(list(self.work.glob("out*")), [])

    def test_refused_settings(self):
        cases = [
            (
                "opt",
                {"word_embed_proj_dim": 32},
                ["project_in", "project_out"],
            ),
            ("opt", {"do_layer_norm_before": False}, ["post-norm"]),
            ("opt", {"activation_function": "gelu"}, ["activation_function"]),
            ("opt", {"enable_bias": False}, ["enable_bias"]),
            ("opt", {"vocab_size": 300}, ["embed_tokens", "[336, 64]"]),
            ("opt", {"max_position_embeddings": 64}, ["embed_positions"]),
            ("opt", {"num_hidden_layers": 3}, ["layers.2", "missing"]),
            ("opt", {"num_hidden_layers": 1}, ["layers.1", "none that"]),
            ("opt", {"num_hidden_layers": None}, ["no num_hidden_layers"]),
            ("opt", {"num_hidden_layers": "2"}, ["num_hidden_layers"]),
            ("opt", {"num_attention_heads": 3}, ["do not divide"]),
            ("opt", {"architectures": ["BloomForCausalLM"]}, ["Bloom"]),
            ("opt", {"architectures": None, "model_type": "x"}, ["'x' is"]),
            ("opt", {"quantization_config": {"bits": 4}}, ["quantised"]),
            ("llama", {"attention_bias": True}, ["attention_bias = True"]),
            ("llama", {"mlp_bias": True}, ["mlp_bias"]),
            ("llama", {"hidden_act": "gelu"}, ["hidden_act"]),
            ("smollm", {"tie_word_embeddings": False}, ["lm_head", "missing"]),
            ("llama", {"num_key_value_heads": 3}, ["do not divide"]),
            ("llama-v4", {"rope_scaling": {"type": "dynamic"}}, ["dynamic"]),
            (
                "llama-v4",
                {"rope_scaling": {"type": "linear", "factor": 2, "mscale": 1}},
                ["mscale"],
            ),
            ("llama-v4", {"partial_rotary_factor": 0.5}, ["partial_rotary"]),
            ("qwen2-v4", {"use_sliding_window": True}, ["use_sliding_window"]),
            ("qwen3", {"layer_types": ["sliding_attention"] * 2}, ["layer_t"]),
            ("gemma2", {"query_pre_attn_scalar": 20}, ["query_pre_attn"]),
            ("gemma2", {"hidden_activation": "gelu"}, ["hidden_activation"]),
            ("gemma2", {"layer_types": ["sliding_attention"] * 2}, ["period"]),
            ("phi3", {"rope_parameters": {"rope_type": "yarn"}}, ["yarn"]),
            (
                "phi3",
                {"rope_parameters": {"rope_type": "longrope"}},
                ["long_"],
            ),
            (
                "phi3",
                {
                    "rope_parameters": CASES["phi3"]["config"][
                        "rope_parameters"
                    ]
                    | {"short_factor": [None] * 8}
                },
                ["short_factor", "positive"],
            ),
            ("llama-v4", {"rope_scaling": "linear"}, ["rope"]),
            ("llama-v4", {"rope_scaling": {"type": ["linear"]}}, ["linear"]),
            ("qwen3", {"layer_types": 2}, ["layer_types"]),
            ("opt", {"architectures": "OPTForCausalLM"}, ["architectures"]),
        ]
        for i, (name, change, texts) in enumerate(cases):
            case = CASES[name]
            config = case["config"] | change
            with self.subTest(name=name, change=change):
                changed = case | {"config": config}
                self.refused(build(changed, self.work / str(i)), *texts)

    def test_refused_files(self):
        def no_config(folder):
            (folder / "config.json").unlink()

        def bad_config(folder):
            (folder / "config.json").write_text("{]")

        def list_config(folder):
            (folder / "config.json").write_text("[]")

        def no_weights(folder):
            (folder / "model.safetensors").unlink()

        def empty_weights(folder):
            (folder / "model.safetensors").write_bytes(b"")

        def cut_weights(folder):
            path = folder / "model.safetensors"
            path.write_bytes(path.read_bytes()[:-2])

        def huge_header(folder):
            path = folder / "model.safetensors"
            path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])

        def of_type(name):
            def change(folder):
                path = folder / "model.safetensors"
                raw = path.read_bytes()
                path.write_bytes(raw.replace(b'"F16"', b'"%s"' % name, 1))

            return change

        def not_finite(folder):
            path = folder / "model.safetensors"
            path.write_bytes(path.read_bytes()[:-2] + b"\x00\x7e")

        def no_tokenizer(folder):
            for name in ("vocab.json", "merges.txt"):
                (folder / name).unlink()

        def no_merges(folder):
            (folder / "merges.txt").unlink()

        def bad_merge(folder):
            (folder / "merges.txt").write_text("#version: 0.2\na b c\n")

        def far_token(folder):
            (folder / "added_tokens.json").write_text('{"far": 400}')

        def endless_token(folder):
            number = 1 << 40
            path = folder / "added_tokens.json"
            path.write_text(f'{{"far": {number}}}')

        def added(number):
            def change(folder):
                path = DATA / "tokenizers/qwen2/tokenizer.json"
                data = json.loads(path.read_text())
                token = {"id": number, "content": "x", "special": True}
                data["added_tokens"].append(token)
                (folder / "tokenizer.json").write_text(json.dumps(data))

            return change

        def settings(text):
            def change(folder):
                (folder / "tokenizer_config.json").write_text(text)

            return change

        def latin_template(folder):
            (folder / "chat_template.jinja").write_bytes(b"{{ '\xe9' }}")

        def bad_tokenizer(folder):
            (folder / "tokenizer.json").write_text("{}")

        def other_words(folder):
            path = DATA / "tokenizers/llama3/tokenizer.json"
            text = path.read_text().replace("{1,3}", "{1,4}")
            (folder / "tokenizer.json").write_text(text)

        def bad_sentencepiece(folder):
            no_tokenizer(folder)
            (folder / "tokenizer.model").write_bytes(b"\x0a\xff\xff")

        def only_index(folder):
            no_weights(folder)
            index = {"weight_map": {"a": "../../secret"}}
            path = folder / "model.safetensors.index.json"
            path.write_text(json.dumps(index))

        def lost_shard(folder):
            only_index(folder)
            path = folder / "model.safetensors.index.json"
            path.write_text('{"weight_map": {"a": "lost.safetensors"}}')

        cases = [
            (no_config, ["no config.json"]),
            (bad_config, ["config.json: not JSON"]),
            (list_config, ["not a JSON object"]),
            (no_weights, ["neither model.safetensors"]),
            (empty_weights, ["not a safetensors file"]),
            (cut_weights, ["malformed"]),
            (huge_header, ["not a safetensors file"]),
            (of_type(b"I16"), ["is of type I16"]),
            (of_type(b"F32"), ["another size"]),
            (not_finite, ["holds a value that"]),
            (no_tokenizer, ["no tokenizer in it"]),
            (no_merges, ["merges.txt"]),
            (bad_merge, ["is not a merge"]),
            (far_token, ["401 tokens", "336 rows"]),
            (endless_token, [f"{(1 << 40) + 1} tokens", "336 rows"]),
            (added(1 << 40), [f"{(1 << 40) + 1} tokens", "336 rows"]),
            (added(-1), ["tokenizer.json: malformed"]),
            (settings('{"eos_token": [1]}'), ["tokenizer_config.json"]),
            (settings('{"added_tokens_decoder": {"x": {}}}'), ["malformed"]),
            (settings('{"added_tokens_decoder": [1]}'), ["malformed"]),
            (latin_template, ["chat_template.jinja"]),
            (bad_tokenizer, ["tokenizer.json"]),
            (other_words, ["pre-tokenizer is unknown", "--pre"]),
            (bad_sentencepiece, ["not a SentencePiece model"]),
            (only_index, ["no weight_map"]),
            (lost_shard, ["lost.safetensors: there is no such file"]),
        ]
        for i, (change, texts) in enumerate(cases):
            with self.subTest(change=change.__name__):
                folder = build(CASES["opt"], self.work / str(i))
                change(folder)
                self.refused(folder, *texts)
        self.refused(self.work / "nowhere", "not a folder")

    def test_output(self):
        folder = build(CASES["opt"], self.work / "in")
        self.out.write_text("mine")
        status, said = self.convert(folder)
        self.assertEqual(status, 1)
        self.assertIn("exists already", said)
        self.assertEqual(self.out.read_text(), "mine")
        self.out = self.work / "fifo"  # stands for any device
        os.mkfifo(self.out)
        status, said = self.convert(folder, "--overwrite")
        self.assertEqual(status, 1)
        self.assertIn("not a regular file", said)
        self.assertTrue(self.out.is_fifo())
        # A file of the checkpoint, under another name.
        read = folder / "config.json"
        before = read.read_bytes()
        self.out = self.work / "linked.gguf"
        os.link(read, self.out)
        status, said = self.convert(folder, "--overwrite")
        self.assertEqual(status, 1)
        self.assertIn("is read, too", said)
        self.assertEqual(read.read_bytes(), before)
        self.out = self.work / "no/such/folder.gguf"
        status, said = self.convert(folder)
        self.assertEqual(status, 1)
        self.assertIn("No such file", said)

    def test_rounding(self):
        values = np.array(
            [1.00390625, 1.01171875, -3.0e38, 0, 2.5], np.float32
        )
        bits = gguf_file.to_bf16(values).tolist()
        self.assertEqual(bits, [0x3F80, 0x3F82, 0xFF62, 0, 0x4020])
        row = np.zeros((2, 32), np.float32)
        row[1, :4] = [127, -127, 0.5, -2.6]  # halves go away from zero
        raw = gguf_file.encode(row, gguf_file.Q8_0)
        self.assertEqual(raw[:34], bytes(34))
        whole = np.frombuffer(raw[36:], np.int8)[:4].tolist()
        self.assertEqual(whole, [127, -127, 1, -3])
        for kind in ("f16", "q8_0"):
            with self.assertRaises(gguf_file.OutOfRange):
                gguf_file.encode(
                    np.full((1, 32), 1e7, np.float32), gguf_file.TYPES[kind]
                )


if __name__ == "__main__":
    import unittest.mock

    unittest.main(argv=sys.argv[:1], verbosity=1)
