"""The learner over the attack's edits of `benchmarks/reward_hole.py`."""

import torch

from benchmarks.reward_hole import NAMES, Learner, edits_of


def test_what_has_an_advantage_gets_likelier_and_what_is_behind_a_stop_stays() -> None:
    learner = Learner(seed=0)
    before = learner.logits.detach().softmax(1)
    learner.update(torch.tensor([[5, 0, 3], [0, 0, 0]]), torch.tensor([1.0, -1.0]))
    change = learner.logits.detach().softmax(1) - before
    assert change[0, 5] > 0
    assert change[0, 0] < 0
    assert change[1, 0] > 0
    assert change[2].tolist() == [0.0] * len(NAMES)


def test_edits_end_at_the_first_stop_and_at_first_most_answers_stay_as_they_are() -> None:
    assert edits_of([0, 3, 3]) == ()
    assert edits_of([3, 0, 3]) == (NAMES[3],)
    assert edits_of([3, 4, 5]) == NAMES[3:6]
    choices = Learner(seed=0).choices(2000)
    assert choices.shape == (2000, 3)
    assert 0.87 < (choices[:, 0] == 0).float().mean() < 0.93
