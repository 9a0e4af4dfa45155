"""The set-up finds a CPU build of torch, or says in seconds where it looked and what to do.

A machine's own pip settings are put away, and loopback indexes stand in for PyTorch's and for the
public one. The wheel that they serve is of the right name and version, and empty.
"""

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from services.host.ports import free_port

ROOT = Path(__file__).parents[2]
WHEEL = "torch-2.13.0+cpu-py3-none-any.whl"
CODE = """
import sys
sys.path.insert(0, "deploy/install")
from install import install_cpu_torch, uv_settings
install_cpu_torch(sys.argv[1], uv_settings())
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def write_wheel(folder: Path) -> Path:
    """A wheel of torch's name and version with nothing in it."""
    folder.mkdir(parents=True, exist_ok=True)
    info = "torch-2.13.0+cpu.dist-info"
    files = {
        "torch_stand_in.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+cpu\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    records = []
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
            records.append(f"{name},sha256={digest.rstrip('=')},{len(text)}")
        wheel.writestr(f"{info}/RECORD", "\n".join([*records, f"{info}/RECORD,,", ""]))
    return folder / WHEEL


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of two indexes: `/whl/cpu` has torch, `/simple` has another package."""
    folder = tmp_path_factory.mktemp("indexes")
    write_wheel(folder / "whl" / "cpu" / "torch")
    (folder / "simple" / "six").mkdir(parents=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An empty environment; its Python."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "environment")], check=True
    )
    return tmp_path / "environment" / "bin" / "python"


def find_torch(python: Path, indexes: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    plain = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(python.parents[2]),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{indexes}/simple",
        **variables,
    }
    command = [sys.executable, "-c", CODE, str(python)]
    return subprocess.run(
        command, cwd=ROOT, env=plain, capture_output=True, text=True, check=False, timeout=120
    )


def torch_in(python: Path) -> str:
    code = "from importlib.metadata import version; print(version('torch'))"
    found = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def test_it_comes_from_the_index_that_is_named(environment: Path, indexes: str) -> None:
    done = find_torch(environment, indexes, TORCH_INDEX=f"{indexes}/whl/cpu")
    assert done.returncode == 0, done.stderr
    assert torch_in(environment) == "2.13.0+cpu"
    again = find_torch(environment, indexes, TORCH_INDEX="")  # there is one: nobody is asked
    assert (again.returncode, again.stdout) == (0, "")


def test_it_comes_from_where_pip_finds_it(environment: Path, indexes: str, tmp_path: Path) -> None:
    wheels = write_wheel(tmp_path / "wheels").parent
    done = find_torch(environment, indexes, PIP_FIND_LINKS=str(wheels), TORCH_INDEX="")
    assert done.returncode == 0, done.stderr
    assert torch_in(environment) == "2.13.0+cpu"


@pytest.mark.parametrize("index", ["dead", "silent", "empty", "without"])
def test_an_index_without_an_answer_is_named_with_what_to_do(
    index: str, environment: Path, indexes: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        address, why = {
            "dead": (f"http://127.0.0.1:{free_port()}/whl/cpu", "refused"),
            "silent": (f"http://127.0.0.1:{silent.getsockname()[1]}/whl/cpu", "timed out"),
            "empty": ("", "is empty"),
            "without": (f"{indexes}/simple", "not found"),
        }[index]
        done = find_torch(environment, indexes, TORCH_INDEX=address)
    assert done.returncode == 1
    assert torch_in(environment) == ""
    assert f"TORCH_INDEX, {address}" in done.stderr if address else "TORCH_INDEX" in done.stderr
    assert why in done.stderr
    assert "make setup TORCH_INDEX=https://mirror/whl/cpu" in done.stderr
    assert "Traceback" not in done.stderr


def test_uv_reaches_the_index_as_pip_does(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://mirror.example/simple\ncert = /etc/ca.pem\n"
        "extra-index-url = https://other.example/simple\n[install]\ntrusted-host = mirror.example\n"
    )
    code = CODE.partition("install_cpu_torch(")[0].replace("install_cpu_torch, ", "")
    command = [sys.executable, "-c", f"{code}\nimport json; print(json.dumps(uv_settings()))"]
    plain = {"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": str(config), "ALL_PROXY": "http://mine"}
    plain |= {"PIP_PROXY": "http://pips"}  # uv's own variable goes before it
    plain |= {"PIP_CERT": "/mine.pem"}  # before the file's
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    found.pop("UV_SYSTEM_CERTS", None)
    assert found == {
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INSECURE_HOST": "mirror.example",
        "SSL_CERT_FILE": "/mine.pem",
    }
