"""Advantages of elements: what a completion still earns from each of its elements on.

A completion of K elements has K + 1 places: place c is between its c-th element and the next, or
its end. A token that is written at place c can change nothing that was earned before, so its reward
is the reward to go; what is taken away is a function of the past alone, and the policy gradient
stays unbiased, with less variance.
"""

import torch
from torch import Tensor

from trainer.algorithms.advantages import EPSILON, Scale

ROUNDING = 1e-9
"""A smaller difference of sums of rewards is their rounding: answers that are equal get zeros."""


def element_relative(
    totals: Tensor,
    increments: Tensor,
    num_objects: Tensor,
    num_elements: Tensor,
    *,
    scale: Scale,
    decay: float,
) -> Tensor:
    """Rewards to go, relative to those of the group's completions at the same place.

        Q_i,c = rest_i + sum_{k > c} decay^(k - c - 1) r_i,k    rest_i = total_i - sum_k r_i,k
        A_i,c = (Q_i,c - mean_j Q_j,p(j; i, c)) / (s + EPSILON)

    p is the same place in completion j: as many objects, or all objects and as many triplets; its
    last such place where it has fewer. It is known once the c-th element is written, whatever
    follows. The mean is over all G, i too: (G - 1) / G times a baseline of the others alone, which
    is unbiased. decay is GAE's lambda (arXiv 1506.02438) over elements: below 1 it leaves later
    elements out, for less variance and a bias; `rest` stays whole, for it is about the whole text.

        group:  s = sqrt(sum_i mean_c (Q_i,c - mean)^2 / (G - 1)), of the group
        batch:  s = std(all totals of the step)
        none:   nothing is divided

    Without elements this is `advantages.group_relative`.

    Args:
        totals: [n, G] of a whole step, G at least 2.
        increments: [n, G, K] r; 0 beyond a completion's elements.
        num_objects: [n, G] elements that are objects; they come first.
        num_elements: [n, G], at most K.
        scale: Whose spread divides.
        decay: In 0..1; 1 is unbiased.

    Returns:
        [n, G, K + 1]; 0 beyond a completion's places.
    """
    to_go = reward_to_go(totals, increments, decay)
    places = torch.arange(to_go.shape[2])
    there = same_places(num_objects, num_elements, len(places))
    others = to_go.transpose(1, 2).unsqueeze(1).expand(there.shape)
    mean = others.gather(2, there).mean(dim=3)
    beyond = places > num_elements.unsqueeze(2)
    centred = to_go - mean
    centred = centred.masked_fill(beyond | (centred.abs() < ROUNDING), 0.0)
    if scale == "none":
        return centred
    if scale == "batch":
        return centred / (totals.std() + EPSILON)
    squares = (centred.square().sum(dim=2) / (num_elements + 1)).sum(dim=1)
    std = (squares / (totals.shape[1] - 1)).sqrt()
    return centred / (std + EPSILON)[:, None, None]


def reward_to_go(totals: Tensor, increments: Tensor, decay: float) -> Tensor:
    """Q of `element_relative`.

    Args:
        totals: [n, G]
        increments: [n, G, K]
        decay: In 0..1.

    Returns:
        [n, G, K + 1]
    """
    coming = torch.zeros_like(totals)
    found = [coming]
    for increment in increments.unbind(dim=2)[::-1]:
        coming = increment + decay * coming
        found.append(coming)
    rest = totals - increments.sum(dim=2)
    return rest.unsqueeze(2) + torch.stack(found[::-1], dim=2)


def same_places(num_objects: Tensor, num_elements: Tensor, num_places: int) -> Tensor:
    """The place of each completion that is where another one is.

    Args:
        num_objects: [n, G]
        num_elements: [n, G]
        num_places: C

    Returns:
        [n, G, C, G]: for completion i at place c, the place of completion j.
    """
    place = torch.arange(num_places)[:, None]
    own, other = num_objects[:, :, None, None], num_objects[:, None, None, :]
    with_triplets = other + torch.minimum(place - own, (num_elements - num_objects)[:, None, None])
    return torch.where(place > own, with_triplets, torch.minimum(place, other))
