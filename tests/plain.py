"""What learns and limits weights, with the settings' defaults where a test names no value, but without what needs more
than one rollout: no whitening, no evidence, no ceiling."""

from small import with_defaults

from llmrl.settings.config import TrustConfig, WeightConfig
from llmrl.trust import blend, limits

make_weights = with_defaults(blend.make_weights, WeightConfig(), whiten=False)
weight_limits = with_defaults(limits.weight_limits, TrustConfig(), ceiling=False, gae_lambda=0.95)
