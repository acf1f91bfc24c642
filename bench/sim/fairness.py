"""How evenly tenants were served, from the stories of a run."""

from __future__ import annotations

from collections.abc import Sequence

from bench.sim.experiments import Experiment
from bench.sim.outcome import jain
from bench.sim.request import Story

OUTPUT_WEIGHT = 2.0  # against prompt tokens, as the virtual token counters have it
WARM_UP, WINDOW_S = 0.2, 60.0  # of the arrivals' time; what follows is cut into windows of about so long


def split_neighbours(stories: Sequence[Story]) -> dict[str, list[Story]]:
    """The heavy tenant, and the light ones, where there are any."""
    heavy = [story for story in stories if story.request.tenant == "heavy"]
    light = [story for story in stories if story.request.tenant.startswith("light")]
    return {name: part for name, part in (("heavy", heavy), ("light", light)) if _ended(part)}


def fairness_figures(_: Experiment, stories: Sequence[Story]) -> dict[str, float]:
    """Jain's index over tenants, the least of the windows, and tokens a second while requests arrive."""
    last_s = max(story.request.arrival_s for story in stories)
    begin_s = WARM_UP * last_s
    count = max(1, round((last_s - begin_s) / WINDOW_S))
    width_s = (last_s - begin_s) / count
    windows = [(begin_s + each * width_s, begin_s + (each + 1) * width_s) for each in range(count)]
    indices = [jain(list(_by_tenant(stories, *window).values())) for window in windows]
    return {
        "jain": min(indices),
        "busy_rate": sum(_by_tenant(stories, begin_s, last_s).values()) / (last_s - begin_s),
    }


def _by_tenant(stories: Sequence[Story], from_s: float, to_s: float) -> dict[str, float]:
    amounts: dict[str, float] = dict.fromkeys((story.request.tenant for story in stories), 0.0)
    for story in stories:
        amounts[story.request.tenant] += _served(story, from_s, to_s)
    return amounts


def _served(story: Story, from_s: float, to_s: float) -> float:
    """Weighted tokens within a time: the prompt with the first token, the output evenly from there."""
    if story.first_s is None or story.end_s is None:
        return 0.0
    prompt = story.request.prompt_tokens - story.cached_tokens if from_s <= story.first_s < to_s else 0
    length_s = max(story.end_s - story.first_s, 1e-9)
    within_s = max(0.0, min(story.end_s, to_s) - max(story.first_s, from_s))
    return prompt + OUTPUT_WEIGHT * story.output_tokens * within_s / length_s


def _ended(stories: Sequence[Story]) -> bool:
    return any(story.end_s is not None for story in stories)
