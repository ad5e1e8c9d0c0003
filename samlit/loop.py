"""The one loop that drives any task: in training, validation and inference alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from samlit.contracts import Task
from samlit.structures import Prediction, PromptSet, Result, Scene

__all__ = ["Round", "drive"]


class Round(NamedTuple):
    """A question and its answer."""

    prompts: PromptSet
    prediction: Prediction


def drive(
    task: Task,
    scene: Scene,
    answer: Callable[[PromptSet], Prediction],
    on_round: Callable[[Round], None] = lambda turn: None,
) -> Result:
    """Ask the model what a task wants to know, until the task has its result.

    Args:
        task: Yields prompts, receives predictions.
        scene: What the task sees.
        answer: The model.
        on_round: Told of every round before the task is: where pictures are taken.
    """
    rounds = task.rounds(scene)
    turn: Round | None = None
    while True:
        try:  # around the task alone: a StopIteration of the model's is an error like any other
            prompts = next(rounds) if turn is None else rounds.send(turn.prediction)
        except StopIteration as end:
            result: Result = end.value or {}
            return result
        turn = Round(prompts, answer(prompts))
        on_round(turn)
