"""What SIGTERM and SIGUSR1 do to a trainer at each moment, in a process of its own."""

import signal
import subprocess
import sys

import pytest

from tests.processes import ROOT

HEAD = """
import os, signal, sys, time
import trainer.ranks.stop as module
from trainer.ranks.stop import stop_request

def send(number):
    os.kill(os.getpid(), number)

def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
"""


def code_of(body: str) -> int:
    command = [sys.executable, "-c", HEAD + body]
    return subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_between_steps_it_ends_at_once(number: int) -> None:
    body = f"""
with stop_request() as stop:
    with stop.noted():
        pass
    send({int(number)})
    time.sleep(20)
"""
    assert code_of(body) == 75


def test_while_steps_are_done_it_is_noted_and_what_belongs_to_it_too() -> None:
    body = """
with stop_request() as stop, stop.noted():
    assert not stop.asked
    send(signal.SIGTERM)
    until(lambda: stop.asked)
    send(signal.SIGTERM)
    send(signal.SIGUSR1)
    time.sleep(0.3)
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
sys.exit(7)
"""
    assert code_of(body) == 7


def test_a_later_one_ends_it_also_where_python_does_not_run() -> None:
    body = """
import ctypes
module._SAME_S = 0.2
with stop_request() as stop, stop.noted():
    send(signal.SIGTERM)
    until(lambda: stop.asked)
    if os.fork() == 0:
        time.sleep(0.5)
        os.kill(os.getppid(), signal.SIGTERM)
        os._exit(0)
    for _ in range(30):  # a call that a signal interrupts is gone on with, as a collective does
        ctypes.CDLL(None).sleep(20)
"""
    assert code_of(body) == 128 + signal.SIGTERM


def test_a_forked_childs_signal_is_not_the_trainers() -> None:
    body = """
with stop_request() as stop, stop.noted():
    child = os.fork()
    if child == 0:
        send(signal.SIGTERM)
        time.sleep(20)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    time.sleep(0.2)
    assert not stop.asked
sys.exit(7)
"""
    assert code_of(body) == 7


@pytest.mark.parametrize("again", [False, True])
def test_with_all_kept_nothing_is_waited_for(again: bool) -> None:
    """Not even a thread for which Python would wait at its end; a second signal ends it at once."""
    body = f"""
import threading
module.END_S = 60 if {again} else 0.2
with stop_request() as stop:
    with stop.noted():
        send(signal.SIGTERM)
        until(lambda: stop.asked)
        stop.all_kept(is_done=False)
    if {again}:
        send(signal.SIGTERM)
    threading.Thread(target=time.sleep, args=(50,)).start()
"""
    assert code_of(body) == 75


def test_a_run_that_is_done_and_was_not_asked_takes_its_time() -> None:
    body = """
module.END_S = 0.1
with stop_request() as stop, stop.noted():
    stop.all_kept(is_done=True)
    time.sleep(0.5)
sys.exit(7)
"""
    assert code_of(body) == 7
