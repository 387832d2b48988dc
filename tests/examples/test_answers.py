"""Judging answers and pairing them."""

from dataclasses import replace

from examples.arithmetic.answers import Answer, judge, make_pairs
from examples.arithmetic.problems import Problem
from gemma4_jax.data.encode import dpo_encoder
from gemma4_jax.text.tokenizer import Tokenizer

PROBLEM = Problem(question="How many is 5 and 3?", start=5, steps=(("+", 3),))
OTHER = replace(PROBLEM, question="How many is 5 and 3 now?")
RIGHT = "<|channel>thought\n5 + 3 = 8\n<channel|>8"
WRONG = "<|channel>thought\n5 + 3 = 9\n<channel|>9"


def judged(*texts: str, problem: Problem = PROBLEM, stopped: bool = True) -> list[Answer]:
    return [judge(problem, text, stopped=stopped) for text in texts]


def test_right_wrong_and_well_formed() -> None:
    right, wrong, no_thought, unclosed = judged(RIGHT, WRONG, "8", "<|channel>thought\n5 + 3 = 8")
    assert (right.right, right.well_formed, right.thought) == (True, True, "5 + 3 = 8")
    assert (wrong.right, wrong.well_formed, wrong.content) == (False, True, "9")
    assert (no_thought.right, no_thought.well_formed) == (True, False)
    assert (unclosed.right, unclosed.well_formed) == (False, False)
    assert not judged(RIGHT, stopped=False)[0].well_formed
    assert Answer(**right.row()) == right


def test_pairs_join_a_right_and_a_wrong_answer_to_one_question() -> None:
    pairs = make_pairs([*judged(RIGHT, WRONG, RIGHT), *judged(RIGHT, RIGHT, problem=OTHER)])
    assert [pair["prompt"][0]["content"] for pair in pairs] == [PROBLEM.question]
    assert pairs[0]["chosen"][0]["content"] == "8"
    assert pairs[0]["rejected"][0]["content"] == "9"


def test_no_answer_is_used_twice_and_a_problem_gives_only_so_many() -> None:
    rights = [RIGHT.replace("<channel|>8", f"<channel|>{' ' * i}so 8") for i in range(3)]
    wrongs = [WRONG.replace("9", str(9 + i)) for i in range(4)]
    pairs = make_pairs(judged(*rights, *wrongs), per_problem=2)
    assert len(pairs) == 2
    rejected = [pair["rejected"][0]["reasoning"] for pair in pairs]
    assert len(set(rejected)) == 2


def test_malformed_answers_make_no_pair() -> None:
    assert make_pairs([*judged(RIGHT), *judged("9", "<|channel>thought\n", WRONG[:-1])]) == []
    assert make_pairs([*judged(RIGHT), *judged(WRONG, stopped=False)]) == []


def test_pairs_train_on_exactly_what_was_sampled() -> None:
    tokenizer = Tokenizer.builtin()
    [pair] = make_pairs(judged(RIGHT, WRONG))
    [example] = dpo_encoder(tokenizer, "small")(pair).examples
    for sequence, text in zip(example, (RIGHT, WRONG), strict=True):
        learnt = tokenizer.decode(sequence.tokens[sequence.loss_mask].tolist())
        assert learnt == f"{text}<turn|>"
