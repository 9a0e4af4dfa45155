"""A stand-in for a service: NAME FOLDER [PORT]. Its child is in another session, as vLLM's are."""

import contextlib
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Yes(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    resumes = sys.argv[3:] == ["--resume"]
    print(f"{name} says hello", flush=True)  # noqa: T201 - goes to the log
    if name == "broken":
        sys.exit("cannot find the model")
    if (folder / "stubborn").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if (folder / "loading").exists() and name == "rollout":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.argv[3:] = []  # never ready
    server = (
        HTTPServer(("127.0.0.1", int(sys.argv[3])), Yes) if sys.argv[3:] and not resumes else None
    )
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with (folder / f"{name}.pids").open("a") as file:
        file.write(f"{Path('/proc/self').resolve().name} {child.pid}\n")
    if server:
        server.serve_forever()
    if resumes:
        (folder / f"{name}.resumed").touch()
    end = folder / f"{name}.exit"
    while not end.exists():
        time.sleep(0.05)
    with contextlib.suppress(ValueError):
        sys.exit(int(end.read_text()))


if __name__ == "__main__":
    main()
