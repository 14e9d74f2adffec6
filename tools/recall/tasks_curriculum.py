"""Journals to learn from: what tasks.py asks, asked on the way.

As in curriculum.py, every word has to matter from the first step on: the words
of a journal come from sets of random sizes. The first look-up of a hop is also
asked for by itself, and every vote is a thing to predict, from the votes
before it."""

import corpus
import curriculum
import tasks
import vocabulary
from corpus import SLOTS, Key
from curriculum import (
    COUNTED, FIRST_DIGIT, IGNORED, REST_OF_ANSWER, TEXT, UNSURE,
)

# Sentences of the lessons: facts, links, votes, passages; the rest is filler.
MIXES = (
    tasks.Mix(0.5, 0.35, 0.0, 0.0),
    tasks.Mix(0.5, 0.25, 0.0, 0.0),
    tasks.Mix(0.1, 0.0, 0.8, 0.0),
    tasks.Mix(0.1, 0.0, 0.1, 0.6),
    tasks.Mix(0.3, 0.2, 0.2, 0.1),
)
# Once the tasks are known: more of what takes two look-ups.
MORE_MIXES = (
    tasks.Mix(0.45, 0.45, 0.0, 0.0),
    tasks.Mix(0.45, 0.45, 0.0, 0.0),
    tasks.Mix(0.5, 0.25, 0.0, 0.0),
    tasks.Mix(0.1, 0.0, 0.8, 0.0),
    tasks.Mix(0.1, 0.0, 0.1, 0.6),
)
# Copying and counting alone.
DRILL_MIXES = (
    tasks.Mix(0.2, 0.0, 0.0, 0.5),
    tasks.Mix(0.1, 0.0, 0.8, 0.0),
    tasks.Mix(0.1, 0.0, 0.3, 0.4),
)
LEAST_PASSAGE_WORDS, MOST_PASSAGE_WORDS = 6, 18


class Study(tasks.Journal):
    """A journal with answered questions."""

    def __init__(self, dice, mix, single_word=0.0):
        self.slots = self._narrow(dice)
        if single_word and dice.roll() < single_word:
            self.slots = self._one_varies(dice)
        super().__init__(dice, mix)
        self.weights = []
        self.asks = 0.3 + 0.5 * dice.roll()
        self.line_ended = False
        self.asked = set()

    @staticmethod
    def _narrow(dice):
        slots = dict(SLOTS)
        if dice.roll() < 0.6:
            for field, few in (("adjective", 6), ("noun", 6)):
                pool = SLOTS[field]
                count = round(few * (len(pool) / few) ** dice.roll())
                slots[field] = dice.sample(pool, count)
        return slots

    @staticmethod
    def _one_varies(dice):
        """Things differ in one word, and numbers are of one attribute."""
        same = dice.pick(("adjective", "noun"))
        return {
            **SLOTS,
            same: [dice.pick(SLOTS[same])],
            "attribute": [dice.pick(SLOTS["attribute"])],
        }

    def write(self, length):
        """Returns ids (BOS first) and loss classes, `length` of each."""
        while len(self.tokens) < length:
            questions = self._askable()
            asks = questions and self.dice.roll() < self.asks
            if not asks or not self._ask(*self.dice.pick(questions)()):
                self._append(self.next_sentence())
        ids = [vocabulary.BOS_ID, *vocabulary.encode(self.tokens)]
        return ids[:length], [IGNORED, *self.weights][:length]

    def _append(self, tokens):
        new_line = bool(self.tokens) and (
            self.line_ended or self.dice.roll() < 0.15
        )
        corpus.append_sentence(self.tokens, tokens, new_line)
        self.weights += [TEXT] * new_line + self._classes(tokens)
        self.line_ended = False

    def _classes(self, tokens):
        """Nobody can guess the words of the grammar's slots; a vote can be
        guessed from others."""
        spoken = [token.lstrip(corpus.SPACE) for token in tokens]
        chosen = {*SLOTS["adjective"], *SLOTS["noun"], *SLOTS["attribute"]}
        classes = [
            IGNORED if word in chosen or word.isdigit() else TEXT
            for word in spoken
        ]
        if "waited" in spoken and "at" in spoken:
            classes[-2] = UNSURE
        return classes

    def _askable(self):
        asked = []
        if self.links:
            asked += [self._ask_hop, self._ask_hop, self._ask_link]
        if self.facts:
            asked.append(self._ask_fact)
        if self.passages:
            asked += [self._ask_copy] * 2
        if self.clear_votes():
            asked.append(self._ask_vote)
        return asked

    def _ask_hop(self):
        # New links more often: they are rarely asked otherwise.
        return self.hop_question(self.dice.pick(self.links))

    def _ask_link(self):
        thing, (key, _) = self.dice.pick(self.links)
        words = tasks.filled(
            tasks.LINK, adjective=thing[0], noun=thing[1],
            adjective_2=key.adjective, noun_2=key.noun,
        )
        return words[:-2], [*words[-2:], "."]

    def _ask_fact(self):
        key, value = self.dice.pick(self.facts)
        return corpus.key_tokens(key), [*corpus.value_tokens(value), "."]

    def _ask_copy(self):
        return self.copy_question(self.dice.pick(self.passages))

    def _ask_vote(self):
        return self.vote_question(self.dice.pick(self.clear_votes()))

    def _ask(self, key, answer):
        """Once: the answer to an earlier question is easier to find."""
        if tuple(key) in self.asked:
            return False
        self.asked.add(tuple(key))
        question = tasks.ask(key)
        self.tokens += [*question, *answer]
        self.weights += [TEXT] * 3 + [IGNORED] * len(key)
        self.weights += [FIRST_DIGIT]
        self.weights += [REST_OF_ANSWER] * (len(answer) - 1)
        self.line_ended = True
        return True

    def fact(self):
        most = 0.75 * len(self.slots["attribute"]) * self._things()
        if len(self.facts) >= most:
            return corpus.filler_tokens(self.dice, self.slots)
        while True:
            if self.facts and self.dice.roll() < 0.5:
                field = self.dice.pick(Key._fields)
                known, _ = self.dice.pick(self.facts)
                key = corpus.related_key(self.dice, known, field, self.slots)
            else:
                key = corpus.random_key(self.dice, self.slots)
            if key not in self.taken:
                break
        value = corpus.random_value(self.dice)
        if self.dice.roll() < curriculum.REPETITIVE_VALUES:
            rest = (self.dice.pick(value[:2]) for _ in value[1:])
            value = value[0] + "".join(rest)
        self.facts.append((key, value))
        self.taken.add(key)
        return corpus.fact_tokens(key, value)

    def _things(self):
        return len(self.slots["adjective"]) * len(self.slots["noun"])

    def _thing(self):
        return (
            self.dice.pick(self.slots["adjective"]),
            self.dice.pick(self.slots["noun"]),
        )

    def _new_voters(self):
        count = 1 + self.dice.below(tasks.VOTERS)
        voters = super()._new_voters()[:count]
        if self.dice.roll() < 0.5:  # the same word is not enough
            return voters
        names = [
            (self.dice.pick(self.slots["adjective"]),
             self.dice.pick(self.slots["noun"]))
            for _ in voters
        ]
        if len(set(names)) < len(names):
            return voters
        return [
            voter._replace(adjective=adjective, noun=noun)
            for voter, (adjective, noun) in zip(voters, names, strict=True)
        ]


def batch(dice, count, length, single_word=0.0, attributes_first=False):
    """`count` documents of `length` tokens, some of them plain ledgers: two
    lists, ids and classes."""
    plain = max(1, count * 3 // 8) if count > 1 else int(dice.roll() < 0.375)
    return _batch(
        dice, count, length, plain, MIXES, single_word, attributes_first
    )


def more_batch(dice, count, length, single_word=0.0, attributes_first=False):
    """The same, for a model that has learnt from those of `batch`."""
    plain = max(1, count // 4) if count > 1 else int(dice.roll() < 0.25)
    return _batch(
        dice, count, length, plain, MORE_MIXES, single_word, False, single_word
    )


def _batch(
    dice, count, length, plain, mixes, single_word, attributes_first, single=0.0
):
    ids, classes = curriculum.batch(
        dice, plain, length, single_word, attributes_first
    ) if plain else ([], [])
    for _ in range(count - plain):
        study = Study(dice, dice.pick(mixes), single)
        document = study.write(length)
        ids.append(document[0])
        classes.append(document[1])
    return ids, classes


class Drill(Study):
    """A journal that drills copying and counting alone. Every vote is asked
    about: what is to be predicted there is the place that was said most often
    so far, not the one that is said. Passages are of all lengths, of few words
    or many, and recited from anywhere."""

    def __init__(self, dice, mix):
        super().__init__(dice, mix)
        self.targets = {}
        words = SLOTS["adjective"] + SLOTS["noun"]
        few = MOST_PASSAGE_WORDS
        if dice.roll() < 0.6:
            words = dice.sample(
                words, round(few * (len(words) / few) ** dice.roll())
            )
        self.words = words

    def write(self, length):
        """Also returns what is to be predicted, `length` tokens."""
        ids, classes = super().write(length)
        targets = list(ids)
        for at, token in self.targets.items():
            if at + 1 < length:
                targets[at + 1] = vocabulary.encode([token])[0]
        return ids, classes, targets

    def vote(self):
        before = [list(count) for count in self.counts]
        tokens = super().vote()
        (number,) = [
            n for n, count in enumerate(self.counts) if count != before[n]
        ]
        first, second = before[number]
        self.counted = None
        if tasks.is_clear(first, second):
            place = self.voters[number].places[int(second > first)]
            self.counted = corpus.SPACE + place
        return tokens

    def _classes(self, tokens):
        classes = super()._classes(tokens)
        if UNSURE in classes:
            at = classes.index(UNSURE)
            classes[at] = IGNORED
            if self.counted:
                classes[at] = COUNTED
                first = len(self.tokens) - len(tokens)
                self.targets[first + at] = self.counted
        return classes

    def passage(self):
        count = LEAST_PASSAGE_WORDS + self.dice.below(
            MOST_PASSAGE_WORDS - LEAST_PASSAGE_WORDS + 1
        )
        words = self.dice.sample(self.words, count)
        self.passages.append(words)
        return sentence_of(words)

    def _ask_copy(self):
        words = self.dice.pick(self.passages)
        if self.dice.roll() < 0.3:
            words = words[self.dice.below(len(words) - tasks.CUE_WORDS):]
        return self.copy_question(words)

    def _askable(self):
        asked = [self._ask_copy] * 3 if self.passages else []
        asked += [self._ask_vote] * bool(self.clear_votes())
        return asked + [self._ask_fact] * bool(self.facts)


def sentence_of(words):
    return tasks.sentence(tasks.spaced(["the", *words]))


def drill_batch(dice, count, length, single_word=0.0, attributes_first=False):
    """`count` documents of Drill: ids, classes and what is to be predicted."""
    documents = [
        Drill(dice, dice.pick(DRILL_MIXES)).write(length) for _ in range(count)
    ]
    return tuple(list(part) for part in zip(*documents, strict=True))
