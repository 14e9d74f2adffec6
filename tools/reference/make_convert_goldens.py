#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fixtures of tests/convert: what Transformers makes of small checkpoints.

    make_convert_goldens.py tests/data/convert

Tokenizers are trained on the licence and some texts below by Hugging Face's
tokenizers and by SentencePiece. Models of every architecture are made by
Transformers and saved by it; their weights follow from names
(tests/convert/checkpoints.py), so that what is kept of a checkpoint is its
config.json, the names and shapes of its tensors and the logits that
Transformers computes in float64. Some have a config.json as Transformers 4
wrote it.

Needs torch, transformers, tokenizers, sentencepiece. Takes a minute.
"""

import io
import json
import pathlib
import shutil
import struct
import sys
import tempfile

import numpy as np
import sentencepiece
import tokenizers
import torch
import transformers
from tokenizers import Regex, decoders, pre_tokenizers, processors

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/convert"))
sys.path.insert(0, str(ROOT / "tools/convert"))
sys.path.append(str(ROOT / "tools"))

import checkpoints  # noqa: E402
import output_file  # noqa: E402
import vocabulary  # noqa: E402

WORDS = 320  # tokens of the byte-level vocabularies
PIECES = 400  # of SentencePiece's
TOKENS, KEPT = 70, (0, 1, 17, 50, 69)

TEXTS = (
    "Hello world", " Hello  world ", "hello\nworld\n\n\n", "\t\ta  b   c",
    "", " ", "   ", "\n", " \n \r\n ", "don't WE'LL I'd they're 'tis",
    "0 12 123 1234 12345 3.14159 1,000,000 0x1F 1e-9", "a1b22c333",
    "for (int i = 0; i < n; i++) {\n    a[i] += b[i];\n}\n",
    "def f(x):\n\treturn x**2  # square\n\n\nprint(f(3))",
    "https://example.org/a?b=c&d=%20e#f", "\\n \\t \\\\ C:\\Users\\x",
    "àéîõü ÀÉÎÕÜ ß ñ", "a\u0301e\u0302 n\u0303", "Z\u0338\u0327a\u0335",
    "Привет, мир!", "שלום עולם", "नमस्ते दुनिया", "你好，世界", "안녕하세요",
    "😀 a😀b 👨‍👩‍👧‍👦 👍🏽 🇩🇪", "½ ² ③ Ⅷ ٣", "\u00a0\u3000\u2028\u200b\ufeff",
    "\u2581 \u2581\u2581x", "<s>", "</s>", "a</s>b", "<pad> </s> x", "<unk>",
    "<|im_start|>user\nHi<|im_end|>\n", "<|bos|>x<|end|>", "[PAD330]",
    "HTMLParser camelCase SCREAMING_CASE", "the model " * 9, "....,,,;;!!",
    "\x00\x01\x7f", "a/b//c\n/d", "  indented\n    more\n  back",
)  # fmt: skip


# Tokenizers. Each writes its files into a folder.


def corpus():
    """Texts that stay as they are."""
    ascii_texts = [text for text in TEXTS if text.isascii()]
    return [(ROOT / "LICENSE").read_text(), *ascii_texts]


def write(folder, name, value):
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    output_file.write_text(folder / name, text)


def compact(folder):
    for path in folder.glob("*.json"):
        write(folder, path.name, json.loads(path.read_text()))


def byte_level(pre, special, template=None, normalizer=None):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    if template:
        numbers = [(t, tokenizer.token_to_id(t)) for t in special]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=numbers
        )
    return tokenizer


def save(tokenizer, folder, **settings):
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **settings
    )
    fast.save_pretrained(folder)
    compact(folder)


def gpt2_words():
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(pattern):
    bytes_only = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_only]
    )


def pattern_of(name):
    """The regular expression of a pre-tokenizer that is one Split."""
    for (step, *_), known in vocabulary.PRE_TOKENIZERS.items():
        if known == name:
            return step.removeprefix("split ")
    raise KeyError(name)


def make_opt(folder):
    """As the OPT checkpoints have it: no tokenizer.json."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = byte_level(gpt2_words(), special)
    tokenizer.model.save(str(folder))
    added = {
        "__type": "AddedToken",
        "content": "</s>",
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }
    settings = {
        "errors": "replace",
        "unk_token": added,
        "bos_token": added,
        "eos_token": added,
        "pad_token": "<pad>",
        "add_prefix_space": False,
        "add_bos_token": True,
        "tokenizer_class": "GPT2Tokenizer",
    }
    write(folder, "tokenizer_config.json", settings)
    names = ("bos_token", "eos_token", "unk_token")
    special = dict.fromkeys(names, added) | {"pad_token": "<pad>"}
    write(folder, "special_tokens_map.json", special)
    compact(folder)


def make_llama3(folder):
    special = ["<|bos|>", "<|end|>"]
    pre = split(pattern_of("llama-bpe"))
    tokenizer = byte_level(pre, special, "<|bos|> $A")
    tokenizer.add_tokens(["user-defined"])
    tokenizer.model.ignore_merges = True  # as the models do
    save(tokenizer, folder, bos_token="<|bos|>", eos_token="<|end|>")


def make_qwen2(folder):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level(split(pattern_of("qwen2")), special)
    save(
        tokenizer,
        folder,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template="{{ messages }}<|im_start|>",
    )


def make_tekken(folder):
    special = ["<unk>", "<s>", "</s>"]
    pre = split(pattern_of("tekken"))
    tokenizer = byte_level(pre, special, "<s> $A")
    tokenizer.model.ignore_merges = True
    save(tokenizer, folder, bos_token="<s>", eos_token="</s>")


def make_smollm(folder):
    digits = pre_tokenizers.Digits(individual_digits=True)
    pre = pre_tokenizers.Sequence([digits, gpt2_words()])
    tokenizer = byte_level(pre, ["<|im_start|>", "<|im_end|>"])
    save(tokenizer, folder, bos_token="<|im_start|>", eos_token="<|im_end|>")


def train_sentencepiece(folder, dummy_prefix):
    # Files would leave their paths in the model.
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(corpus()).split("\n")),
        model_writer=model,
        vocab_size=PIECES,
        character_coverage=1.0,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def make_sentencepiece(folder):
    """As the Llama 2 checkpoints had it at first: no tokenizer.json."""
    train_sentencepiece(folder, True)
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
    }
    write(folder, "tokenizer_config.json", settings)


def make_sentencepiece_json(folder):
    """The same without a space first and as tokenizer.json alone."""
    train_sentencepiece(folder, False)
    model = sentencepiece.SentencePieceProcessor(
        str(folder / "tokenizer.model")
    )
    count = model.get_piece_size()
    pieces = {model.id_to_piece(i): i for i in range(count)}
    merges = []
    for text, number in pieces.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in pieces and right in pieces and number > 258:
                merges.append((number, pieces[left], left, right))
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=pieces,
            merges=[(left, right) for _, _, left, right in sorted(merges)],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    save(
        tokenizer, folder, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    (folder / "tokenizer.model").unlink()


TOKENIZERS = {
    "opt": make_opt,
    "llama3": make_llama3,
    "qwen2": make_qwen2,
    "tekken": make_tekken,
    "smollm": make_smollm,
    "sentencepiece": make_sentencepiece,
    "sentencepiece-json": make_sentencepiece_json,
}


def ids_of(folder):
    """Ids of every text, special tokens included and parsed."""
    if (folder / "tokenizer.model").exists():
        model = sentencepiece.SentencePieceProcessor(
            str(folder / "tokenizer.model")
        )
        # What it does not do is to parse special tokens.
        return [
            None if "<" in text else [1, *model.encode(text)] for text in TEXTS
        ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text)["input_ids"] for text in TEXTS]


# Models

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "initializer_range": 0.02}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
COMMON = SMALL | HEADS | {"intermediate_size": 96, "vocab_size": 384}
COMMON |= {"max_position_embeddings": 256, "rms_norm_eps": 1e-5}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "long_factor": [1.0 + i for i in range(8)],
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 20}

# name -> (class, settings, tokenizer, dtype, what is special)
CASES = {
    "opt": (
        "OPT",
        SMALL
        | {
            "ffn_dim": 160,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 64,
            "vocab_size": 336,  # more rows than tokens, as in the real ones
            "max_position_embeddings": 128,
        },
        "opt",
        "F16",
        {},
    ),
    "llama": (
        "Llama",
        COMMON | {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 5e5}},
        "llama3",
        "BF16",
        {"shards": 3},
    ),
    "llama-v4": (
        "Llama",
        COMMON
        | {
            "vocab_size": PIECES,
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
        "sentencepiece",
        "F16",
        {"v4": {"rope_theta": 20000.0, "torch_dtype": "float16"}},
    ),
    "mistral": (
        "Mistral",
        COMMON | {"sliding_window": 30, "head_dim": 32},
        "tekken",
        "BF16",
        {},
    ),
    "smollm": (
        "Llama",
        COMMON | {"num_key_value_heads": 1, "tie_word_embeddings": True},
        "smollm",
        "F32",
        {},
    ),
    "qwen2": (
        "Qwen2",
        COMMON | {"rope_parameters": YARN | {"rope_theta": 1e6}},
        "qwen2",
        "BF16",
        {},
    ),
    "qwen2-v4": (
        "Qwen2",
        COMMON | {"tie_word_embeddings": True},
        "qwen2",
        "F16",
        {"v4": {"rope_theta": 1e6, "sliding_window": 64}},
    ),
    "qwen3": ("Qwen3", COMMON | {"head_dim": 32}, "qwen2", "BF16", {}),
    "phi3": (
        "Phi3",
        COMMON
        | {
            "pad_token_id": 0,
            "sliding_window": 40,
            "original_max_position_embeddings": 64,
            "rope_parameters": LONGROPE
            | {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        "sentencepiece",
        "BF16",
        {"vocab": PIECES},
    ),
    "gemma2": (
        "Gemma2",
        COMMON
        | GEMMA
        | {
            "vocab_size": PIECES,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 4.0,
        },
        "sentencepiece-json",
        "BF16",
        {},
    ),
    "gemma3": (
        "Gemma3",
        COMMON
        | GEMMA
        | {
            "vocab_size": PIECES,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "linear",
                    "factor": 8.0,
                    "rope_theta": 1e6,
                },
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 12000.0,
                },
            },
        },
        "sentencepiece-json",
        "F16",
        {},
    ),
}


def header_of(path):
    raw = path.read_bytes()
    size = struct.unpack_from("<Q", raw)[0]
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    return [[n, e["shape"], e["dtype"]] for n, e in header.items()]


DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def make_case(name, out, work):
    kind, settings, tokenizer, dtype, more = CASES[name]
    if "vocab" in more:
        settings = settings | {"vocab_size": more["vocab"]}
    config_name = "Gemma3Text" if kind == "Gemma3" else kind
    config = getattr(transformers, f"{config_name}Config")(**settings)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    model.to(DTYPES[dtype]).save_pretrained(work)
    if "v4" in more:
        # As it was written before there was rope_parameters.
        config = {
            "architectures": [f"{kind}ForCausalLM"],
            "model_type": config.model_type,
            "tie_word_embeddings": settings.get("tie_word_embeddings", False),
            **settings,
            **more["v4"],
        }
        write(work, "config.json", config)
    tensors = sorted(header_of(work / "model.safetensors"))
    (work / "model.safetensors").unlink()
    shards = more.get("shards", 0)
    # Those of gemma are added to 1.
    norm = 0 if kind.startswith("Gemma") else 1
    if shards:
        checkpoints.write_sharded(work, tensors, norm, shards)
    else:
        path = work / "model.safetensors"
        checkpoints.write_safetensors(path, tensors, norm)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        work,
        dtype=torch.float64,
        attn_implementation="eager",
        output_loading_info=True,
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[what], (name, what, info[what])
    random = np.random.default_rng(5)
    tokens = random.integers(0, settings["vocab_size"], TOKENS).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].numpy()
    kept = logits[list(KEPT)].astype("<f4")
    with output_file.writing(out / f"{name}.npy", "wb") as file:
        np.save(file, kept)
    config = json.loads((work / "config.json").read_text())
    return {
        "name": name,
        "tokenizer": tokenizer,
        "shards": shards,
        "norm": norm,
        "config": config,
        "tensors": tensors,
        "tokens": tokens,
        "positions": KEPT,
    }


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    ids = {}
    for name, make in TOKENIZERS.items():
        folder = out / "tokenizers" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        ids[name] = ids_of(folder)
        print(name, sum(map(len, filter(None, ids[name]))), "ids")
    write(out, "tokens.json", {"texts": TEXTS, "ids": ids})
    cases = []
    for name in CASES:
        with tempfile.TemporaryDirectory() as work:
            cases.append(make_case(name, out, pathlib.Path(work)))
        print(name, flush=True)
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    output_file.write_text(out / "cases.json", f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
