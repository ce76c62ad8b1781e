# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Comparing methods with statistics
#
# Is learned trust better than ignoring a source, and than believing it? Three methods, one task, and the numbers that let us say so:
# intervals over seeds, the probability of improvement, what is lost beside the better simple choice.
# `llmrl report` puts all of this on a page; here is what stands behind it.

# %%
import os

import llmrl
from llmrl.analysis.comparison import improvement_interval, regret, sample_efficiency
from llmrl.analysis.comparison_plots import Curve, learning_curves, profiles
from llmrl.analysis.statistics import area_under_curve, interquartile_interval, last_tenth, mean_interval
from llmrl.analysis.tables import about_seeds, estimate

SMALL = bool(os.environ.get("LLMRL_SMALL"))  # seconds instead of results, for tests
SIZE = ("ppo=tiny", "solver=identity", "total_steps=512", "seeds=2", "num_chunks=1", "devices=1") if SMALL else ("seeds=10",)
METHODS = ("ppo", "add", "implicit")
MEASURE = "episode_length"

# %% [markdown]
# The same source, three ways to treat it. `seeds` are vmapped: ten agents cost little more than one.

# %%
results = {}
for method in METHODS:
    aux = "none" if method == "ppo" else "harmful"
    results[method] = llmrl.train(llmrl.compose(f"aux={aux}", f"method={method}", "progress=false", *SIZE))
curves = {method: result.metrics[MEASURE] for method, result in results.items()}

# %% [markdown]
# ## Means, with their intervals
#
# The seed is the unit: episodes of one seed share a policy and say nothing about another training run. `area` is the mean over
# training (how fast), `end` the mean of its last tenth (how far). Intervals are Student's t; under five seeds there are none.

# %%
for method, values in curves.items():
    area, end = mean_interval(area_under_curve(values)), mean_interval(last_tenth(values))
    middle = interquartile_interval(last_tenth(values))
    print(f"{method:9s} area {estimate(area)}   end {estimate(end)}   interquartile mean {estimate(middle)}")
print(about_seeds(len(curves["ppo"])))

# %% [markdown]
# ## Better, how often?
#
# The probability that a seed of one method beats a seed of the other, both drawn at random. A half is what equal methods have. It says
# how often, not by how much.

# %%
for other in ("ppo", "add"):
    better = improvement_interval(last_tenth(curves["implicit"]), last_tenth(curves[other]))
    print(f"P(implicit > {other}) = {estimate(better)}")

# %% [markdown]
# ## Anything to regret?
#
# It is not known beforehand whether a source deserves belief. So the standard is the *better* of ignoring it and believing
# it. The answer is yes where the interval of the loss lies within 3 %, no where it lies beyond, and otherwise "not enough seeds".

# %%
found = regret(curves["implicit"], {name: curves[name] for name in ("ppo", "add")})
print(f"area / the better one's: {estimate(found.area)}")
for name, difference in found.differences.items():
    print(f"end - {name}'s: {estimate(difference)}")
print(f"nothing to regret: {found.words}")

# %% [markdown]
# ## Pictures

# %%
steps = results["ppo"].metrics["env_steps"][0]
learning_curves({method: Curve(steps, values) for method, values in curves.items()}, MEASURE)

# %%
profiles({method: last_tenth(values) for method, values in curves.items()}, MEASURE)

# %% [markdown]
# ## How many seeds?
#
# Take a part of the seeds and look at the interval again. If a conclusion depends on which part, there were too few.

# %%
for count in sorted({len(curves["implicit"]) // 3 or 1, len(curves["implicit"]) // 2, len(curves["implicit"])}):
    some = mean_interval(last_tenth(curves["implicit"][:count]))
    print(f"{count:2d} seeds: {estimate(some)}")

band = sample_efficiency(curves["implicit"])
print("widest band on the way:", f"{(band.high - band.low).max():.1f}", MEASURE)
