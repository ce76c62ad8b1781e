"""What may be swept inside one program: every number that a trainer takes, and nothing else."""

import pytest

from llmrl.assembly.parts import numbers_of
from llmrl.settings.config import Config
from llmrl.settings.overrides import _dotted_keys
from llmrl.studies.grids import names_of, points_of

EVERY = list(_dotted_keys(Config()))
KEYS = [key for key in EVERY if not any(other.startswith(f"{key}.") for other in EVERY)]


def refusal(grid):
    with pytest.raises(ValueError) as error:
        points_of(Config(), grid)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_grid_is_the_product_of_its_values():
    points = points_of(Config(), {"ppo.entropy": [0, 0.01], "method.outer.learning_rate": (1e-3, 1e-2)})
    assert points == [
        {"ppo.entropy": entropy, "method.outer.learning_rate": rate} for entropy in (0.0, 0.01) for rate in (1e-3, 1e-2)
    ]
    assert all(type(value) is float for point in points for value in point.values())


def test_every_setting_may_be_swept_or_is_told_why_not():
    sweepable = {key for key in KEYS if key in numbers_of(Config())}
    assert len(sweepable) > 30
    for key in sweepable:
        assert points_of(Config(), {key: [0.5]}) == [{key: 0.5}]
    for key in set(KEYS) - sweepable:
        message = refusal({key: [1, 2]})
        assert message.startswith(f"{key} cannot differ within one program: ")
        assert f"--multirun {key}=1,2`" in message


@pytest.mark.parametrize("key", ["aux.sources.harmful", "env.params.gravity", "method.weight.initial"])
def test_what_looks_like_a_number_and_is_compiled_in(key):
    assert refusal({key: [0.1, 0.2]}).startswith(f"{key} cannot differ within one program: ")


def test_the_last_parts_of_a_key_are_enough_where_they_are_unambiguous():
    assert points_of(Config(), {"scalar_learning_rate": [0.1]}) == [{"method.outer.scalar_learning_rate": 0.1}]
    assert points_of(Config(), {"outer.learning_rate": [0.1]}) == [{"method.outer.learning_rate": 0.1}]
    message = refusal({"learning_rate": [0.1]})
    namesakes = [key for key in numbers_of(Config()) if key.endswith(".learning_rate")]
    assert len(namesakes) > 2
    assert all(key in message for key in namesakes)
    assert "scalar_learning_rate" not in message
    assert "--multirun ppo.num_envs=4,8" in refusal({"num_envs": [4, 8]})


ERRORS = [
    ({}, "needs a setting"),
    ({"ppo.entropi": [0.1]}, "nearest: 'ppo.entropy'"),
    ({"method.outer.lerning_rate": [0.1]}, "nearest: 'method.outer.learning_rate'"),
    ({"ppo": [0.1]}, "unknown setting to sweep 'ppo'"),
    ({"outer_lr": [0.1]}, "unknown setting to sweep 'outer_lr'"),
    ({"ppo.entropy": []}, "ppo.entropy is swept over a list of numbers"),
    ({"ppo.entropy": 0.1}, "ppo.entropy is swept over a list of numbers"),
    ({"ppo.entropy": "0.1"}, "ppo.entropy is swept over a list of numbers"),
    ({"ppo.entropy": [0.1, "auto"]}, "ppo.entropy is swept over a list of numbers"),
    ({"ppo.entropy": [True]}, "ppo.entropy is swept over a list of numbers"),
    ({"ppo.entropy": [0.1, 0.1]}, "different numbers"),
    ({"ppo.entropy": [0.1], "entropy": [0.2]}, "ppo.entropy is swept twice"),
]


@pytest.mark.parametrize(("grid", "message"), ERRORS)
def test_an_error_names_the_key_and_what_is_right(grid, message):
    assert message in refusal(grid)


def test_a_point_is_named_by_as_much_of_its_keys_as_tells_them_apart():
    assert names_of([{"ppo.entropy": 0.01}, {"ppo.entropy": 1e-05}]) == ["entropy-0.01", "entropy-1e-05"]
    keys = ("ppo.learning_rate", "method.outer.learning_rate", "ppo.discount")
    (name,) = names_of([dict.fromkeys(keys, 0.5)])
    assert name == "ppo.learning_rate-0.5-outer.learning_rate-0.5-discount-0.5"
