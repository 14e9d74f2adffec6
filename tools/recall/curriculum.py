"""Documents to learn from, and what counts in each of their tokens.

What a model ignores early it does not learn to see later. So every word of a
key and every digit of a value has to matter from the first step on: there are
documents in which a single word tells the facts apart, facts that share two
of three words with an earlier one, values that begin alike, and values with
the same digit at several places, which show whether the order is seen.
"""

from dataclasses import dataclass

import corpus
import vocabulary
from corpus import Key

# What a token means for the loss: nothing, ordinary text, the first digit of
# an answer (which needs the search), the rest of it (which continues it, up to
# the full stop: a model that does not know that four digits are enough is
# wrong too), what other tokens make likely but not certain, an answer that is
# counted from many sentences.
IGNORED, TEXT, FIRST_DIGIT, REST_OF_ANSWER, UNSURE, COUNTED = range(6)

REPETITIVE_VALUES = 0.3  # share of values that have only two digits


def _weights_of(tokens, unpredictable):
    return [IGNORED if at in unpredictable else TEXT
            for at in range(len(tokens))]


# Nobody can guess which fact or which question comes next.
_KEY_AT = {corpus.FACT.index(f"{{{field}}}") for field in Key._fields}
_QUESTION_KEY_AT = {at + 3 for at in _KEY_AT}


@dataclass(frozen=True)
class Style:
    """What a document is like; drawn anew for each."""

    slots: dict  # the words it uses
    filler: float  # share of filler sentences
    asks: float  # share of questions among the rest
    asks_from: int  # no questions before this token
    related: float  # share of facts that share two words with another
    alike: float  # share of values that begin like another one
    varied: tuple  # fields that may differ in a related fact

    @classmethod
    def draw(cls, dice, length, single_word, attributes_first):
        """`single_word` is the share of documents whose keys differ in one
        word only. `attributes_first` stresses the word that is farthest from
        the value, which is the hardest to see."""
        if dice.roll() < single_word:
            slots = cls._one_varies(dice, attributes_first)
        else:
            slots = cls._all_vary(dice)
        late = dice.roll() < 0.3
        extra = ("attribute",) if attributes_first else ()
        return cls(
            slots={**corpus.SLOTS, **slots},
            filler=0.5 * dice.roll() ** 2,
            asks=1.0 if late else 0.4 + 0.4 * dice.roll(),
            asks_from=int(0.6 * length) if late else 0,
            related=0.7 * dice.roll(),
            alike=0.6 * dice.roll(),
            varied=Key._fields + extra,
        )

    @staticmethod
    def _one_varies(dice, attributes_first):
        if attributes_first and dice.roll() < 0.6:
            varying = "attribute"
        else:
            varying = dice.pick(Key._fields)
        return {
            field: corpus.SLOTS[field]
            if field == varying
            else [dice.pick(corpus.SLOTS[field])]
            for field in Key._fields
        }

    @staticmethod
    def _all_vary(dice):
        """All words of the grammar, or random subsets of any size."""
        if dice.roll() < 0.5:
            return {}
        least = {"attribute": 1, "adjective": 2, "noun": 2}
        slots = {}
        for field, few in least.items():
            pool = corpus.SLOTS[field]
            count = round(few * (len(pool) / few) ** dice.roll())
            slots[field] = dice.sample(pool, count)
        return slots

    def keys(self):
        """How many different keys these words make."""
        count = 1
        for field in Key._fields:
            count *= len(self.slots[field])
        return count


class Lesson:
    """A document that mixes facts, filler and answered questions."""

    def __init__(self, dice, style):
        self.dice = dice
        self.style = style
        self.tokens = []
        self.weights = []
        self.facts = {}
        self.keys = []
        self.line_ended = False

    def write(self, length):
        """Returns ids (BOS first) and loss classes, `length` of each."""
        most_facts = 0.75 * self.style.keys()
        while len(self.tokens) < length:
            if self.dice.roll() < self.style.filler:
                self._filler()
            elif self._may_ask() and self.dice.roll() < self.style.asks:
                self._question()
            elif len(self.keys) < most_facts:
                self._fact()
            else:
                self._filler()
        ids = [vocabulary.BOS_ID, *vocabulary.encode(self.tokens)]
        return ids[:length], [IGNORED, *self.weights][:length]

    def _may_ask(self):
        return self.keys and len(self.tokens) >= self.style.asks_from

    def _sentence(self, tokens, weights):
        new_line = bool(self.tokens) and (
            self.line_ended or self.dice.roll() < 0.15
        )
        corpus.append_sentence(self.tokens, tokens, new_line)
        self.weights += [TEXT] * new_line + weights
        self.line_ended = False

    def _filler(self):
        tokens = corpus.filler_tokens(self.dice, self.style.slots)
        self._sentence(tokens, [TEXT] * len(tokens))

    def _fact(self):
        key = self._new_key()
        value = self._new_value()
        self.facts[key] = value
        self.keys.append(key)
        tokens = corpus.fact_tokens(key, value)
        digits = range(len(corpus.FACT), len(tokens) - 1)
        self._sentence(tokens, _weights_of(tokens, _KEY_AT | set(digits)))

    def _question(self):
        key = self.dice.pick(self.keys)
        question = corpus.question_tokens(key)
        answer = corpus.value_tokens(self.facts[key])
        self.tokens += [*question, *answer, "."]
        self.weights += _weights_of(question, _QUESTION_KEY_AT)
        self.weights += [FIRST_DIGIT]
        self.weights += [REST_OF_ANSWER] * len(answer)
        self.line_ended = True

    def _new_key(self):
        slots = self.style.slots
        while True:
            if self.keys and self.dice.roll() < self.style.related:
                field = self.dice.pick(self.style.varied)
                model = self.dice.pick(self.keys)
                key = corpus.related_key(self.dice, model, field, slots)
            else:
                key = corpus.random_key(self.dice, slots)
            if key not in self.facts:
                return key

    def _new_value(self):
        value = corpus.random_value(self.dice)
        if self.keys and self.dice.roll() < self.style.alike:
            other = self.facts[self.dice.pick(self.keys)]
            same = 1 + self.dice.below(corpus.VALUE_DIGITS - 1)
            return other[:same] + value[same:]
        if self.dice.roll() < REPETITIVE_VALUES:
            rest = (self.dice.pick(value[:2]) for _ in value[1:])
            return value[0] + "".join(rest)
        return value


def batch(dice, count, length, single_word=0.0, attributes_first=False):
    """`count` documents of `length` tokens: two lists, ids and classes."""
    ids, classes = [], []
    for _ in range(count):
        style = Style.draw(dice, length, single_word, attributes_first)
        document = Lesson(dice, style).write(length)
        ids.append(document[0])
        classes.append(document[1])
    return ids, classes
