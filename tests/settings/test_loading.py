import sys

import pytest

from llmrl.settings.loading import load_function


@pytest.fixture
def hints(tmp_path, monkeypatch):
    (tmp_path / "hints_for_tests.py").write_text(
        "def push_right(state, action, next_state):\n    return action[0]\nX = 1\n"
    )
    (tmp_path / "broken_for_tests.py").write_text("raise RuntimeError('out of order')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("hints_for_tests", "broken_for_tests"):
        sys.modules.pop(name, None)


def load(path):
    return load_function(path, "aux.function", "a function")


@pytest.mark.parametrize("path", ["hints_for_tests.push_right", "hints_for_tests:push_right"])
def test_a_dotted_path_is_loaded(hints, path):
    assert load(path).__name__ == "push_right"


@pytest.mark.parametrize(
    ("path", "kind", "says"),
    [
        ("push_right", ValueError, "'push_right'.*dotted path"),
        ("hints_for_tests.", ValueError, "'hints_for_tests.'.*dotted path"),
        ("..hints.f", ValueError, "dotted path"),
        ("no_such_module_at_all.f", ImportError, "no_such_module_at_all failed.*PYTHONPATH"),
        ("broken_for_tests.f", ImportError, "broken_for_tests failed: RuntimeError: out of order"),
        ("hints_for_tests.push_rigt", ValueError, "nearest: 'push_right'"),
        ("hints_for_tests.X", TypeError, "aux.function 'hints_for_tests.X' is 1; expected a function"),
    ],
)
def test_a_wrong_path_is_explained(hints, path, kind, says):
    with pytest.raises(kind, match=says):
        load(path)
