"""Evaluations of a policy while it trains."""

from services.run_folder import EvaluationRow


class StepEvaluation:
    """Evaluates some of a run's versions beside the training loop. This one evaluates none.

    Nothing here waits, but for `start` and `finish`, and nothing raises: training is worth more.
    """

    def start(self) -> list[EvaluationRow]:
        """Version 0 is served and nothing is trained: evaluate it, and wait for that."""
        return []

    def begin(self, step: int) -> None:
        """Version `step` is on its way to the servers: evaluate it, if it is one to evaluate."""

    def results(self) -> list[EvaluationRow]:
        """Lines of `evaluations.jsonl` that have come since the last call."""
        return []

    def counts(self) -> dict[str, int]:
        """For the step's line of `metrics.jsonl`."""
        return {}

    def finish(self, step: int) -> list[EvaluationRow]:
        """Wait for the evaluation that goes on, and for that of the last version, `step`."""
        return []

    def close(self) -> None:
        """Give up what is going on."""
