"""What optax's optimisers need to serve under strict dtype promotion."""

from __future__ import annotations

import jax
import optax


def own_promotion(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimiser; optax raises floats to an integer count, for which a caller who asked for strictness need
    not answer."""

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)
