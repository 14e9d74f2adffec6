#!/usr/bin/env python3
"""Tests of the generator and of the vocabulary; they need only Python."""

import contextlib
import io
import json
import pathlib
import tempfile
import unittest

import corpus
import curriculum
import tasks
import tasks_curriculum
import vocabulary


class CorpusTest(unittest.TestCase):
    def test_same_seed_same_document(self):
        first = corpus.make_document(2000, 7, 5)
        self.assertEqual(first, corpus.make_document(2000, 7, 5))
        self.assertNotEqual(first, corpus.make_document(2000, 8, 5))

    def test_document_of_seed_1_never_changes(self):
        result = corpus.make_document(1, 1, 1)
        fact = "The volume of the dented mattress is 5670."
        self.assertEqual(result["document"], fact)

    def test_document_is_long_enough_and_not_much_longer(self):
        for least in (1, 100, 4096, 16384):
            tokens = corpus.make_document(least, 3, 1)["tokens"]
            self.assertLessEqual(least, tokens)
            self.assertLess(tokens, least + 20)

    def test_each_question_has_one_answer_in_the_document(self):
        result = corpus.make_document(8000, 5, 50)
        for question in result["questions"]:
            key = question["prompt"].split(": ")[1]
            statement = key.capitalize() + " "
            self.assertEqual(result["document"].count(statement), 1)
            full = key.capitalize() + question["answer"]
            self.assertIn(full, result["document"])

    def test_asks_for_more_facts_than_there_are_keys(self):
        ledger = corpus.Ledger.generate(400000, corpus.Dice(1), 1.0)
        self.assertEqual(len(ledger.facts), corpus.MOST_FACTS)

    def test_words_differ_between_slots(self):
        slots = [word for slot in corpus.SLOTS.values() for word in slot]
        self.assertEqual(len(slots), len(set(slots)))


class CommandTest(unittest.TestCase):
    def test_json_and_files_say_the_same(self):
        common = ["document", "--tokens", "500", "--questions", "2"]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            corpus.main([*common, "--json"])
        result = json.loads(printed.getvalue())
        with tempfile.TemporaryDirectory() as name:
            corpus.main([*common, "--out-dir", name])
            folder = pathlib.Path(name)
            stored = json.loads((folder / "document.json").read_text())
            prompt = (folder / "prompt-2.txt").read_text()
        self.assertEqual(stored, result)
        self.assertEqual(
            prompt, result["document"] + result["questions"][1]["prompt"]
        )

    def test_refuses_nonsense(self):
        for wrong in (["--tokens", "0"], ["--facts", "0"], ["--facts", "2"]):
            with self.assertRaises(SystemExit) as refusal:
                with contextlib.redirect_stderr(io.StringIO()):
                    corpus.main(["document", *wrong])
            self.assertEqual(refusal.exception.code, 2)


class VocabularyTest(unittest.TestCase):
    def test_every_word_is_one_piece(self):
        words = corpus.words()
        pieces = [corpus.SPACE + word for word in words]
        self.assertEqual(vocabulary.split(" ".join(words)), pieces)

    def test_text_splits_into_the_tokens_it_was_made_of(self):
        ledger = corpus.Ledger.generate(300, corpus.Dice(4))
        key, _ = ledger.facts[0]
        tokens = ledger.tokens + corpus.question_tokens(key)
        self.assertEqual(vocabulary.split(corpus.to_text(tokens)), tokens)

    def test_pieces_are_different(self):
        texts = [piece.text for piece in vocabulary.PIECES]
        self.assertEqual(len(texts), len(set(texts)))


class CurriculumTest(unittest.TestCase):
    def test_lessons_have_the_asked_shape(self):
        dice = corpus.Dice(1)
        for length in (128, 1024):
            ids, classes = curriculum.batch(dice, 20, length, 0.5, True)
            self.assertEqual({len(row) for row in ids}, {length})
            self.assertEqual({len(row) for row in classes}, {length})

    def test_first_digits_follow_the_key(self):
        ids, classes = curriculum.batch(corpus.Dice(2), 20, 512)
        before = vocabulary.IDS[corpus.SPACE + corpus.FACT[-1]]
        for row, kinds in zip(ids, classes, strict=True):
            for at, kind in enumerate(kinds):
                if kind == curriculum.FIRST_DIGIT:
                    self.assertEqual(row[at - 1], before)


class TasksTest(unittest.TestCase):
    def document(self, task, tokens=4000, seed=3, questions=10):
        return tasks.make_document(task, tokens, seed, questions)

    def test_text_splits_into_the_tokens_it_was_made_of(self):
        for task, mix in tasks.MIXES.items():
            journal = tasks.Journal.generate(300, corpus.Dice(4), mix)
            tokens = list(journal.tokens)
            for key, answer in journal.questions(task)[:1]:
                tokens += [*tasks.ask(key), *answer]
            self.assertEqual(vocabulary.split(corpus.to_text(tokens)), tokens)

    def test_hop_is_two_facts_of_the_document(self):
        made = self.document("hop")
        for ((prompt, answer),) in made["questions"]:
            ask = prompt.split("the ", 1)[1].removesuffix(" is")
            attribute, thing = ask.split(" with the ")
            said = f"The {thing} lay with the "
            self.assertEqual(made["document"].count(said), 1)
            other = made["document"].split(said)[1].split(".")[0]
            fact = f"The {attribute} of the {other} is{answer}"
            self.assertIn(fact, made["document"])

    def test_vote_is_what_most_sentences_say(self):
        made = self.document("vote")
        self.assertTrue(made["questions"])
        for ((prompt, answer),) in made["questions"]:
            said = "The " + prompt.split("the ", 1)[1]
            places = [
                rest.split(".")[0]
                for rest in made["document"].split(said)[1:]
            ]
            for place in {*places} - {answer}:
                self.assertGreater(
                    places.count(answer), places.count(place) + 1
                )

    def test_copy_is_in_the_document_once(self):
        made = self.document("copy")
        for ((prompt, answer),) in made["questions"]:
            cue = prompt.split("Question: t")[1]
            self.assertEqual(made["document"].count("T" + cue), 1)
            self.assertIn("T" + cue + answer, made["document"])

    def test_keys_are_four_facts(self):
        made = self.document("keys")
        for question in made["questions"]:
            self.assertEqual(len(question), 4)
            for prompt, answer in question:
                self.assertIn(
                    "The " + prompt.split("the ", 1)[1] + answer,
                    made["document"],
                )

    def test_lessons_have_the_asked_shape(self):
        for length in (128, 1024):
            ids, classes = tasks_curriculum.batch(
                corpus.Dice(1), 16, length, 0.5, True
            )
            self.assertEqual(len(ids), 16)
            self.assertEqual({len(row) for row in ids}, {length})
            self.assertEqual({len(row) for row in classes}, {length})
            ids, classes = tasks_curriculum.more_batch(
                corpus.Dice(1), 16, length, 0.5
            )
            self.assertEqual({len(row) for row in ids + classes}, {length})
            self.assertEqual(len(ids), 16)

    def test_things_that_differ_in_one_word(self):
        study = tasks_curriculum.Study(
            corpus.Dice(5), tasks.Mix(0.45, 0.45, 0.0, 0.0), 1.0
        )
        study.write(600)
        keys = [key for key, _ in study.facts]
        self.assertEqual(len({key.attribute for key in keys}), 1)
        self.assertEqual(
            min(len({key.noun for key in keys}),
                len({key.adjective for key in keys})), 1
        )
        self.assertGreater(len(study.links), 5)

    def test_votes_are_to_be_guessed(self):
        study = tasks_curriculum.Study(corpus.Dice(2), tasks.MIXES["vote"])
        ids, classes = study.write(1000)
        at = vocabulary.IDS[corpus.SPACE + "the"]
        for where, kind in enumerate(classes):
            if kind == curriculum.UNSURE:
                self.assertEqual(ids[where - 1], at)
        self.assertGreater(classes.count(curriculum.UNSURE), 50)

    def test_drill_counts_what_was_said_so_far(self):
        ids, classes, targets = tasks_curriculum.Drill(
            corpus.Dice(4), tasks.MIXES["vote"]
        ).write(1500)
        self.assertEqual([len(ids), len(classes), len(targets)], [1500] * 3)
        spelt = {number: word for word, number in vocabulary.IDS.items()}
        said, counted, other = {}, 0, 0
        for at, kind in enumerate(classes):
            words = [spelt[i].lstrip(corpus.SPACE) for i in ids[at - 5:at + 1]]
            if kind != curriculum.COUNTED:
                self.assertEqual(targets[at], ids[at])
            if words[2:5] != ["waited", "at", "the"] or kind not in (
                curriculum.COUNTED, curriculum.IGNORED,
            ):
                continue
            places = said.setdefault(tuple(words[:2]), [])
            counts = sorted(
                (places.count(place), place) for place in {*places}
            )
            if kind == curriculum.COUNTED:
                self.assertEqual(
                    spelt[targets[at]], corpus.SPACE + counts[-1][1]
                )
                counted += 1
                other += targets[at] != ids[at]
            elif len(counts) > 1:
                self.assertFalse(tasks.is_clear(counts[0][0], counts[1][0]))
            places.append(words[-1])
        self.assertGreater(counted, 50)
        self.assertGreater(other, 10)

    def test_drill_recites_passages_from_anywhere(self):
        starts = 0
        for seed in range(6):
            drill = tasks_curriculum.Drill(
                corpus.Dice(seed), tasks.MIXES["copy"]
            )
            drill.write(800)
            for words in drill.passages:
                self.assertIn(len(words), range(6, 19))
            for cue in drill.asked:
                cue = [word.lstrip(corpus.SPACE) for word in cue[1:]]
                if len(cue) != tasks.CUE_WORDS:
                    continue  # of a fact
                found = [
                    i for words in drill.passages
                    for i in range(len(words)) if words[i:i + 3] == cue
                ]
                self.assertTrue(found)
                starts += 0 not in found
        self.assertGreater(starts, 2)

    def test_drill_batches_have_the_asked_shape(self):
        parts = tasks_curriculum.drill_batch(corpus.Dice(1), 3, 256)
        self.assertEqual([len(part) for part in parts], [3, 3, 3])
        for part in parts:
            self.assertEqual({len(row) for row in part}, {256})


if __name__ == "__main__":
    unittest.main()
