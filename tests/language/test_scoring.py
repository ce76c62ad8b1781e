import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrl.language.question import Question, Unanswered
from llmrl.language.scoring import (
    Completion,
    answer_begins,
    answer_token,
    make_scorer,
    probability_of_yes,
    read_completion,
    said_yes,
    unwrapped,
)

PROBABILITY = st.floats(1e-6, 1.0)


def said(*positions):
    return Completion("", tuple(tuple((token, math.log(p)) for token, p in each) for each in positions))


# --- token probability ------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["yes", " No", "maybe", "", "the"]), PROBABILITY), min_size=1, max_size=6))
def test_a_score_is_a_probability_or_there_is_none(candidates):
    try:
        score = probability_of_yes(said(candidates))
    except Unanswered as failure:
        assert failure.kind == "unparseable"
    else:
        assert 0.0 <= score <= 1.0


@settings(max_examples=100, deadline=None)
@given(PROBABILITY, PROBABILITY)
def test_yes_and_no_are_mirror_images(yes, no):
    ours = probability_of_yes(said([("yes", yes), ("no", no)])) if yes + no >= 0.05 else 0.5
    theirs = probability_of_yes(said([("no", yes), ("yes", no)])) if yes + no >= 0.05 else 0.5
    assert ours == pytest.approx(1.0 - theirs)
    if yes + no >= 0.05:
        assert ours == pytest.approx(yes / (yes + no))


def test_all_spellings_are_added_up():
    spellings = ["yes", "Yes", " YES", "\u0120yes", "\u2581Yes", "Yes.", '"yes"']
    candidates = [(token, 0.1) for token in spellings] + [(" No", 0.1), ("NO", 0.1)]
    assert probability_of_yes(said(candidates)) == pytest.approx(7 / 9)


def test_the_chosen_token_counts_once_though_it_is_listed_twice():
    assert probability_of_yes(said([("yes", 0.6), ("yes", 0.6), ("no", 0.2)])) == pytest.approx(0.75)


def test_the_side_that_is_not_listed_gets_the_most_it_can_have():
    assert probability_of_yes(said([("yes", 0.9), ("the", 0.04)])) == pytest.approx(0.9 / 0.94)
    assert probability_of_yes(said([("no", 0.9), ("the", 0.04)])) == pytest.approx(0.04 / 0.94)
    assert probability_of_yes(said([("yes", 0.9)])) == pytest.approx(0.9)
    assert probability_of_yes(said([("yes", 1.0)])) == 1.0


def test_punctuation_before_the_word_is_passed_over_and_words_are_not():
    assert probability_of_yes(said([("**", 0.9)], [("Yes", 0.75), ("No", 0.25)])) == pytest.approx(0.75)
    with pytest.raises(Unanswered, match="neither yes nor no"):
        probability_of_yes(said([("I", 0.9)], [("Yes", 0.75), ("No", 0.25)]))


@pytest.mark.parametrize(
    ("positions", "score"),
    [
        ([[("Y", 0.8), ("N", 0.2)], [("es", 0.9), ("eah", 0.1)]], 0.72 / 0.92),
        ([[("N", 0.8), ("Y", 0.2)], [("o", 1.0)]], 0.2),
        ([[(" y", 0.6), (" no", 0.3), (" Yes", 0.1)], [("e", 0.5), ("es", 0.5)], [("s", 1.0)]], 0.7),
        ([[("\u0120Ye", 0.9), ("\u0120N", 0.1)], [("s.", 1.0)]], 0.9),
        ([[("\n", 1.0)], [("Y", 0.75), ("No", 0.25)], [("es", 1.0)], [(".", 1.0)]], 0.75),
    ],
)
def test_a_word_in_pieces_has_the_probability_of_all_of_them(positions, score):
    assert probability_of_yes(said(*positions)) == pytest.approx(score)


@pytest.mark.parametrize("rest", [[], ["ou"], [" es"], [".", "es"], ["e", " s"]])
def test_pieces_that_make_another_word_are_no_answer(rest):
    with pytest.raises(Unanswered, match="neither yes nor no"):
        probability_of_yes(said([("Y", 0.9), ("N", 0.1)], *([(piece, 1.0)] for piece in rest)))


def test_a_whole_word_decides_whatever_pieces_stand_beside_it():
    alone = probability_of_yes(said([("Yes", 0.6), ("Y", 0.2), ("No", 0.1), ("N", 0.1)], [("es", 1.0)]))
    assert alone == pytest.approx(0.6 / 0.7)


@pytest.mark.parametrize(("candidates", "score"), [(["yes", "no"], 1.0), (["no", "yes"], 0.0)])
def test_an_impossible_candidate_has_probability_0(candidates, score):
    sure, never = candidates
    assert probability_of_yes(Completion("", (((sure, math.log(0.9)), (never, -math.inf)),))) == score
    assert probability_of_yes(Completion("", (((sure, math.log(0.9)), ("the", -math.inf)),))) == score


def test_positions_without_any_probability_are_passed_over():
    nothing = (("Yes", -math.inf), ("No", -math.inf))
    assert probability_of_yes(Completion("", (nothing, (("Yes", 0.0),)))) == 1.0
    with pytest.raises(Unanswered) as failure:
        probability_of_yes(Completion("", (nothing,)))
    assert failure.value.kind == "no_logprobs"


def test_without_log_probabilities_there_is_no_score():
    with pytest.raises(Unanswered) as failure:
        probability_of_yes(Completion("Yes"))
    assert failure.value.kind == "no_logprobs"


def test_other_words_that_begin_alike_are_not_counted():
    for word in ("yesterday", "nothing", "not", "n", "eyes"):
        with pytest.raises(Unanswered):
            probability_of_yes(said([(word, 0.9)]))


@pytest.mark.parametrize(
    ("text", "score"), [("Yes.", 1.0), ("**no**, because yes", 0.0), (" YES!", 1.0), ("1. No", 0.0)]
)
def test_text_that_begins_with_the_word(text, score):
    assert said_yes(text) == score


@pytest.mark.parametrize("text", ["", "perhaps", "nothing", "the answer is yes", "123"])
def test_text_that_does_not(text):
    with pytest.raises(Unanswered):
        said_yes(text)


# --- scorers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [("token_probability", "goals"), ("embedding_similarity", "yes_no"), ("embedding_similarity", "goals")],
)
def test_a_score_that_does_not_go_with_the_question_is_refused(name, kind):
    with pytest.raises(ValueError, match="does not go with"):
        make_scorer(name, kind, 0.9)


def test_no_goals_is_an_answer_too():
    question = Question(1, (0, 1), "state", ("jump", "sit"))
    score = make_scorer("string_similarity", "goals", 0.9)
    assert asyncio.run(score(Completion("- nothing"), question)) == (0.0, 0.0)
    assert asyncio.run(score(Completion("- sit"), question)) == (0.0, 1.0)


# --- what stands around an answer -------------------------------------------------------------------------------------

YES, NO = [("Yes", 0.8), ("No", 0.2)], [("no", 0.9), ("yes", 0.1)]


@pytest.mark.parametrize(
    ("tokens", "answer", "score"),
    [
        (["<think>", "No", "</think>", YES], "Yes", 0.8),
        (["```", "\n", YES, "\n", "```"], "Yes", 0.8),
        (["```", "json", "\n", NO, "\n", "```"], "no", 0.1),
        (["```", "JSON", "\n", NO, "```", "\n"], "no", 0.1),
        (['{"', "answer", '":"', YES, '"}'], "Yes", 0.8),
        (["{ ", '"yes', "_or", "_no", '" : "', NO, '" ', "}"], "no", 0.1),
        (["<think>", "No", "</think>", "\n", "```", "json", '\n{"', "yes", '": "', NO, '"}', "\n```"], "no", 0.1),
        # No answer: which of several fields it is, or where text ends and code begins, is not for us to guess.
        (['{"', "reason", '": "', "none", '", "', "answer", '": "', NO, '"}'], None, None),
        (["json", "\n", YES], None, None),
        (['{"', "answer", '": ', "true", "}"], None, None),
        (["```", "json", "\n", "{"], None, None),
    ],
)
def test_thoughts_a_fence_and_a_field_around_an_answer_change_nothing(tokens, answer, score):
    candidates = [[(each, 1.0)] if isinstance(each, str) else each for each in tokens]
    content = [
        {"token": each[0][0], "logprob": math.log(each[0][1])}
        | {"top_logprobs": [{"token": token, "logprob": math.log(p)} for token, p in each]}
        for each in candidates
    ]
    text = "".join(each[0][0] for each in candidates)
    completion = unwrapped(
        read_completion({"choices": [{"message": {"content": text}, "logprobs": {"content": content}}]})
    )
    if score is None:
        for scorer in (lambda: probability_of_yes(completion), lambda: said_yes(completion.text)):
            with pytest.raises(Unanswered, match="neither yes nor no"):
                scorer()
        return
    assert completion.text.strip() == answer and said_yes(completion.text) == round(score)
    assert probability_of_yes(completion) == pytest.approx(score)


def test_goals_in_a_fence_are_goals():
    assert unwrapped(Completion("```markdown\n- sit\n- jump\n```")).text == "- sit\n- jump"


# --- thoughts ---------------------------------------------------------------------------------------------------------

MARKS = [
    ("<think>", "</think>"),
    ("<Thinking>", "</Thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
]


@pytest.mark.parametrize(("begin", "end"), MARKS)
def test_the_answer_begins_after_the_last_thought(begin, end):
    text = f"\n{begin}yes{end}no{begin}{end}"
    assert answer_begins(f"{text} Yes") == len(text)
    assert answer_begins(f"yes{end}No") == len(f"yes{end}")
    assert answer_begins(f"{begin}yes") is None
    assert answer_begins(begin) is None


@pytest.mark.parametrize("text", ["", "Yes", "I think: yes", "x < think > y", "- use <think>"])
def test_a_text_without_thoughts_is_an_answer(text):
    assert answer_begins(text) == 0


@pytest.mark.parametrize(
    ("tokens", "answer", "thought", "index"),
    [
        ("Yes", "Yes", False, 0),
        ("No| no|Yes", "Yes", True, 2),
        ("No| no|\n\nYes", "\n\nYes", True, 2),
        ("Yes|, no|</think>|\n|Yes", "\nYes", True, 3),
        ("Yes|, no|</th|ink>Yes", "Yes", True, 3),
        ("Yes|</|think>\n\n|Yes", "\n\nYes", True, 3),
        ("Yes|</think>\n|\n|Yes", "\n\nYes", True, 2),
        ("Yes|</think>\n\nYes|.", "\n\nYes.", True, 1),
        ("Yes|</|seed|:think>|Yes", "Yes", True, 4),
        ("a|b", "Yes", True, 2),
        ("a|b", "Yes", False, 0),
    ],
)
def test_the_first_token_of_the_answer(tokens, answer, thought, index):
    assert answer_token(tokens.split("|"), answer, thought) == index
