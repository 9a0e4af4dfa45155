"""A fresh clone on a plain machine: `make demo` sets itself up, from the public index and one more.

Nothing of this machine's pip settings is used but its certificates. A loopback index that serves
the real wheel of torch stands in for PyTorch's CPU index. `make check-setup` runs it: 1 GB of
downloads, so it is no part of `make test`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

ROOT = Path(__file__).parents[2]
TORCH = "torch==2.13.0+cpu"
CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE")
DEMO = ("trainer.num_steps=2", "trainer.groups_per_step=4", "evaluation.num_images=8")
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def torch_index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An index with torch's CPU build alone, as pip finds it here."""
    folder = tmp_path_factory.mktemp("index")
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", TORCH]
    done = subprocess.run(
        [*download, "-d", str(folder / "torch")], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no wheel of {TORCH} for a stand-in of PyTorch's index: {done.stderr[-200:]}")
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))
    ) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_fresh_clone_sets_itself_up_and_trains(torch_index: str, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    plain = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
        "PIP_CONFIG_FILE": os.devnull,
        "TORCH_INDEX": torch_index,
        **{name: os.environ[name] for name in CERTIFICATES if name in os.environ},
    }
    (tmp_path / "home").mkdir()
    command = ["make", "demo", "NAME=first", f"SET={' '.join(DEMO)}"]
    done = subprocess.run(
        command, cwd=clone, env=plain, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((clone / "runs" / "first" / "summary.json").read_text())
    assert set(summary) == {"before", "after"}
    packages = next((clone / ".venv" / "lib").glob("python3.*/site-packages"))
    for left_out in ("triton", "torchaudio", "torchcodec"):
        assert not (packages / left_out).exists()
    assert not (tmp_path / "home" / ".cache" / "torch_extensions").exists()
    size = sum(file.lstat().st_size for file in (clone / ".venv").rglob("*") if file.is_file())
    assert size < 3.5 * 2**30
    shutil.rmtree(clone / ".venv")
