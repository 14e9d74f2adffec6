#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Token ids of llama.cpp's llama-tokenize for hard texts, as golden values of our tokenizer.

    make_token_goldens.py LLAMA_TOKENIZE MODELS_FOLDER tests/data [NAME...]

Writes tokens_llama_spm.json and tokens_bpe.json (real vocabularies: those of the tree, and those
in MODELS_FOLDER, whose licences keep them out of it), tokens_pre.json (one made here: every byte,
and merges of strings taken from the texts without regard to words, so that a word cut elsewhere
gives other ids; encoded with each pre-tokenizer; 0 where the ids are those of the first) and
tokens_points.json (every code point with neighbours on both sides, a checksum of the ids for each
4,096 of them and each pre-tokenizer). With names, only these: tokens_pre, say.

The texts are generated here (fixed seed). Each is encoded with and without parsing special tokens
in it, and some with the special tokens of the model at the ends; where parsing makes no difference
the second entry is 0, and it is null where llama.cpp ends with an error. Texts stand in the files as
hexadecimal bytes, since some are no valid UTF-8.

Loading a vocabulary costs up to half a second, so texts are put into one with a special token
between them, which llama.cpp encodes piece by piece. Those that special tokens could occur in go
alone where it matters. Standard library only; takes some minutes.
"""
import concurrent.futures
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import zlib

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.append(os.path.join(ROOT, "tools"))
import output_file  # noqa: E402

TREE = os.path.join(ROOT, "models"), os.path.join(ROOT, "tests/data")

# Vocabularies and a special token of each that stands between texts.
SPM = {"vocab/ggml-vocab-llama-spm.gguf": "</s>", "stories260K.gguf": "</s>",
       "vocab/words-spm.gguf": "</s>"}
BPE = {"vocab/ggml-vocab-gpt-2.gguf": "<|endoftext|>",
       "vocab/ggml-vocab-llama-bpe.gguf": "<|reserved_special_token_200|>",
       "vocab/ggml-vocab-qwen2.gguf": "<|endoftext|>"}
PRE = ["gpt-2", "llama-bpe", "qwen2", "smollm", "tekken", "gpt-4o", "deepseek-llm", "default"]


def fixed_texts():
    yield from [
        "", " ", "  ", "   ", "    ", "\n", "\n\n", "\t", " \n ", "\r\n", "a", " a", "a ", "  a  ",
        "Hello world", " Hello world", "Hello  world", "Hello   world ", "Hello\nworld",
        "Once upon a time", "The quick brown fox jumps over the lazy dog.",
        "don't can't we'll I'd they're you've I'M", "e.g., i.e., etc.", "...", "....", "-----",
        "0", "12", "123", "1234", "12345", "123456789", "3.14159", "1,000,000", "0x1F", "1e-9",
        "2026-11-21T01:38:47Z", "192.168.0.1", "+49 (0)30 123456", "½ ¾ ² ³ ① Ⅷ", "٠١٢٣٤٥٦٧٨٩",
        "for (int i = 0; i < n; i++) {\n    a[i] += b[i];\n}\n",
        "def f(x):\n\treturn x**2  # square\n\n\nprint(f(3))",
        "<div class=\"a\">&nbsp;</div>", "https://example.org/a?b=c&d=%20e#f",
        "SELECT * FROM t WHERE a='b';", "\\n \\t \\\\", "C:\\Users\\x", "{\"k\": [1, 2.5, null]}",
        "àéîõü ÀÉÎÕÜ ß ñ ç ø å", "a\u0301e\u0302i\u0303 n\u0303", "Z̸̧͕a̵̱͝l̶͍̓g̷̢͠o̸̪͐",
        "Привет, мир! Как дела?", "Ελληνικά γράμματα", "שלום עולם", "مرحبا بالعالم",
        "नमस्ते दुनिया", "สวัสดีชาวโลก", "你好，世界", "こんにちは世界", "안녕하세요 세계",
        "中文和English混合 text", "ქართული ენა", "Tiếng Việt", "Հայերեն", "አማርኛ",
        "😀", "😀😀", "👨‍👩‍👧‍👦", "👍🏽", "🇩🇪🇫🇷", "❤️", "a😀b", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "☃ ☂ ★",
        "\u200b", "\u200d", "\ufeff", "\ufeffabc", "\u00a0", "\u3000", "\u2028", "\u2581",
        "\u2581\u2581", "a\u2581b", "\u2581Hello", "\u2581 \u2581", "\x00", "a\x00b", "\x01\x02\x7f",
        "<s>", "</s>", "<unk>", "<s>Hello</s>", " <s> Hello </s> ", "<s><s>", "</s></s>", "<s></s>",
        "a<s>b", "a <s> b", "a</s>b</s>c", "<S>", "< s>", "<s >", "<s", "s>", "<<s>>", "</s",
        "<unk><unk>", "x<unk>y", "<s>\n</s>", "<0x0A>", "<0x41>", "<0xFF>a", "<0x", "<0x4>",
        "[INST] Hi [/INST]", "<|im_start|>user\nHi<|im_end|>", "<start_of_turn>user",
        "<|eot_id|>", "<|endoftext|>", "<<SYS>>\nx\n<</SYS>>",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "ababababababababab",
        "aaaabaaaabaaaab", "!!!!!!!!!!!!!!!!", "==========", "_______", "////////", "\n" * 20,
        " " * 17, " " * 64, "\t" * 9, "a" + " " * 30 + "b", "the the the the the the",
        "thethethethethethe", "ing ed er est ly tion", "antidisestablishmentarianism",
        "supercalifragilisticexpialidocious", "rindfleischetikettierungsüberwachung",
        "CamelCaseAndsnake_case_and-kebab-case", "ALL CAPS TEXT", "wEiRd CaSe",
        "There was a little girl named Lily. She loved to play outside.",
    ]


def raw_texts():
    yield from [
        b"\x80", b"\xbf\xbf", b"\xc0\x80", b"\xc3", b"a\xc3", b"\xc3(", b"\xe2", b"\xe2\x96",
        b"\xe2\x96\x81", b"\xe2 \x96", b"\xe2\x96 ", b"\xe2(\xa1", b"\xf0", b"\xf0 x", b"\xf0\x9f",
        b"\xf0\x9f\x98", b"\xf0\x9f\x98 ", b"\xf0\x28\x8c\xbc", b"\xf4\x90\x80\x80", b"\xf8\x88\x80",
        b"\xfe\xff", b"\xff", b"\xff\xff\xff", b"a\xffb", b"a \xff b", b"\xed\xa0\x80",
        b"\xed\xb0\x80\xed\xa0\x80", b"\xf0  ", b"\xe0  ", b"\xc0  ", b"\xf0 a b c", b"caf\xe9",
        b"\xef\xbb\xbfBOM", b"\xf0<s>", b"\xe2</s>x", b"</s>\xf0", b"\xc3\xa9\xa9\xa9",
        bytes(range(256)), bytes(range(255, -1, -1)), bytes(range(0x80, 0xc0)),
    ]


def random_texts(random):
    words = ("the of and a to in is you that it he was for on are as with his they I at be this "
             "have from or one had by word but not what all were we when your can said there use "
             "an each which she do how their if will up other about out many then them these so "
             "Key value fact ledger 42 1999 über naïve 東京 мир 🙂 π≈3.14").split(" ")
    marks = ["<s>", "</s>", "<unk>", " ", "  ", "\n", "\u2581", "<0x41>", "."]
    for _ in range(30):  # words with odd white space
        text = ""
        for _ in range(random.randint(3, 25)):
            text += random.choice(words) + random.choice([" ", " ", " ", "", "  ", "\n", "\t", ", "])
        yield text.encode()
    for _ in range(20):  # letters that merge in many ways
        letters = random.choice(["ab", "ing", "the ", "0123456789", "esr tn", "aeiou ", "=-_"])
        yield "".join(random.choice(letters) for _ in range(random.randint(5, 120))).encode()
    for _ in range(25):  # special tokens anywhere
        text = "".join(random.choice(words + marks * 4) for _ in range(random.randint(2, 14)))
        yield text.encode()
    for _ in range(25):  # random code points of all planes
        points = [random.choice([random.randint(0, 0x7f), random.randint(0x80, 0x7ff),
                                 random.randint(0x800, 0xd7ff), random.randint(0xe000, 0xffff),
                                 random.randint(0x10000, 0x10ffff)])
                  for _ in range(random.randint(1, 40))]
        yield "".join(map(chr, points)).encode()
    for _ in range(35):  # random bytes
        yield bytes(random.randrange(256) for _ in range(random.randint(1, 60)))
    for _ in range(25):  # valid text, damaged
        text = bytearray(" ".join(random.choice(words) for _ in range(12)).encode())
        for _ in range(random.randint(1, 4)):
            at = random.randrange(len(text))
            if random.random() < 0.5:
                del text[at]
            else:
                text[at] = random.choice([0xc3, 0xe2, 0xf0, 0xff, 0x20, 0x80, random.randrange(256)])
        yield bytes(text)
    long = " ".join(random.choice(words) for _ in range(600))
    yield long.encode()
    yield long.replace(" ", "").encode()


def more_texts():
    """What pre-tokenizers of BPE cut differently: case, numbers, white space, classes."""
    yield from [
        "I'LL YOU'RE we'Ve it'S don'T he'D I'm 'tis 's 'S 'x '", "a'b'c", "''s", "'\u017f 'RE're",
        "1 22 333 4444 55555 666666", "a1b22c333d4444", "1234567890123", "३४५ ๑๒๓ 一二三 ①②③ ½⅓",
        "x=1;y=22;z=333;", "$1,234.56 €7.890,12 £5", "1st 2nd 3rd 10th", "v1.2.3-rc4+build.567",
        "a \n b", "a\n\n\nb", "a \n\n b", "\n a", " \n", "  \n  ", "a\r\n\r\nb", "\r\r\n\n", "\t\ta",
        "  a", "   a", "a  ", "a \t b", "\u00a0a", "a\u00a0\u00a0b", "a\u3000b", "\u3000\u3000。",
        "\u2003x", "a\u2028b\u2029c", "a\u0085b", "\x0b\x0c a", "\x1c\x1d\x1e\x1f", "\u180ea \u180e b",
        "a\u200bb", "\u202fa", "x\u205fy", "\u1680z", "!\n", "!!\n\n", " !\r\n", "a.\n\nb", "...\n ",
        "//\n///\n", "a/b//c/\n/", "{\n\t\"a\": 1\n}", "if(x){y();}else{z++;}\n", "#include <stdio.h>\n",
        "x->y::z<T>&&!w||~v", "^_^ ~~~ ||| <<< >>> +++ === $$$ ```", "a_b_c __init__ _x", "--flag=val",
        "/usr/local/bin:$PATH", "\\alpha^{2}_{i}", "<!-- x --><br/>", "@user #tag %d %s", "(a)[b]{c}<d>",
        "HelloWorld helloWorld HELLOWorld HELLOworld", "iPhone eBay McDonald USA's NASAs", "ÀÉÎ àéî Àé",
        "ΑΒΓαβγ ΑβΓ", "ПРИВЕТ привет Привет", "ǅ ǈ ǋ", "ªº ʰʱ ˈ", "Straße STRASSE ﬁ ﬂ", "ⅣⅤⅥ ↂ",
        "한국어 문장을 나누어 봅시다.", "ㄱㄴㄷ ㅏㅑ", "한\u1100\u1161", "日本語のテキスト、カタカナ。", "「引用」『二重』",
        "混合English和中文123数字", "漢字かな交じり文", "𠀀𠀁𠮷野家", "\u3007\u3021", "你好！？：；（）", "！，．：；～",
        "ภาษาไทยไม่มีช่องว่าง", "ลาว ພາສາລາວ", "ខ្មែរ", "မြန်မာ", "བོད་ཡིག", "தமிழ் மொழி", "తెలుగు", "ಕನ್ನಡ",
        "മലയാളം", "বাংলা ভাষা", "ગુજરાતી", "ਪੰਜਾਬੀ", "සිංහල", "العربية ١٢٣ نص", "فارسی ۱۲۳", "اَلْعَرَبِيَّةُ",
        "עִבְרִית נִקּוּד", "ქართული ᲥᲐᲠᲗᲣᲚᲘ", "ᏣᎳᎩ ꮳꮃꭹ", "ᠮᠣᠩᠭᠣᠯ", "ⵜⵉⴼⵉⵏⴰⵖ", "𐐀𐐨 𞤀𞤢", "𝐀𝐁𝟏𝟐",
        "a\u0300\u0301b", "\u0301a", " \u0301", "क्षि", "ก็", "\u20dd", "1\u20e3", "é é", "가 가",
        "👩🏽‍🚀", "👨🏿‍❤️‍💋‍👨🏻", "🏳️‍🌈🏴‍☠️", "🇺🇸🇬", "😀a😀1😀 😀", "⌚️⌛", "© ® ™ ℃ №", "→←↑↓ ≤≥≠ ∑∫√", "♠♥♦♣ ♪♫",
        "\ud7ff\ue000\uf8ff\ufffd\uffff", "\U0001e4d0\U0001e4d1 \U0001e4f0\U0001e4f1", "\U00031350\U0002ebf0x",
        "\U00011f50\U00011f51 \U00011f02\U00011f43", "\U0001342f\U0002b739", "\u0378\u0380 \U0010ffff", "\u1c89\u1c8a",
        "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> ", "<|endoftext|><|endoftext|>", "<|endoftext|",
        "<|begin_of_text|>Hi<|end_of_text|>", "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|eot_id|> x", "x <|im_end|>",
        "<|reserved_special_token_200|>", "<|reserved_special_token_5|>1", "<|im_start|", "<|im_<|im_end|>",
        "a" * 300, "A" * 301, "aA" * 150, " " * 301, " " * 300 + "x", "\n" * 150 + "x", "7" * 301, "!" * 301,
        "中" * 120, "😀" * 60, "\u0301" * 70, "Aa1 " * 60, "word" * 80, "\t \n" * 60, "x \n" * 40,
    ]


def more_raw_texts():
    yield from [
        b"\xc0\x80x", b"\xc1\xbf", b"\xe0\x80\x80", b"\xe0\x80\xa0 a", b"\xf0\x80\x80\x80", b"\xf0\x82\x82\xac",
        b"\xed\xa0\xbd\xed\xb8\x80", b"a\xed\xbf\xbfb", b" \xed\xa0\x80 ", b"\xe4\xbd", b"\xe4\xbd ", b"\xe4\xbd\xe4\xbd\xa0",
        b"\xf0\x9f\x98a", b"\xf0\x9f\x98\xf0\x9f\x98\x80", b"\x80\x80 \x80", b"1\xff2\xff3", b"\xff\n\xff", b"'\xff's",
        b"\xf5\x80\x80\x80", b"a\xf7\xbf\xbf\xbfb", b"\xfc\x84\x80\x80\x80\x80", b"caf\xe9 na\xefve", b"\xe9t\xe9",
        b"\xd0\x9f\xd1", b"<|endoftext|>\xff", b"\xf0<|endoftext|>", b"\xe2\x80", b"\xe2\x80\xe2\x80\xa8", b"\xef\xbf",
    ]


def more_random_texts(random):
    alphabets = ["aA1 ", "Aa'sS ", " \n\t", "a \n.", "1 .,", "中文，。 a1", "àÀ a\u0301", "😀 a\u200d", "ไท1 ",
                 "\u3000\u00a0 \n", "'\u2019sSlLrRe ", "_-/\\ aA", "한ㄱ1 ", "Ωω Яя1", "()[]{}<>aA ;\n"]
    for alphabet in alphabets:
        for _ in range(6):
            yield "".join(random.choice(alphabet) for _ in range(random.randint(2, 50))).encode()
    for _ in range(20):  # from several alphabets
        yield "".join(random.choice(random.choice(alphabets))
                      for _ in range(random.randint(5, 80))).encode()


def corpus():
    texts = [t.encode() for t in fixed_texts()] + list(raw_texts())
    texts += list(random_texts(random.Random(20261121)))
    texts += [t.encode("utf-8", "surrogatepass") for t in more_texts()] + list(more_raw_texts())
    texts += list(more_random_texts(random.Random(20261122)))
    return list(dict.fromkeys(texts))


def tokenize(binary, model, text, bos, special):
    """The ids; None where llama.cpp ends with an error (numbers beyond U+10FFFF)."""
    command = [binary, "-m", model, "--stdin", "--ids", "--no-escape", "--log-disable"]
    if not bos:
        command.append("--no-bos")
    if not special:
        command.append("--no-parse-special")
    done = subprocess.run(command, input=text, capture_output=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def beyond_unicode(text):
    return any(a >= 0xf5 or (a == 0xf4 and b >= 0x90) for a, b in zip(text, text[1:]))


def encode_all(binary, model, separator, texts):
    """Two lists: ids without and with parsing of special tokens."""
    plain, parsed = [None] * len(texts), [None] * len(texts)
    together = [i for i, t in enumerate(texts)
                if separator.encode() not in t and not beyond_unicode(t)]
    middle = tokenize(binary, model, separator.encode(), False, True)
    assert len(middle) == 1, model
    ids = tokenize(binary, model, separator.encode().join(texts[i] for i in together), False, True)
    pieces = [[]]
    for token in ids:
        if token == middle[0]:
            pieces.append([])
        else:
            pieces[-1].append(token)
    assert len(pieces) == len(together), model
    for i, piece in zip(together, pieces):
        parsed[i] = piece
        if b"<" not in texts[i]:  # no special token of these vocabularies is without
            plain[i] = piece
    alone = [(i, special) for i, t in enumerate(texts) for special in (False, True)
             if i not in set(together) or (b"<" in t and not special)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        jobs = {key: pool.submit(tokenize, binary, model, texts[key[0]], False, key[1])
                for key in alone}
        for (i, special), job in jobs.items():
            (parsed if special else plain)[i] = job.result()
    return plain, parsed


def real_vocabularies(binary, folder, models, texts):
    out = {"texts": [t.hex() for t in texts], "models": []}
    for model, separator in models.items():
        path = next(path for path in (os.path.join(f, model) for f in (*TREE, folder))
                    if os.path.exists(path))
        plain, parsed = encode_all(binary, path, separator, texts)
        out["models"].append({
            "file": model,
            "plain": plain,
            "parsed": [p if p != q else 0 for p, q in zip(parsed, plain)],
            "bos": [tokenize(binary, path, t, True, True) for t in texts[:12]],
        })
    return out


def visible(data):
    """The characters in which BPE vocabularies write bytes."""
    shown = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return "".join(chr(b) if b in shown else chr(256 + hidden.index(b)) for b in data)


def make_merges(texts, random):
    """Strings of the texts, whatever they cut through, each grown from its left end or its right."""
    merges = []
    for _ in range(2600):
        text = random.choice(texts)
        if len(text) < 2:
            continue
        at = random.randrange(len(text) - 1)
        part = [visible([b]) for b in text[at:at + random.randint(2, 6)]]
        for k in range(1, len(part)):
            if random.random() < 0.5:
                merges.append(("".join(part[:k]), part[k]))
            else:
                merges.append((part[-k - 1], "".join(part[len(part) - k:])))
    merges = list(dict.fromkeys(merges))
    random.shuffle(merges)
    return merges


def write_vocabulary(path, pre, tokens, merges):
    def string(s):
        data = s.encode()
        return struct.pack("<Q", len(data)) + data

    def strings(values):
        return struct.pack("<IQ", 8, len(values)) + b"".join(map(string, values))

    types = [1] * (len(tokens) - 1) + [3]
    keys = [("general.architecture", 8, string("llama")),
            ("tokenizer.ggml.model", 8, string("gpt2")),
            ("tokenizer.ggml.pre", 8, string(pre)),
            ("tokenizer.ggml.tokens", 9, strings(tokens)),
            ("tokenizer.ggml.token_type", 9,
             struct.pack("<IQ%di" % len(types), 5, len(types), *types)),
            ("tokenizer.ggml.merges", 9, strings(merges)),
            ("tokenizer.ggml.bos_token_id", 4, struct.pack("<I", len(tokens) - 1)),
            ("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", len(tokens) - 1))]
    for name, value in [("block_count", 1), ("context_length", 64), ("embedding_length", 8),
                        ("feed_forward_length", 8), ("attention.head_count", 1)]:
        keys.append(("llama." + name, 4, struct.pack("<I", value)))
    keys.append(("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)))
    with open(path, "wb") as f:
        f.write(b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)))
        for name, kind, value in keys:
            f.write(string(name) + struct.pack("<I", kind) + value)


def pre_tokenizers(binary, texts):
    separator = "<|endoftext|>"
    texts = [t for t in texts if len(t) <= 150 and separator.encode() not in t]
    merges = make_merges(texts, random.Random(20261123))
    tokens = [visible([b]) for b in range(256)]
    tokens = list(dict.fromkeys(tokens + [a + b for a, b in merges])) + [separator]
    merges = [a + " " + b for a, b in merges]
    out = {"texts": [t.hex() for t in texts], "merges": merges, "pre": []}
    for pre in PRE:
        with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
            write_vocabulary(f.name, pre, tokens, merges)
            plain, _ = encode_all(binary, f.name, separator, texts)
        out["pre"].append({"name": pre, "plain": plain})
    for i, a in enumerate(out["pre"]):  # the vocabulary must tell them apart
        for b in out["pre"][:i]:
            differ = sum(x != y for x, y in zip(a["plain"], b["plain"]))
            print("%s and %s: %d of %d texts differ" % (a["name"], b["name"], differ, len(texts)))
            assert differ > 10
    first = out["pre"][0]["plain"]
    for pre in out["pre"][1:]:
        pre["plain"] = [0 if p == q else p for p, q in zip(pre["plain"], first)]
    return out


def point_text(point):
    c = chr(point).encode("utf-8", "surrogatepass")
    return b"".join(before + c for before in (b"a", b"1", b"!", b"\xe4\xb8\x80", b"A", b"'", b"x")) + b"\n"


def every_code_point(binary):
    """A merge of each two bytes that may meet where one character ends and the other begins tells
    whether both are in one word."""
    tails, heads = range(0xc0), [*range(0x80), *range(0xc2, 0xf5)]
    pairs = [(tail, head) for head in b"x1!\xe4A'\n" for tail in tails]
    pairs += [(tail, head) for tail in b"a1!\x80A'x" for head in heads]
    pairs = list(dict.fromkeys((visible([tail]), visible([head])) for tail, head in pairs))
    tokens = [visible([b]) for b in range(256)] + [a + b for a, b in pairs]
    out = {"pre": []}
    for pre in PRE:
        with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
            write_vocabulary(f.name, pre, tokens + ["<|endoftext|>"], [a + " " + b for a, b in pairs])
            sums = []
            for first in range(0, 0x110000, 4096):
                text = b"".join(map(point_text, range(first, first + 4096)))
                ids = tokenize(binary, f.name, text, False, False)
                sums.append("%08x" % zlib.crc32(struct.pack("<%dI" % len(ids), *ids)))
        out["pre"].append({"name": pre, "crc": sums})
    return out


def main():
    binary, folder, out, *wanted = sys.argv[1:]
    texts = corpus()
    for name, content in [("tokens_pre", lambda: pre_tokenizers(binary, texts)),
                          ("tokens_points", lambda: every_code_point(binary)),
                          ("tokens_bpe", lambda: real_vocabularies(binary, folder, BPE, texts)),
                          ("tokens_llama_spm", lambda: real_vocabularies(binary, folder, SPM, texts))]:
        if wanted and name not in wanted:
            continue
        with output_file.writing(os.path.join(out, name + ".json")) as f:
            json.dump(content(), f, separators=(",", ":"))
            f.write("\n")
        print(name)


main()
