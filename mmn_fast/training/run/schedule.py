"""The official schedule: learning rates and the weight of the losses, by epoch."""

from __future__ import annotations

from mmn_fast.presets import Recipe

# Constants of the official training that no configuration file has.
_GAMMA = 0.1  # factor on the rate at each milestone
_LATE_CONTRASTIVE_WEIGHT = 0.01  # factor on the contrastive terms after `Recipe.all_losses_epochs`


def learning_rates(recipe: Recipe, epoch: int, step: int, text_rate: float, warmup_steps: int) -> tuple[float, float]:
    """The learning rates of the text encoder's parameters and of all other parameters.

    Args:
        recipe: the schedule.
        epoch: the epoch, from 1.
        step: steps done in the whole run.
        text_rate: ratio of the text encoder's rate to the other rate.
        warmup_steps: steps over which both rates grow linearly.

    Returns:
        rate of all other parameters, rate of the text encoder.
    """
    rate = recipe.learning_rate * _GAMMA ** sum(milestone < epoch for milestone in recipe.milestones)
    rate *= min(1.0, (step + 1) / (warmup_steps + 1))
    return rate, rate * text_rate


def contrastive_weight(recipe: Recipe, epoch: int) -> float:
    """Weight of the two contrastive terms relative to the iou loss."""
    return recipe.contrastive_weight * (1 if epoch <= recipe.all_losses_epochs else _LATE_CONTRASTIVE_WEIGHT)
