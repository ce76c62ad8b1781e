"""What is right, first choice and calibrated, on answers whose quality is known."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import llmrl

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "answer_quality.py"
SPEC = importlib.util.spec_from_file_location("answer_quality_for_tests", SCRIPT)
quality = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = quality
SPEC.loader.exec_module(quality)


def judged(said, truth):
    return quality.Judged(["here"] * len(said), np.array(said), np.array(truth), ["here"] * len(said))


def test_right_and_first_choice_count_what_the_oracle_decides():
    one = judged([[0.9, 0.8], [0.4, 0.3], [0.2, 0.7]], [[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    assert quality.right(one) == (2, 4)  # yes to all, then no to all: half of each state is right
    assert quality.best(one) == (2, 2)  # and yet the better event is the likelier one


def test_answers_as_likely_as_they_are_right_are_calibrated_and_sure_wrong_ones_are_not():
    chances = np.linspace(0.05, 0.95, 10)
    said = np.repeat(chances, 100)
    truth = np.concatenate([np.arange(100) < 100 * chance for chance in chances])
    found = quality.calibration(judged(said[:, None], truth[:, None].astype(float)))
    np.testing.assert_allclose([each.said for each in found], [each.yes for each in found], atol=0.01)
    assert [each.count for each in found] == [100] * 10
    assert quality.calibration_error(found) == pytest.approx(0.0, abs=0.01)
    sure = quality.calibration(judged([[1.0], [0.0]], [[0.0], [1.0]]))
    assert quality.calibration_error(sure) == 1.0


def test_the_handmade_answers_are_the_oracles_and_a_share_made_wrong_is_found(tmp_path, capsys):
    asked = ["aux=language", "env=cartpole", "llm=recorded", "llm.answers=handmade"]
    right, of = quality.right(quality.judge(llmrl.compose(*asked)))
    assert right == of > 1000
    wrong = quality.judge(llmrl.compose(*asked, "llm.adversarial=true"))
    assert quality.right(wrong) == (0, of) and quality.best(wrong)[0] == 0

    quality.main([str(tmp_path / "picture.png"), *asked[1:]])
    printed = capsys.readouterr().out
    assert "| stands upright | 75 | 100% " in printed and "525 of 525 states" in printed
    assert (tmp_path / "picture.png").stat().st_size > 0
