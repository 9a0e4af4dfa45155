"""Advisories against the pinned packages, and a list of all of them (SBOM, CycloneDX).

    build/security/bin/python deploy/security/check.py build/security

It runs in the environment of `constraints/security.txt`. Exit code 0 also where no source of
advisories is reached: that is said, and nothing is known then. An advisory that does not concern
this project stands in `deploy/security/accepted.txt`, its id first, with the reason.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ACCEPTED = Path(__file__).with_name("accepted.txt")
PINNED = ("cpu", "cuda")


def main(folder: Path) -> int:
    """Returns the exit code; `folder` gets `sbom-cpu.json` and `sbom-cuda.json`."""
    failed = False
    for name in PINNED:
        pins = ROOT / "constraints" / f"{name}.txt"
        write_sbom(pins, folder / f"sbom-{name}.json")
        lines, found = report(audit(pins), accepted(ACCEPTED.read_text()))
        print("\n".join(f"{pins.name}: {line}" for line in lines))
        failed |= found
    return int(failed)


def accepted(text: str) -> set[str]:
    """Ids of advisories, each at the start of a line; `#` starts a comment."""
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    return {words[0] for words in lines if words}


def report(dependencies: list[dict[str, Any]], ignored: set[str]) -> tuple[list[str], bool]:
    """What is to be said of an audit, and whether it fails.

    Args:
        dependencies: What `pip-audit --format json` says; none where it reached no source.
        ignored: Ids that do not count.
    """
    known = [found for found in dependencies if "skip_reason" not in found]
    if not known:
        return ["SKIPPED: no source of advisories is reached, so nothing is known"], False
    bad = [
        f"{found['name']} {found['version']}: {each['id']}, mended in "
        f"{', '.join(each['fix_versions']) or 'no version yet'}"
        for found in known
        for each in found["vulns"]
        if not ignored & {each["id"], *each["aliases"]}
    ]
    skipped = [found["name"] for found in dependencies if "skip_reason" in found]
    unknown = [f"not known to the source: {', '.join(skipped)}"] if skipped else []
    return [f"{len(known)} packages looked up, {len(bad)} advisories", *bad, *unknown], bool(bad)


def audit(pins: Path) -> list[dict[str, Any]]:
    """pip-audit's findings for each package; none where it reaches no source."""
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(pins), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):  # it ends with a traceback where it reaches nothing
        print("\n".join(done.stderr.strip().splitlines()[-1:]), file=sys.stderr)
        return []
    return found


def write_sbom(pins: Path, file: Path) -> None:
    """What is pinned, as CycloneDX JSON; the same pins give the same file."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / file.name
        options = ["--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible"]
        command = [sys.executable, "-m", "cyclonedx_py", "requirements", str(pins), *options]
        subprocess.run(
            [*command, "--output-format", "JSON", "--output-file", str(draft)],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        components = json.loads(draft.read_text())["components"]
        file.write_bytes(draft.read_bytes())
    print(f"{pins.name}: {len(components)} packages in {file}")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
