"""Two runs on the same held-out images, compared as `sgg-rl evaluate` compares two files."""

from typing import Any

from console.runs import Run
from services.errors import NotFoundError, UnavailableError
from services.settings import load_settings


def compared_rows(first: Run, second: Run) -> dict[str, Any]:
    """Rows of each protocol, as the report has them: what `second` has more than `first`.

    Raises:
        NotFoundError: A run has no answers about held-out images.
        UnavailableError: The packages of evaluation are not installed here.
        SggError: Their images are not the same, or the dataset is gone.
    """
    try:
        from evaluation.of_a_run.report import heldout_result
        from evaluation.report.changes import compared_sections
        from evaluation.scoring.compare import compare
    except ImportError as error:
        raise UnavailableError(f"{error.name} is not installed where the console runs") from error
    results = []
    for run in (first, second):
        settings = load_settings(run.files.config, environment={})
        settings = settings.changed(run={"root": run.path.parent, "name": run.path.name})
        found = heldout_result(settings, "after")
        if found is None:
            raise NotFoundError(
                f"{run.name} has no answers about held-out images after training: there is no "
                f"{run.files.heldout('after').name}"
            )
        results.append(found[0])
    return compared_sections(compare(*results))
