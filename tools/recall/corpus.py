#!/usr/bin/env python3
"""Generates harbour ledgers full of facts, and questions about the facts.

A ledger is plain text of any length: facts such as "The weight of the amber
crate is 4821." among sentences that reuse the same words without saying
anything that can be asked. Every word, digit and mark is one token of the
recall model, so the number of tokens is known without a tokenizer.

Needs nothing but Python: tests and the demo call it.
"""

import argparse
import json
import pathlib
import random
import sys
from collections import namedtuple

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import output_file  # noqa: E402

ATTRIBUTES = "weight tariff invoice permit seal berth volume deposit".split()

ADJECTIVES = """
    amber ashen beaded bent blank bolted bright broad carved checked chipped
    coiled cracked creased crimson curved dented domed dyed etched faded flat
    floral folded fragile frosted gilded glossy hinged indigo inlaid jagged
    knotted laced latched linen maroon matte mossy mottled narrow oaken oblong
    ornate padded patched pewter pleated ribbed rusted scented slender spotted
    square stained striped tall teal tinted twisted varnished violet waxed
    woven
""".split()

NOUNS = """
    anvil banner barrel basin basket bell bench bucket bundle cabinet canister
    carton cask chest cistern coffer crate cushion desk drum engine flask
    furnace globe hammock hamper harp jar keg ladder loom mattress mirror
    mortar net organ oven pallet parcel piano plough pump quilt rug sack saddle
    satchel scale sofa spindle stove tapestry tent trunk tub urn vase violin
    wagon wardrobe wheel winch whistle zither
""".split()

# What the slots of the filler templates may hold.
SLOTS = {
    "attribute": ATTRIBUTES,
    "adjective": ADJECTIVES,
    "noun": NOUNS,
    "person": """clerk porter captain carter cooper broker purser pilot
        watchman surveyor merchant foreman sailor cook inspector rigger
        """.split(),
    "mood": "old young weary cheerful patient stern sleepy busy".split(),
    "place": """quay pier wharf office yard gate ferry tavern slipway dock
        lighthouse jetty depot market""".split(),
    "toward": "near toward behind beside past across".split(),
    "went": "strolled hurried limped rowed climbed wandered returned".split(),
    "handled": """lifted moved measured counted cleaned opened repaired
        admired""".split(),
    "stood": "stood lay rested waited".split(),
    "ship": "barge schooner steamer trawler brig lugger".split(),
    "came": "landed sailed sank anchored".split(),
    "tool": "rope lamp hook broom pencil bottle coat flag".split(),
    "hour": "dawn noon dusk midnight".split(),
    "weather": "storm fog frost rain".split(),
}

FILLERS = [
    template.split()
    for template in (
        "the {mood} {person} {went} {toward} the {place}",
        "the {person} {handled} the {adjective} {noun} {toward} the {place}",
        "at {hour} the {person} {went} {toward} the {place}"
        " with the {mood} {person}",
        "when the {ship} {came} , the {person} {handled} the {tool}",
        "the {adjective} {noun} {stood} {toward} the {place}",
        "the {person} asked about the {attribute} of the {noun}",
        "after the {weather} , the {person} {handled} the {adjective} {tool}"
        " and {went} {toward} the {place}",
    )
]

SPACE = "\u2581"  # how SentencePiece writes the space before a word
NEWLINE = "\n"
MARKS = ".,:"
QUESTION = "question"
FACT = "the {attribute} of the {adjective} {noun} is".split()
VALUE_DIGITS = 4
ASK_LENGTH = 3 + len(FACT)  # newline, "Question", ":" and the key

# No key has two values; near the number of all keys, new ones are rare.
MOST_FACTS = len(ATTRIBUTES) * len(ADJECTIVES) * len(NOUNS) * 3 // 4

Key = namedtuple("Key", "attribute adjective noun")


class Dice:
    """Seeded choices that stay the same in every version of Python.

    Only Random.random() has a sequence that Python promises to keep.
    """

    def __init__(self, seed):
        self.roll = random.Random(seed).random

    def below(self, limit):
        return int(self.roll() * limit)

    def pick(self, items):
        return items[int(self.roll() * len(items))]

    def sample(self, items, count):
        """Returns `count` different items in random order."""
        items = list(items)
        for i in range(count):
            j = i + self.below(len(items) - i)
            items[i], items[j] = items[j], items[i]
        return items[:count]


def starters():
    """Words that begin a sentence, capitalised."""
    first = {template[0] for template in FILLERS} | {FACT[0], QUESTION}
    return sorted(word.capitalize() for word in first)


def words():
    """Every word of the grammar, in a fixed order, without marks or digits."""
    found = dict.fromkeys(starters())
    for template in [FACT, *FILLERS]:
        for word in template:
            if not word.startswith("{") and word not in MARKS:
                found[word] = None
    for slot in SLOTS.values():
        found.update(dict.fromkeys(slot))
    return list(found)


def key_tokens(key):
    """The words of a key, "the weight of the amber crate is", as tokens."""
    return [SPACE + word.format(**key._asdict()) for word in FACT]


def value_tokens(value):
    """The digits of a value as tokens; the first carries the space."""
    return [SPACE + value[0], *value[1:]]


def question_tokens(key):
    """A question on a line of its own, up to where the answer begins."""
    return [NEWLINE, QUESTION.capitalize(), ":", *key_tokens(key)]


def capitalised(tokens):
    """The tokens of a sentence with a capital first letter."""
    return [SPACE + tokens[0].lstrip(SPACE).capitalize(), *tokens[1:]]


def fact_tokens(key, value):
    """A whole sentence that states a fact."""
    return capitalised([*key_tokens(key), *value_tokens(value), "."])


def filler_tokens(dice, slots=None):
    """A sentence that nobody asks about; `slots` narrows the words."""
    slots = slots or SLOTS
    sentence = []
    for word in dice.pick(FILLERS):
        if word.startswith("{"):
            word = dice.pick(slots[word[1:-1]])
        sentence.append(word if word in MARKS else SPACE + word)
    return capitalised([*sentence, "."])


def random_key(dice, slots=None):
    slots = slots or SLOTS
    return Key(*(dice.pick(slots[field]) for field in Key._fields))


def related_key(dice, key, field, slots=None):
    """A key that shares all but one word with `key`: easily mixed up."""
    slots = slots or SLOTS
    return key._replace(**{field: dice.pick(slots[field])})


def random_value(dice):
    """Four digits; the first is not zero, as people write numbers."""
    first = str(1 + dice.below(9))
    rest = (str(dice.below(10)) for _ in range(VALUE_DIGITS - 1))
    return first + "".join(rest)


def append_sentence(tokens, sentence, new_line):
    """Appends a sentence, after a space or at the start of a line."""
    if new_line and tokens:
        tokens += [NEWLINE, sentence[0].lstrip(SPACE), *sentence[1:]]
    else:
        tokens += sentence


def to_text(tokens):
    """The text that the model's vocabulary splits into these tokens."""
    text = "".join(tokens).replace(SPACE, " ")
    return text[1:] if tokens[0].startswith(SPACE) else text


class Ledger:
    """A document as tokens, and the facts in it in order of appearance."""

    def __init__(self, tokens, facts):
        self.tokens = tokens
        self.facts = facts

    @classmethod
    def generate(cls, least_tokens, dice, fact_share=0.6):
        """A ledger of at least that many tokens.

        Half of the facts share two of their three words with an earlier one,
        so that only a reader who looks at the whole key can answer.
        """
        tokens, facts, taken, sentences_left = [], [], set(), 0
        while len(tokens) < least_tokens:
            new_line = sentences_left == 0
            if new_line:
                sentences_left = 4 + dice.below(5)
            sentences_left -= 1
            wants_fact = dice.roll() < fact_share or not facts
            if wants_fact and len(facts) < MOST_FACTS:
                key, value = cls._new_fact(dice, facts, taken)
                facts.append((key, value))
                taken.add(key)
                sentence = fact_tokens(key, value)
            else:
                sentence = filler_tokens(dice)
            append_sentence(tokens, sentence, new_line)
        return cls(tokens, facts)

    @staticmethod
    def _new_fact(dice, facts, taken):
        while True:
            if facts and dice.roll() < 0.5:
                field = dice.pick(Key._fields)
                known, _ = dice.pick(facts)
                key = related_key(dice, known, field)
            else:
                key = random_key(dice)
            if key not in taken:
                return key, random_value(dice)

    def questions(self, count, dice):
        """Yields (key, value) of facts spread evenly over the ledger."""
        for i in range(count):
            at = (i + dice.roll()) / count * len(self.facts)
            yield self.facts[int(at)]


def make_document(least_tokens, seed, questions, fact_share=0.6):
    """A document and its questions as plain data, the same for each seed."""
    dice = Dice(seed)
    ledger = Ledger.generate(least_tokens, dice, fact_share)
    asked = [
        {
            "prompt": to_text(question_tokens(key)),
            "answer": f" {value}.",
        }
        for key, value in ledger.questions(questions, dice)
    ]
    return {
        "tokens": len(ledger.tokens),
        "question_tokens": ASK_LENGTH,
        "answer_tokens": VALUE_DIGITS + 1,
        "facts": len(ledger.facts),
        "document": to_text(ledger.tokens),
        "questions": asked,
    }


def write_files(result, folder):
    """Writes the document, one prompt file per question, and all as JSON."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def write(name, text):
        output_file.write_text(folder / name, text)

    write("document.txt", result["document"])
    for number, question in enumerate(result["questions"], 1):
        write(f"prompt-{number}.txt", result["document"] + question["prompt"])
        write(f"answer-{number}.txt", question["answer"])
    write("document.json", json.dumps(result, indent=1) + "\n")


def share(text):
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return value


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    document = commands.add_parser(
        "document", help="make a document and questions about it"
    )
    document.add_argument(
        "--tokens",
        type=positive,
        default=16384,
        help="least number of tokens of the document, BOS not counted",
    )
    document.add_argument("--seed", type=int, default=1)
    document.add_argument("--questions", type=positive, default=5)
    document.add_argument(
        "--facts",
        type=share,
        default=0.6,
        help="share of the sentences that state a fact",
    )
    output = document.add_mutually_exclusive_group()
    output.add_argument(
        "--out-dir",
        help="write document.txt, prompt-N.txt (document and question),"
        " answer-N.txt and document.json there",
    )
    output.add_argument(
        "--json", action="store_true", help="print JSON instead of text"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    result = make_document(
        options.tokens, options.seed, options.questions, options.facts
    )
    if options.out_dir:
        write_files(result, options.out_dir)
    elif options.json:
        json.dump(result, sys.stdout, indent=1)
        print()
    else:
        print(result["document"])
        for question in result["questions"]:
            print(question["prompt"].strip() + question["answer"])


if __name__ == "__main__":
    main()
