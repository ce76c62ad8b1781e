import pytest

from llmrl.language.thinking import answer_begins, answer_token

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
