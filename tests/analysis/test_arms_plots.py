"""The picture of who acted has room for its curves and begins where something is known."""

import numpy as np

from llmrl.analysis.arms_plots import who_acted


def test_each_policy_has_a_line_from_its_first_episode_on_and_a_share():
    share = np.linspace(0.0, 1.0, 6)[None].repeat(2, axis=0)
    returns = np.array([[0.0, 1.0, 0.0, 2.0, 2.0, 2.0], [0.0, 0.0, 1.0, 2.0, 2.0, 2.0]])
    run = {
        "arm_share/0": 1.0 - share,
        "arm_share/1": share,
        "arm_return/0": returns,
        "arm_return/1": np.zeros((2, 6)),
        "arm_copied": np.eye(6)[[1, 4]],
    }
    figure = who_acted({"one": (run, ("the task alone", "a")), "other": (run, ("the task alone", "a"))})
    figure.canvas.draw()
    above, _, below, _ = figure.axes
    lines = {line.get_label(): line for line in above.lines if not line.get_label().startswith("_")}
    np.testing.assert_array_equal(lines["0: the task alone"].get_ydata(), [0.5, 2.0, 2.0, 2.0])
    assert len(lines["1: a"].get_ydata()) == 6  # a policy that never earned anything has earned 0
    np.testing.assert_array_equal(below.lines[0].get_xdata(), [2, 5])
    assert all(axes.get_window_extent().width > 200 for axes in figure.axes)
