"""Words for an environment of one's own: gymnax's MountainCar, whose car has to swing out of its valley.

    export PYTHONPATH=scripts/examples
    llmrl train env=gymnax env.id=MountainCar-v0 captioner=mountain_car_captioner.captioner aux=language llm=oracle

A captioner is four things: the task in words, what a step can do, the state in words, and which of the two a step was.
``binned`` makes the state's words from components of the observation; write a ``Captioner`` by hand where that is not
enough. The oracle (optional) answers without a language model. With an endpoint, look at one answer before training:

    llmrl label env=gymnax env.id=MountainCar-v0 captioner=mountain_car_captioner.captioner llm=openai \\
        llm.model=llama3.1 llm.base_url=http://localhost:11434/v1 llm.key_variable=null dry_run=true
"""

from llmrl.envs.captions import Feature, binned, bins_of

FEATURES = {
    # Component 0 of the observation is the position in metres (the valley's bottom is at -0.52, the flag at 0.5) ...
    "place": Feature(
        0,
        (-0.9, -0.6, -0.4, 0.1),
        (
            "high on the left slope",
            "on the left slope",
            "at the bottom of the valley",
            "on the right slope",
            "high on the right slope, near the flag",
        ),
    ),
    # ... and component 1 the speed in metres per step, 0.07 at most.
    "motion": Feature(
        1,
        (-0.03, -0.003, 0.003, 0.03),
        (
            "rolls fast to the left",
            "rolls to the left",
            "stands still",
            "rolls to the right",
            "rolls fast to the right",
        ),
    ),
}


def oracle(key: int, event: int) -> float:
    """Push the way the car rolls: that is how a swing gains height."""
    motion = bins_of(key, FEATURES)["motion"]  # 0 to 4, in the order of its words
    if motion == 2:
        return 0.5
    return 0.9 if event == (0 if motion < 2 else 2) else 0.1


captioner = binned(
    "The car is {place} and {motion}.",
    FEATURES,
    events=("accelerate to the left", "let the car roll", "accelerate to the right"),
    event=lambda obs, action, next_obs: action,  # the actions are 0, 1 and 2, in this order
    context="A car with a weak engine is in a valley. It has to reach the flag on the right hill; it is too weak to "
    "drive straight up, and has to gain speed by swinging to and fro.",
)._replace(oracle=oracle)
