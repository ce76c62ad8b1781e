"""Tables in words."""

import numpy as np

from llmrl.analysis.tables import told_of_certificate


def test_verdicts_of_certificates_are_counted():
    assert told_of_certificate(np.array([1.0, 0.0, 1.0, -1.0])) == "yes 2, no 1, not yet known 1"
    assert told_of_certificate([0.0]) == "not yet known 1"
