"""Documents and questions for tasks that one look-up does not answer.

A journal is a ledger whose sentences also link things, cast votes and recite
words. What is asked about it:

  hop   The amber crate lay with the bent urn.   [and: the seal of the bent urn
        is 4821.]   Question: the seal with the amber crate is 4821.
        Two look-ups, the second for what the first one found.
  vote  The amber crate waited at the quay.   [many times, here and there]
        Question: the amber crate waited at the quay.
        The place that was said most often: attention has to lie on all of the
        sentences about the crate alike.
  keys  Four questions about facts, one after another; all have to be right.
  copy  The amber bell tent tall drum ...   Question: the amber bell tent tall
        drum ...   The words that followed the same three words.

`instinfer eval` makes the same documents (cmd/eval/text.c), for "recall" and
"keys" plain ledgers; a test compares the two, byte for byte.
"""

from collections import namedtuple

import corpus
from corpus import SLOTS, SPACE

LINK = "the {adjective} {noun} lay with the {adjective_2} {noun_2}".split()
VOTE = "the {adjective} {noun} waited at the {place}".split()
HOP = "the {attribute} with the {adjective} {noun} is".split()

KEYS = 4  # facts that one question of the task "keys" asks for
VOTERS = 6  # things that sentences say a place of
PASSAGE_WORDS = 12
CUE_WORDS = 3  # of them that a question recites

# Shares of the sentences; the rest is filler.
Mix = namedtuple("Mix", "facts links votes passages")
MIXES = {
    "hop": Mix(0.5, 0.25, 0.0, 0.0),
    "vote": Mix(0.1, 0.0, 0.8, 0.0),
    "copy": Mix(0.2, 0.0, 0.0, 0.5),
}

Voter = namedtuple("Voter", "adjective noun places lean")


def spaced(words):
    return [SPACE + word for word in words]


def filled(template, **slots):
    return spaced(word.format(**slots) for word in template)


def hop_key(attribute, adjective, noun):
    return filled(HOP, attribute=attribute, adjective=adjective, noun=noun)


def vote_key(voter):
    return filled(VOTE[:-1], adjective=voter.adjective, noun=voter.noun)


def sentence(tokens):
    return corpus.capitalised([*tokens, "."])


def is_clear(first, second):
    """Whether one of two places was said clearly more often."""
    return abs(first - second) >= max(2, (first + second) / 10)


class Journal:
    """A document as tokens, and what can be asked about it."""

    def __init__(self, dice, mix):
        self.dice = dice
        self.mix = mix
        self.tokens = []
        self.facts, self.taken = [], set()
        self.links, self.linked = [], set()
        self.voters = self._new_voters()
        self.counts = [[0, 0] for _ in self.voters]
        self.passages = []

    @classmethod
    def generate(cls, least_tokens, dice, mix):
        """A journal of at least that many tokens."""
        journal, sentences_left = cls(dice, mix), 0
        while len(journal.tokens) < least_tokens:
            new_line = sentences_left == 0
            if new_line:
                sentences_left = 4 + dice.below(5)
            sentences_left -= 1
            corpus.append_sentence(
                journal.tokens, journal.next_sentence(), new_line
            )
        return journal

    def next_sentence(self):
        at = self.dice.roll()
        for share, make in zip(
            self.mix,
            (self.fact, self.link, self.vote, self.passage),
            strict=True,
        ):
            if at < share:
                return make()
            at -= share
        return corpus.filler_tokens(self.dice)

    def fact(self):
        if len(self.facts) >= corpus.MOST_FACTS:
            return corpus.filler_tokens(self.dice)
        key, value = corpus.Ledger._new_fact(self.dice, self.facts, self.taken)
        self.facts.append((key, value))
        self.taken.add(key)
        return corpus.fact_tokens(key, value)

    def link(self):
        """Something new lies with something that a fact is known of."""
        if not self.facts or 2 * len(self.links) >= self._things():
            return corpus.filler_tokens(self.dice)
        fact = self.dice.pick(self.facts)
        while True:
            thing = self._thing()
            if thing not in self.linked:
                break
        self.linked.add(thing)
        self.links.append((thing, fact))
        return sentence(filled(
            LINK, adjective=thing[0], noun=thing[1],
            adjective_2=fact[0].adjective, noun_2=fact[0].noun,
        ))

    def vote(self):
        number = self.dice.below(len(self.voters))
        voter = self.voters[number]
        second = int(self.dice.roll() >= voter.lean)
        self.counts[number][second] += 1
        place = SPACE + voter.places[second]
        return sentence([*vote_key(voter), place])

    def passage(self):
        words = self.dice.sample(
            SLOTS["adjective"] + SLOTS["noun"], PASSAGE_WORDS
        )
        self.passages.append(words)
        return sentence(spaced(["the", *words]))

    def _things(self):
        return len(SLOTS["adjective"]) * len(SLOTS["noun"])

    def _thing(self):
        return (
            self.dice.pick(SLOTS["adjective"]), self.dice.pick(SLOTS["noun"])
        )

    def _new_voters(self):
        adjectives = self.dice.sample(SLOTS["adjective"], VOTERS)
        nouns = self.dice.sample(SLOTS["noun"], VOTERS)
        return [
            Voter(
                adjective, noun, self.dice.sample(SLOTS["place"], 2),
                0.6 + 0.15 * self.dice.roll(),
            )
            for adjective, noun in zip(adjectives, nouns, strict=True)
        ]

    # What is asked: the tokens of a key and those of its answer.

    def hop_question(self, link):
        (adjective, noun), (key, value) = link
        return (
            hop_key(key.attribute, adjective, noun),
            [*corpus.value_tokens(value), "."],
        )

    def vote_question(self, number):
        counts, voter = self.counts[number], self.voters[number]
        place = voter.places[int(counts[1] > counts[0])]
        return vote_key(voter), [SPACE + place]

    def clear_votes(self):
        """Voters of whom one place was said clearly more often."""
        return [
            number for number, counts in enumerate(self.counts)
            if is_clear(*counts)
        ]

    def copy_question(self, words):
        cue, rest = words[:CUE_WORDS], words[CUE_WORDS:]
        return spaced(["the", *cue]), [*spaced(rest), "."]

    def questions(self, task):
        """All that can be asked, in order of appearance."""
        if task == "hop":
            return [self.hop_question(link) for link in self.links]
        if task == "vote":
            return [self.vote_question(n) for n in self.clear_votes()]
        return [self.copy_question(words) for words in self.passages]


def ask(key):
    """A question on a line of its own, up to where the answer begins."""
    return [corpus.NEWLINE, corpus.QUESTION.capitalize(), ":", *key]


def make_document(task, least_tokens, seed, questions):
    """A document and questions about it, the same for each seed. A question
    is a list of (prompt, answer), one after another."""
    dice = corpus.Dice(seed)
    parts = KEYS if task == "keys" else 1
    if task in MIXES:
        journal = Journal.generate(least_tokens, dice, MIXES[task])
        tokens, asked = journal.tokens, journal.questions(task)
        count = min(questions, len(asked))
    else:
        ledger = corpus.Ledger.generate(least_tokens, dice)
        tokens, count = ledger.tokens, questions * parts
        asked = [
            (corpus.key_tokens(key), [*corpus.value_tokens(value), "."])
            for key, value in ledger.facts
        ]
    chosen = [
        asked[int((i + dice.roll()) / count * len(asked))]
        for i in range(count)
    ]
    texts = [
        (
            corpus.to_text(ask(key)),
            "".join(answer).replace(SPACE, " "),
        )
        for key, answer in chosen
    ]
    return {
        "tokens": len(tokens),
        "document": corpus.to_text(tokens),
        # Of several parts, each is far from the others.
        "questions": [texts[i::count // parts] for i in range(count // parts)],
    }
