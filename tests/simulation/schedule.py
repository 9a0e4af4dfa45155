"""What befalls a run: a function of its seed."""

import random
from dataclasses import dataclass, field
from typing import Any

FAULTS_S = 9.0
"""Faults begin in this time; then the run is left alone."""
HOSTS = ("trainer", "reward", "redis")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong.

    Example: `Fault("cut", at_s=4.2, for_s=6.0, who="server0", other="redis")`
    """

    kind: str
    at_s: float
    for_s: float = 0.0
    who: str = ""
    other: str = ""
    amount: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.at_s:6.2f} s  {self.kind}"]
        parts += [self.who] if self.who else []
        parts += [f"- {self.other}"] if self.other else []
        parts += [f"for {self.for_s:.1f} s"] if self.for_s else []
        parts += [f"({self.amount:g})"] if self.amount else []
        return " ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run, and its faults.

    Example: `plan(7).faults[0].kind == "kill_server"`
    """

    seed: int
    lag: int
    is_tight: bool
    """Whether no token may be older than the lag, in place of twice that."""
    groups_per_step: int
    num_steps: int
    checkpoint_every: int
    num_servers: int
    transport: str
    dynamic_sampling: bool
    has_bad_rows: bool
    not_finite: float
    """Share of steps with a number that is not finite."""
    long_answers: float
    """Share of groups that are four times as long as others, so that versions pass meanwhile."""
    token_s: float
    """A token takes up to so long."""
    train_s: float
    """A step trains up to so long."""
    faults: tuple[Fault, ...] = field(default=())

    @property
    def undisturbed_order(self) -> bool:
        """Whether which groups each step trains follows from the data order alone."""
        plain = not (self.dynamic_sampling or self.has_bad_rows or self.not_finite)
        return self.lag == 0 and plain

    def keeping(self, places: list[int]) -> "Plan":
        """The same run with some of its faults."""
        return Plan(**{**_fields(self), "faults": tuple(self.faults[i] for i in places)})


def _fields(made: Plan) -> dict[str, Any]:
    return {name: getattr(made, name) for name in Plan.__slots__}


def plan(seed: int) -> Plan:
    """The schedule of a seed."""
    rng = random.Random(f"{seed}/plan")
    num_servers = rng.choice((1, 2, 2, 3))
    not_finite = rng.choice((0.0, 0.0, 0.0, 0.4))
    lag, long_answers = rng.choice((0, 0, 1, 1, 2)), rng.choice((0.0, 0.0, 0.2))
    made = Plan(
        seed=seed,
        lag=lag,
        is_tight=rng.random() < 0.5,
        groups_per_step=rng.choice((2, 2, 3)),
        # Two steps that fail in a row, or a group that others overtake, and what comes of it, take
        # some more.
        num_steps=rng.choice((2, 3, 3, 4)) + (2 if not_finite or (lag and long_answers) else 0),
        checkpoint_every=rng.choice((1, 2, 2, 3)),
        num_servers=num_servers,
        transport=rng.choice(("disk", "http")),
        dynamic_sampling=rng.random() < 0.25,
        has_bad_rows=rng.random() < 0.25,
        not_finite=not_finite,
        long_answers=long_answers,
        token_s=rng.choice((0.1, 0.3, 1.0)),
        train_s=rng.choice((0.3, 1.0, 3.0)),
    )
    faults = [_fault(rng, num_servers) for _ in range(rng.randrange(1, 7))]
    faults.sort(key=lambda fault: fault.at_s)
    return Plan(**{**_fields(made), "faults": tuple(faults)})


_KINDS = {
    "kill": 6,
    "kill_in_write": 5,
    "kill_in_move": 3,
    "stop": 4,
    "pause": 4,
    "zombie": 5,
    "zombie_in_start": 1,
    "kill_redis": 2,
    "empty_redis": 2,
    "refuse": 2,
    "cut": 4,
    "slow": 2,
    "lose_answers": 4,
    "repeat": 2,
    "skew": 2,
    "disk_full": 2,
    "bad_load": 5,
    "torn_upload": 1,
    "reward_fault": 2,
    "lose_images": 1,
}


def _fault(rng: random.Random, num_servers: int) -> Fault:
    """One of the kinds, with what it needs."""
    servers = [f"server{i}" for i in range(num_servers)]
    kind = rng.choices([*_KINDS], weights=[*_KINDS.values()])[0]
    at_s, server = rng.random() * FAULTS_S, rng.choice(servers)
    for_s = rng.choice((0.3, 2.0, 6.0, 12.0)) * (0.5 + rng.random())
    if kind in ("cut", "slow", "lose_answers", "repeat"):
        one, other = rng.choice(_links(servers))
        share = rng.choice((0.1, 0.4))
        amount = {"cut": 0.0, "slow": rng.choice((0.3, 3.0))}.get(kind, share)
        return Fault(kind, at_s, for_s, one, other, amount)
    if kind in ("refuse", "reward_fault"):
        who = "redis" if kind == "refuse" else "reward"
        return Fault(kind, at_s, for_s, who, rng.choice(_REASONS[kind]))
    at_once = {
        "kill": Fault(kind, at_s, who=rng.choice((*servers, "trainer", "reward"))),
        "stop": Fault(kind, at_s, who=rng.choice((*servers, "trainer"))),
        "kill_in_write": _kill_in_write(rng, at_s),
        "kill_in_move": Fault(kind, at_s, who=server, amount=rng.randrange(1, 4)),
        "empty_redis": Fault(kind, at_s, who="redis"),
        "bad_load": Fault(kind, at_s, who=server, amount=rng.choice((1, 2, 2, 4))),
        "lose_images": Fault(kind, at_s),
    }
    lasting = {
        "pause": Fault(kind, at_s, for_s, rng.choice((*servers, *HOSTS))),
        "kill_redis": Fault(kind, at_s, 0.2 + rng.random() * 3, "redis", amount=rng.random()),
        "skew": Fault(kind, at_s, for_s, "redis", amount=rng.choice((-20.0, -2.0, 2.0, 20.0))),
    }
    return (at_once | lasting).get(kind, Fault(kind, at_s, for_s, "trainer"))


def _kill_in_write(rng: random.Random, at_s: float) -> Fault:
    """At one of the trainer's next writes, or one of those of a checkpoint."""
    where = rng.choice(("", "checkpoint"))
    return Fault("kill_in_write", at_s, 0.0, "trainer", where, rng.randrange(1, 7 if where else 12))


_REASONS = {
    "refuse": ("LOADING", "READONLY", "MISCONF", "OOM"),
    "reward_fault": ("too_large", "busy", "broken", "partly"),
}


def _links(servers: list[str]) -> list[tuple[str, str]]:
    """Who talks to whom; the trainer's link to Redis carries most."""
    trainer = [("trainer", "redis"), ("trainer", "redis"), ("trainer", "reward")]
    return [(s, "redis") for s in servers] + [("trainer", s) for s in servers] + trainer
