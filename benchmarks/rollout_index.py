"""What the index of a run's groups costs: a step that writes it, and a reader of a long one.

python -m benchmarks.rollout_index write                 # a step of 64 groups of 8 answers
python -m benchmarks.rollout_index read --lines 1000000  # pages, filters, orders

`write` runs steps that multiply matrices and then write their records: before the next step and as
plain lines, as it was, and beside the next step and compressed. It prints for both the seconds of a
step, those in which the step waits for its records, and their size; the CPU time of a step's
records, the index's part of them, and what it would cost to match an answer with its reference.
`read` prints for each question its seconds, the lines that were looked at, and how much memory the
process had at most.
"""

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from benchmarks.honest_graphs import (
    BOX_SPACE,
    CATEGORIES,
    HEIGHT,
    PREDICATES,
    SAME_SIZE,
    WIDTH,
    honest_groups,
    imperfect_answer,
    make_scene,
    write,
)
from reward_service.attack.honest import draw_name
from reward_service.explain.explainer import Explainer
from scene_graph.graph import SceneGraph
from services.run_folder.index import RolloutIndex, Sort
from services.run_folder.index_line import IndexLine, RolloutFilter
from services.schemas.groups import GroupReference, TrainGroup
from services.schemas.rewards import Matched, ReferenceGraph, Reward
from services.schemas.rollouts import Completion, RolloutGroup, VersionSpan
from trainer.records.index_lines import index_line
from trainer.records.rollout_files import RolloutFiles, _trained_records
from trainer.records.step_lines import StepLines

GROUPS, ANSWERS = 64, 8
STEPS = 15
MATRIX, PRODUCTS = 1024, 30
"""What a step computes in place of a model"""
MIB = 2**20


def completion(scene: SceneGraph, rng: random.Random) -> Completion:
    """An honest answer; a token has three characters."""
    text = write(imperfect_answer(scene, SAME_SIZE, rng))
    count = len(text) // 3
    return Completion(
        text=text,
        token_ids=[rng.randrange(150_000) for _ in range(count)],
        rollout_logprobs=[-rng.random() for _ in range(count)],
        finish_reason="stop",
        policy_versions=[VersionSpan(policy_version=3, start=0, end=count)],
    )


def group(position: int, rng: random.Random) -> TrainGroup:
    """A group of a scene of 20 objects and 15 triplets."""
    scene = make_scene(rng, 20, 15)
    reward = Reward(
        total=2.5,
        status="ok",
        breakdown={f"term_{i}": 0.25 for i in range(6)},
        matched=Matched(objects=3, relationships=1),
    )
    return TrainGroup(
        position=position,
        index=position,
        rollout=RolloutGroup(
            group_id=f"bench-e0-r{position}",
            attempt=0,
            incarnation=1,
            server_id="s",
            prompt_token_ids=[151_655] * 600,
            completions=[completion(scene, rng) for _ in range(ANSWERS)],
            sampling_s=1.0,
        ),
        rewards=[reward] * ANSWERS,
        advantages=[0.5] * ANSWERS,
        reference=GroupReference(
            image_size=(WIDTH, HEIGHT),
            box_space=str(BOX_SPACE),
            graph=ReferenceGraph.model_validate(scene, from_attributes=True),
        ),
    )


def measure_write(folder: Path) -> None:
    """A step with its records, written in both ways, and the part of them that is the index's."""
    rng = random.Random(0)
    groups = [group(position, rng) for position in range(GROUPS)]
    answers = [answer for each in groups for answer in each.rollout.completions]
    logprobs = [answer.rollout_logprobs for answer in answers]
    size = sum(len(answer.text) for answer in answers) / len(answers)
    print(f"{GROUPS} groups of {ANSWERS} answers of {size:.0f} characters, {STEPS} steps")
    files = RolloutFiles(folder, rank=0, keep=0)
    earlier = folder.parent / "earlier"
    earlier.mkdir()

    def write_lines(step: int) -> None:
        """As it was."""
        records = list(_trained_records(step, groups, logprobs))
        bodies = [record.model_dump_json().encode() for record in records]
        file = earlier / f"step-{step:06d}.rank0.jsonl"
        file.write_bytes(b"".join(body + b"\n" for body in bodies))
        name, offset, lines = file.name, 0, []
        for record, body in zip(records, bodies, strict=True):
            lines.append(index_line(record, name, offset, len(body)))
            offset += len(body) + 1
        StepLines(earlier / "index.rank0.jsonl").append(*lines)

    def write_beside(step: int) -> None:
        """As it is."""
        files.write(step, groups, logprobs)
        files.finish(step, [])

    before, now = steps_of(write_lines), steps_of(write_beside)
    files.close()
    sizes = [sum(f.stat().st_size for f in at.glob("step-*")) / STEPS for at in (earlier, folder)]
    print(f"{'':14} {'step, s':>9} {'waits, ms':>10} {'MiB a step':>11} {'CPU, s':>8}")
    for name, found, num_bytes in (("before", before, sizes[0]), ("beside", now, sizes[1])):
        step_s, held_s, cpu_s = found
        print(f"{name:14} {step_s:9.3f} {1000 * held_s:10.1f} {num_bytes / MIB:11.2f} {cpu_s:8.3f}")
    measure_index(folder)


def steps_of(write: Callable[[int], None]) -> tuple[float, float, float]:
    """Seconds of a step, of what it waits for its records, and of CPU, all threads counted."""
    matrix = torch.ones(MATRIX, MATRIX)
    whole, held, cpu = list[float](), list[float](), list[float]()
    for step in range(STEPS):
        began, used = time.perf_counter(), time.process_time()
        for _ in range(PRODUCTS):
            torch.mm(matrix, matrix)
        trained = time.perf_counter()
        write(step)
        held.append(time.perf_counter() - trained)
        whole.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    return median(whole), median(held), median(cpu)


def measure_index(folder: Path) -> None:
    """What the lines of a step cost."""
    index = list[float]()
    index_file = folder / "index.rank0.jsonl"
    bytes_a_line = index_file.stat().st_size / (STEPS * GROUPS)
    records = [RolloutIndex(folder.parent).read_record(line) for line in _lines(folder)]
    for _ in range(STEPS):
        began = time.process_time()
        lines = [index_line(record, "step-000000.rank0.jsonl.gz", 0, 9) for record in records]
        StepLines(folder / "again.jsonl").append(*lines)
        index.append(time.process_time() - began)
    print(f"to explain one answer: {1000 * explain_seconds():.1f} ms")
    print(f"the index of them: {1000 * median(index):.1f} ms, {bytes_a_line:.0f} bytes a line")


def explain_seconds() -> float:
    """CPU time of what is left to readers: the matches of an answer with its reference."""
    groups, explainer = honest_groups(20, ANSWERS, 20, 15), Explainer("balanced")
    began = time.process_time()
    for each in groups:
        explainer.explain(each)
    return (time.process_time() - began) / (len(groups) * ANSWERS)


def _lines(folder: Path) -> list[IndexLine]:
    return RolloutIndex(folder.parent).page(RolloutFilter(step_to=0)).lines[:GROUPS]


def make_index(file: Path, count: int) -> None:
    """An index of `count` groups, 64 a step."""
    rng, lines = random.Random(0), StepLines(file)
    for first in range(0, count, 10_000):
        lines.append(*(_line(first + i, rng) for i in range(min(10_000, count - first))))


def _line(position: int, rng: random.Random) -> IndexLine:
    mean = rng.uniform(0, 10)
    step = position // GROUPS
    return IndexLine(
        step=step,
        position=position,
        group_id=f"bench-e{position // 100_000}-r{position % 100_000}",
        file=f"step-{step:06d}.rank0.jsonl",
        offset=90_000 * (position % GROUPS),
        length=90_000,
        image=f"{position % 100_000:064x}",
        row=position % 100_000,
        state="stale" if position % 1000 == 999 else "trained",
        mean=mean,
        std=rng.random(),
        min=mean - 1,
        max=mean + 1,
        statuses={"ok": 7, "invalid_json": 1},
        predicates=[draw_name(PREDICATES, rng) for _ in range(8)],
        objects=[draw_name(CATEGORIES, rng) for _ in range(12)],
        truncated=position % 9 // 8,
        versions=[step],
    )


def measure_read(folder: Path, count: int) -> None:
    """Questions about a long index."""
    make_index(folder / "index.rank0.jsonl", count)
    size = (folder / "index.rank0.jsonl").stat().st_size
    print(f"{count:,} lines, {size / MIB:.0f} MiB; before the first question {peak():.0f} MiB")
    index, last = RolloutIndex(folder.parent), count // GROUPS
    questions: dict[str, tuple[RolloutFilter, Sort]] = {
        "the newest": (RolloutFilter(), "newest"),
        "a step in the middle": (RolloutFilter(step_from=last // 2, step_to=last // 2), "newest"),
        "with riding": (RolloutFilter(predicate="riding"), "newest"),
        "mean over 9.99": (RolloutFilter(reward_min=9.99), "newest"),
        "one group": (RolloutFilter(group_id="bench-e0-r70"), "newest"),
        "mean over 10 (none)": (RolloutFilter(reward_min=10.0), "newest"),
        "the widest of all": (RolloutFilter(), "widest"),
    }
    print(f"{'question':22} {'s':>7} {'lines':>9} {'found':>6} {'peak MiB':>9}")
    for name, (wanted, sort) in questions.items():
        began = time.perf_counter()
        page = index.page(wanted, sort)
        taken = time.perf_counter() - began
        print(f"{name:22} {taken:7.3f} {page.scanned:9,} {len(page.lines):6} {peak():9.0f}")


def peak() -> float:
    """MiB of this process's memory at most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run what the command names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("write", "read"))
    parser.add_argument("--lines", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as run:
        folder = Path(run) / "rollouts"
        folder.mkdir()
        if options.what == "write":
            measure_write(folder)
        else:
            measure_read(folder, options.lines)


if __name__ == "__main__":
    main()
