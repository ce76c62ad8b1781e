"""Configs of earlier versions are refused by the name that a setting has now."""

import pytest

import llmrl
from llmrl.settings.config import Config
from llmrl.settings.validation import RENAMED, from_dict
from llmrl.studies.grids import points_of


def _nested(key, value):
    first, _, rest = key.partition(".")
    return {first: _nested(rest, value) if rest else value}


@pytest.mark.parametrize(
    "given",
    [
        lambda key: from_dict(_nested(key, 0)),
        lambda key: llmrl.compose(f"{key}=0"),
        lambda key: points_of(Config(), {key: [0, 1]}),
    ],
    ids=["file", "command line", "grid"],
)
@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_key_is_refused_with_its_new_name(given, old, new):
    with pytest.raises(ValueError) as error:
        given(old)
    assert str(error.value) == f"{old} is called {new} now"


@pytest.mark.parametrize("new", RENAMED.values())
def test_the_new_name_is_a_setting(new):
    value = Config()
    for part in new.split("."):
        value = getattr(value, part)
