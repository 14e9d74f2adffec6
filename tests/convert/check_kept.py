#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What tools/convert keeps of a checkpoint, and what it says of the rest.

End tokens, chat templates, files with other line ends; and numbers that no
model has, which are refused in one line before anything is made of them. Needs
NumPy (tests/needs.py says what happens without it).
"""

import contextlib
import io
import json
import os
import pathlib
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import needs  # noqa: E402

try:
    import numpy as np
except ImportError:
    sys.exit(needs.missing("NumPy (python3-numpy)"))

TOOL = ROOT / "tools/convert/hf_to_gguf.py"
DATA = ROOT / "tests/data/convert"
INSTINFER = sys.argv[1]
sys.path.insert(0, str(TOOL.parent))

import checkpoints  # noqa: E402
import gguf_file  # noqa: E402
import hf_to_gguf  # noqa: E402

WIDTH, CONTEXT = 8, 16
CONFIG = {
    "architectures": ["OPTForCausalLM"],
    "hidden_size": WIDTH,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "ffn_dim": WIDTH,
    "max_position_embeddings": CONTEXT,
    "word_embed_proj_dim": WIDTH,
    "activation_function": "relu",
}
TOKENS = ["<s>", "</s>", "<stop>", "<halt>", "<enough>"]
TOKENS += [chr(c) for c in range(33, 127)] + ["\u0120", "he", "the"]
MERGES = ["#version: 0.2", "h e", "t he"]


def tensors(says):
    """Of a model that always says this token: behind the last norm there is
    the bias alone, and one embedding that is not orthogonal to it."""
    vocabulary = np.zeros((len(TOKENS), WIDTH))
    vocabulary[says, 0] = 1
    made = {
        "embed_tokens.weight": vocabulary,
        "embed_positions.weight": np.zeros((CONTEXT + 2, WIDTH)),
        "final_layer_norm.weight": np.zeros(WIDTH),
        "final_layer_norm.bias": np.eye(WIDTH)[0],
    }
    for name in ("self_attn_layer_norm", "final_layer_norm"):
        made[f"layers.0.{name}.weight"] = np.ones(WIDTH)
        made[f"layers.0.{name}.bias"] = np.zeros(WIDTH)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        made[f"layers.0.self_attn.{name}.weight"] = np.zeros((WIDTH, WIDTH))
        made[f"layers.0.self_attn.{name}.bias"] = np.zeros(WIDTH)
    for name in ("fc1", "fc2"):
        made[f"layers.0.{name}.weight"] = np.zeros((WIDTH, WIDTH))
        made[f"layers.0.{name}.bias"] = np.zeros(WIDTH)
    return {f"model.decoder.{name}": values for name, values in made.items()}


def write_tensors(path, values):
    header, raw = {}, b""
    for name, array in values.items():
        part = array.astype("<f4").tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": array.shape,
            "data_offsets": [len(raw), len(raw) + len(part)],
        }
        raw += part
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw)


class Kept(unittest.TestCase):
    def setUp(self):
        work = tempfile.TemporaryDirectory()
        self.addCleanup(work.cleanup)
        self.work = pathlib.Path(work.name)
        self.folder = self.work / "in"
        self.out = self.work / "out.gguf"
        self.build()

    def build(self, says=5, **config):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        ids = {text: i for i, text in enumerate(TOKENS)}
        config = CONFIG | {"vocab_size": len(TOKENS)} | config
        self.write("config.json", config)
        self.write("vocab.json", ids)
        self.write("tokenizer_config.json", {"eos_token": "</s>"})
        self.write_merges("\n".join(MERGES) + "\n")
        write_tensors(self.folder / "model.safetensors", tensors(says))

    def write(self, name, value):
        (self.folder / name).write_text(json.dumps(value))

    def write_merges(self, text):
        (self.folder / "merges.txt").write_bytes(text.encode())

    def convert(self):
        said = io.StringIO()
        arguments = [str(self.folder), "-o", str(self.out), "--overwrite"]
        with contextlib.redirect_stderr(said):
            status = hf_to_gguf.main(arguments)
        return status, said.getvalue()

    def converted(self, *notes):
        status, said = self.convert()
        self.assertEqual(status, 0, said)
        lines = said.splitlines()
        self.assertEqual(len(lines), len(notes), said)
        for line, note in zip(lines, notes, strict=True):
            self.assertTrue(line.startswith("hf_to_gguf: not kept: "), line)
            self.assertIn(note, line)

    def refused(self, *texts):
        self.out.unlink(missing_ok=True)
        status, said = self.convert()
        self.assertEqual(status, 1, said)
        self.assertEqual(said.count("\n"), 1, said)
        self.assertLess(len(said), 500)
        for text in texts:
            self.assertIn(text, said)
        self.assertEqual(list(self.work.glob("out*")), [])

    def instinfer(self, *arguments):
        result = subprocess.run(
            [INSTINFER, *map(str, arguments)],
            capture_output=True,
            timeout=needs.HANG,
            check=False,
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout.decode()

    def keys(self):
        lines = self.instinfer("inspect", "-v", self.out).split("\n")
        found = [line.split(" = ", 1) for line in lines if " = " in line]
        return {name.strip(): value for name, value in found}

    def ends(self):
        keys = self.keys()
        names = ("eos", "eot", "eom")
        ids = [keys.get(f"tokenizer.ggml.{n}_token_id") for n in names]
        return [int(number) for number in ids if number is not None]

    def stops(self):
        """Whether the model's one token ends an answer."""
        stats = self.work / "stats.json"
        self.instinfer(
            *("run", "-m", self.out, "-p", "the", "-n", 3, "--temp", 0),
            *("--kv", "ram:16M", "--stats", stats),
        )
        return json.loads(stats.read_text())["stop_reason"]

    # End tokens.

    def test_all_end_tokens(self):
        cases = [
            (1, None, [1]),
            (None, None, [1]),
            ([1, 2], None, [1, 2]),
            (1, [2, 3], [1, 2, 3]),
            (None, [3, 1, 2], [1, 3, 2]),
            ([2, 2], 3, [1, 2, 3]),
            ([], [1], [1]),
        ]
        for config, generation, wanted in cases:
            with self.subTest(config=config, generation=generation):
                self.build(eos_token_id=config)
                self.write(
                    "generation_config.json", {"eos_token_id": generation}
                )
                self.converted()
                self.assertEqual(self.ends(), wanted)

    def test_answers_end_at_each(self):
        reasons = set()
        for says in (1, 2, 3):
            self.build(says, eos_token_id=[1, 2])
            self.write("generation_config.json", {"eos_token_id": [3]})
            self.converted()
            reasons.add(self.stops())
        self.assertEqual(reasons, {"end"})
        self.build(4, eos_token_id=[1, 2, 3])
        self.converted()
        self.assertEqual(self.stops(), "length")

    def test_more_end_tokens_than_places(self):
        self.build(eos_token_id=[1, 2])
        self.write("generation_config.json", {"eos_token_id": [3, 4]})
        self.refused("4 end tokens (1, 2, 3, 4)", "eos, eot, eom")

    def test_end_tokens_that_are_none(self):
        self.build(eos_token_id=[2, 400, -1])
        self.converted("eos_token_id 400, -1: the vocabulary has 102 tokens")
        self.assertEqual(self.ends(), [1, 2])
        for value in ("2", [2.5], True, {"id": 2}):
            self.build(eos_token_id=value)
            self.refused("config.json: eos_token_id is malformed")
        self.build()
        self.write("tokenizer_config.json", {})
        self.refused("nothing in it names an end token")

    # Text files.

    def test_line_ends(self):
        mark = "\ufeff"
        for end in ("\n", "\r\n", "\r"):
            for first in ("", mark):
                for last in ("", end, end + end):
                    with self.subTest(end=end, first=first, last=last):
                        self.write_merges(first + end.join(MERGES) + last)
                        self.converted()
                        ids = self.instinfer(
                            *("tokenize", "-m", self.out, "-p", "the"), "--ids"
                        )
                        self.assertEqual(
                            json.loads(ids), [TOKENS.index("the")]
                        )
        for name in ("config.json", "vocab.json", "tokenizer_config.json"):
            path = self.folder / name
            text = path.read_text().replace(", ", ",\r\n")
            path.write_bytes((mark + text).encode())
        self.converted()
        path.write_bytes(text.encode("utf-16"))
        self.refused("tokenizer_config.json: not UTF-8")

    # Chat templates.

    def test_templates_by_name(self):
        texts = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}", "a-b": "{{ 3 }}"}
        listed = [{"name": n, "template": t} for n, t in texts.items()]
        settings = {"eos_token": "</s>", "chat_template": listed}
        self.write("tokenizer_config.json", settings)
        self.converted()
        keys = self.keys()
        prefix = "tokenizer.chat_template"
        self.assertEqual(keys[prefix], "{{ 1 }}")
        self.assertEqual(keys[f"{prefix}.tool_use"], "{{ 2 }}")
        self.assertEqual(keys[f"{prefix}.a_b"], "{{ 3 }}")
        self.assertEqual(keys[f"{prefix}s"], "[2 values]")
        # Files count more.
        more = self.folder / "additional_chat_templates"
        more.mkdir()
        (more / "rag.jinja").write_text("{{ 4 }}")
        (self.folder / "chat_template.jinja").write_bytes(
            b"\xef\xbb\xbf{{ 5 }}"
        )
        self.converted()
        keys = self.keys()
        self.assertEqual(keys[prefix], "{{ 5 }}")
        self.assertEqual(keys[f"{prefix}.rag"], "{{ 4 }}")

    def test_template_of_processors(self):
        self.write("chat_template.json", {"chat_template": "{{ 6 }}"})
        self.converted()
        self.assertEqual(self.keys()["tokenizer.chat_template"], "{{ 6 }}")

    def test_no_default_template(self):
        listed = [{"name": "rag", "template": "{{ 1 }}"}]
        settings = {"eos_token": "</s>", "chat_template": listed}
        self.write("tokenizer_config.json", settings)
        self.converted("no chat template is the default of rag")
        self.assertNotIn("tokenizer.chat_template", self.keys())
        settings["chat_template"] = 7
        self.write("tokenizer_config.json", settings)
        self.refused("malformed: tokenizer_config.json")

    # What there is no place for.

    def test_notes(self):
        self.write(
            "generation_config.json",
            {
                "_from_model_config": True,
                "bos_token_id": 0,
                "do_sample": True,
                "temperature": 0.6,
                "suppress_tokens": [4],
                "begin_suppress_tokens": None,
                "transformers_version": "4.51.0",
            },
        )
        self.write(
            "tokenizer_config.json",
            {
                "eos_token": "</s>",
                "mask_token": "<mask>",
                "added_tokens_decoder": {
                    "2": {"content": "<stop>", "special": True, "rstrip": True}
                },
            },
        )
        self.converted(
            "'<mask>', which is no token",
            "rstrip of added tokens (<stop>)",
            "generation_config.json: do_sample, temperature, suppress_tokens",
        )

    def test_text_that_is_none(self):
        settings = {"eos_token": "</s>", "chat_template": "\ud800"}
        self.write("tokenizer_config.json", settings)
        self.refused("no text")

    # Numbers that no model has.

    ABSURD = (
        *(-1, 0, 2**31 - 1, 2**64, 10**400, 0.5, 1e300, float("nan")),
        *("1", [10**400] * 4),
    )
    # Read where they are there.
    OPTIONAL = {
        "head_dim": 1,
        "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": 64,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 4,
        "sliding_window_pattern": 6,
    }
    SCALING = {
        "factor": 2.0,
        "attention_factor": 1.0,
        "beta_fast": 32,
        "original_max_position_embeddings": 64,
    }

    def changes(self, config):
        """config.json with one number in it that is none."""
        config = self.OPTIONAL | config | {"eos_token_id": 1}
        scaled = {"yarn": "rope_scaling", "linear": "rope_parameters"}
        if "rope_theta" not in str(config):
            scaled = {}
        for kind, name in scaled.items():
            rope = self.SCALING | {"rope_type": kind}
            for inner in rope:
                for absurd in self.ABSURD:
                    yield config | {name: rope | {inner: absurd}}
        for name, value in config.items():
            for absurd in self.ABSURD:
                yield config | {name: absurd}
                if isinstance(value, dict):
                    for inner in value:
                        yield config | {name: value | {inner: absurd}}

    def check_absurd(self, config):
        """Converted or refused in one line."""
        self.write("config.json", config)
        status, said = self.convert()
        lines = said.splitlines()
        for line in lines:
            self.assertLess(len(line), 500)
        if status:
            self.assertEqual((status, len(lines)), (1, 1), said)
        else:
            self.assertEqual(said.count("not kept"), len(lines), said)

    def test_absurd_numbers(self):
        """With little memory, so that it shows when something is made of
        them first; nothing is written."""
        limit = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        room = pages * os.sysconf("SC_PAGESIZE") + (256 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (room, limit[1]))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_AS, limit)
        writer = unittest.mock.patch.object(gguf_file.Writer, "write")
        writer.start()
        self.addCleanup(writer.stop)
        done = set()
        for case in json.loads((DATA / "cases.json").read_text()):
            kind = case["config"]["architectures"][0]
            if kind in done or (done and not needs.MORE):
                continue
            done.add(kind)
            shutil.rmtree(self.folder)
            self.folder.mkdir()
            checkpoints.write_safetensors(
                self.folder / "model.safetensors",
                case["tensors"],
                case["norm"],
            )
            for path in (DATA / "tokenizers" / case["tokenizer"]).iterdir():
                shutil.copy(path, self.folder)
            for config in self.changes(case["config"]):
                with self.subTest(config=config):
                    self.check_absurd(config)

    def test_absurd_layers_and_widths(self):
        layers = {"num_hidden_layers": 2**31 - 1}
        self.build(**layers)
        self.refused("num_hidden_layers is 2147483647", "only 20 tensors")
        for name in ("hidden_size", "ffn_dim", "vocab_size"):
            self.build(**{name: 2**30, "word_embed_proj_dim": None})
            self.refused("1073741824")

    def test_absurd_shapes(self):
        path = self.folder / "model.safetensors"
        raw = path.read_bytes()
        size = struct.unpack_from("<Q", raw)[0]
        name = "model.decoder.final_layer_norm.bias"
        for shape in (
            [0, 2**62],
            [2**70, 0],
            [0],
            [-8],
            [1] * 200 + [8],
            [8.0],
            "8",
            8,
        ):
            with self.subTest(shape=shape):
                header = json.loads(raw[8 : 8 + size])
                entry = header[name]
                entry["shape"] = shape
                if 0 in (shape if isinstance(shape, list) else ()):
                    entry["data_offsets"] = [0, 0]
                text = json.dumps(header).encode()
                length = struct.pack("<Q", len(text))
                path.write_bytes(length + text + raw[8 + size :])
                self.refused(name, "malformed")
        header[name] = {**entry, "shape": [8], "dtype": ["F32"]}
        text = json.dumps(header).encode()
        length = struct.pack("<Q", len(text))
        path.write_bytes(length + text + raw[8 + size :])
        self.refused(name)

    # Surroundings.

    def test_without_numpy(self):
        (self.work / "numpy.py").write_text("raise ImportError")
        result = subprocess.run(
            [sys.executable, TOOL, self.folder, "-o", self.out],
            capture_output=True,
            env=os.environ | {"PYTHONPATH": str(self.work)},
            check=False,
            text=True,
        )
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertIn("apt install python3-numpy", result.stderr)
        self.assertEqual(list(self.work.glob("out*")), [])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
