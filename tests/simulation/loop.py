"""An event loop without a clock of its own, for many simulated processes in one real one.

Time is a number that jumps to the next timer. Every callback belongs to a `Process`, by its
context: those of a dead one never run again, as after a kill -9, and those of one that stands still
wait. A simulated thread is a greenlet that gives way where a real one would block, so nothing runs
beside anything else, and a seed decides all.
"""

import asyncio
import heapq
import itertools
import queue
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any, NoReturn, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

from services.waiting import ended

T = TypeVar("T")

PROCESS: ContextVar["Process | None"] = ContextVar("process", default=None)
_OWNER: ContextVar["LoopThread | None"] = ContextVar("owner", default=None)
_LONGEST_S = 3600.0


class Handle(list[Any]):
    """`asyncio.Handle`, as [time, number, callback, arguments, context].

    A list is made in no time, and a schedule is thousands of them, sorted by time and number.
    """

    __slots__ = ()

    def cancel(self) -> None:
        """As asyncio's."""
        self[2] = None

    def cancelled(self) -> bool:
        """As asyncio's."""
        return self[2] is None


class Process:
    """A simulated process: what its tasks, timers and threads belong to.

    Args:
        name: Its host's, as the network knows it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.held: list[Handle] = []
        """What is to run once it goes on."""
        self.context = Context()
        self.context.run(PROCESS.set, self)


class SimTask(asyncio.Task[Any]):
    """Sets of tasks are walked through by hash, which must not be an address."""

    number: int

    def __hash__(self) -> int:
        return self.number


class Loop(asyncio.BaseEventLoop):
    """Runs what is due; with nothing due, time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.num_run = 0
        self._ready: deque[Handle] = deque()
        self._timers: list[Handle] = []
        self._numbers = itertools.count()
        self.graveyard: list[asyncio.Task[Any]] = []
        """All tasks: what is collected as garbage runs its `finally`, and a process that was killed
        runs nothing."""
        self.threads: dict[greenlet, None] = {}
        """Those that have work; kept for the same reason."""
        self.create_future = partial(asyncio.Future, loop=self)
        self.set_task_factory(self._task)
        # asyncio's list of all tasks, a weak set, takes longer than what most of them do.
        asyncio.tasks._all_tasks.add = lambda _: None
        self.set_exception_handler(lambda _loop, _context: None)

    get_debug = staticmethod(bool)  # it answers False; each future asks
    """As asyncio's."""

    def time(self) -> float:
        """Simulated seconds."""
        return self.now

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """As asyncio's."""
        handle = Handle((0.0, 0, callback, args, copy_context() if context is None else context))
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def at(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: Context
    ) -> Handle:
        """Run a callback at a time, in a context as it is."""
        handle = Handle((when, next(self._numbers), callback, args, context))
        heapq.heappush(self._timers, handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Handle:
        """As asyncio's."""
        return self.at(when, callback, args, copy_context() if context is None else context)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Handle:
        """As asyncio's."""
        context = copy_context() if context is None else context
        return self.at(self.now + delay, callback, args, context)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> Any:
        """In a simulated thread."""
        done: asyncio.Future[T] = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except GreenletExit:
                raise
            except BaseException as error:  # noqa: BLE001 - handed to who waits
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(result)

        self.start_thread(work)
        return done

    def start_thread(self, work: Callable[[], object]) -> None:
        """Run a function that may block, in the present process."""
        thread = _IDLE.pop() if _IDLE else greenlet(_works, parent=_hub())
        thread.gr_context = copy_context()
        self.threads[thread] = None
        self.call_soon(thread.switch, self, work)

    def resume(self, process: Process) -> None:
        """A process that stood still goes on with what has become due."""
        process.paused = False
        self._ready.extend(process.held)
        process.held.clear()

    def close(self) -> None:
        """Nothing runs any more; what was under way ends without effect."""
        for thread in [*self.threads]:
            with suppress(BaseException):
                thread.throw()
        for task in self.graveyard:
            if not task.done():
                with suppress(BaseException):
                    task.get_coro().close()
        self.threads.clear()
        self.graveyard.clear()
        self._ready.clear()
        self._timers.clear()
        super().close()

    def _task(self, loop: Any, coro: Coroutine[Any, Any, Any], **kwargs: Any) -> SimTask:
        task = SimTask(coro, loop=loop, **kwargs)
        task.number = next(self._numbers)
        task._log_destroy_pending = False
        self.graveyard.append(task)
        if (owner := _OWNER.get()) is not None:
            owner.tasks[task] = None
            task.add_done_callback(owner.tasks.pop)
        return task

    def _run_once(self) -> None:
        """All that is ready, and then what is due next."""
        ready = self._ready
        while ready:
            handle = ready.popleft()
            _, _, callback, args, context = handle
            if callback is None:
                continue
            process = context.get(PROCESS)
            if process is not None:
                if not process.alive:
                    continue
                if process.paused:
                    process.held.append(handle)
                    continue
            self.num_run += 1
            try:  # noqa: SIM105 - a third of the time
                context.run(callback, *args)
            except (Exception, asyncio.CancelledError):  # noqa: BLE001 - asyncio would log it
                pass
            if self._stopping:
                return
        self._go_on()

    def _go_on(self) -> None:
        """Time jumps to what is due next."""
        timers, ready = self._timers, self._ready
        while timers and timers[0][2] is None:
            heapq.heappop(timers)
        if not timers:
            raise RuntimeError("nothing will ever happen again")
        self.now = now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= now:
            ready.append(heapq.heappop(timers))


_IDLE: list[greenlet] = []
"""Threads that wait for work, of this loop or the next one: a new one takes a stack."""


def _works(loop: Loop, work: Callable[[], object]) -> None:
    """A thread: one work after another."""
    me = getcurrent()
    assert me.parent is not None
    while True:
        work()
        del loop.threads[me]
        _IDLE.append(me)
        loop, work = me.parent.switch()


def _hub() -> greenlet:
    """The greenlet that runs the loop."""
    here = getcurrent()
    return here if here.parent is None else here.parent


def running_loop() -> Loop:
    """The simulation's."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise GreenletExit from None  # the simulation is over
    assert isinstance(loop, Loop)
    return loop


def in_thread() -> bool:
    """Whether this is a simulated thread, which may block."""
    return getcurrent().parent is not None


def block_on(future: "asyncio.Future[T]") -> T:
    """Wait, in a simulated thread."""
    me = getcurrent()
    if me.parent is None:
        raise RuntimeError("the event loop itself would block")
    running_loop()
    if not future.done():
        future.add_done_callback(lambda _: me.switch())
        me.parent.switch()
    return future.result()


def stand_still() -> NoReturn:
    """The present thread's process was killed in the middle of what it does."""
    me = getcurrent()
    assert me.parent is not None
    me.parent.switch()
    raise GreenletExit


def sleep(seconds: float) -> None:
    """`time.sleep` of a simulated thread."""
    done: asyncio.Future[None] = running_loop().create_future()
    running_loop().call_later(seconds, done.set_result, None)
    block_on(done)


def wait_for_future(future: "Future[Any]", timeout: float | None = None) -> bool:
    """Wait for a future of another thread; False after `timeout` seconds."""
    if future.done():
        return True
    waiting: asyncio.Future[bool] = running_loop().create_future()

    def tell(_: object = None) -> None:
        if not waiting.done():
            waiting.set_result(future.done())

    future.add_done_callback(tell)
    timer = running_loop().call_later(_LONGEST_S if timeout is None else timeout, tell)
    block_on(waiting)
    timer.cancel()
    return future.done()


class Executor:
    """A `ThreadPoolExecutor` of simulated threads."""

    def __init__(self, max_workers: int = 4, *_: Any) -> None:
        self._idle = max_workers
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def map(self, work: Callable[..., T], *args: Any) -> list[T]:
        """As the real one's."""
        return [work(*each) for each in zip(*args, strict=False)]

    def submit(self, work: Callable[..., T], *args: Any) -> "Future[T]":
        """As the real one's."""
        future: Future[T] = Future()
        self._jobs.append((future, lambda: work(*args)))
        if self._idle:
            self._idle -= 1
            running_loop().start_thread(self._work)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As the real one's."""
        jobs = list(self._jobs)
        if cancel_futures:
            self._jobs.clear()
        if wait and in_thread():
            for future, _ in jobs:
                wait_for_future(future)

    def _work(self) -> None:
        while self._jobs:
            future, job = self._jobs.popleft()
            try:
                future.set_result(job())
            except GreenletExit:
                raise
            except BaseException as error:  # noqa: BLE001 - handed to who waits
                future.set_exception(error)
        self._idle += 1


class Thread:
    """A `threading.Thread`."""

    def __init__(self, *, target: Callable[..., object], args: Any = (), **_: Any) -> None:
        self._work = lambda: target(*args)

    def start(self) -> None:
        """As the real one's."""
        running_loop().start_thread(self._work)


class BlockingQueue:
    """A `queue.Queue` between simulated threads."""

    def __init__(self, size: int = 0) -> None:
        self._size = size
        self._items: deque[Any] = deque()
        self._waiting: list[asyncio.Future[None]] = []

    def __class_getitem__(cls, _: Any) -> type["BlockingQueue"]:
        return cls

    def put(self, item: Any, timeout: float = _LONGEST_S) -> None:
        """As the real one's."""
        until = running_loop().now + timeout
        while len(self._items) >= self._size:
            if running_loop().now >= until:
                raise queue.Full
            self._wait(until)
        self._items.append(item)
        self._tell()

    def get(self) -> Any:
        """As the real one's."""
        while not self._items:
            self._wait()
        return self.get_nowait()

    def get_nowait(self) -> Any:
        """As the real one's."""
        if not self._items:
            raise queue.Empty
        item = self._items.popleft()
        self._tell()
        return item

    def _wait(self, until: float | None = None) -> None:
        """For the next item that comes or goes, or until then."""
        changed: asyncio.Future[None] = running_loop().create_future()
        self._waiting.append(changed)
        timer = None if until is None else running_loop().call_at(until, _end_wait, changed)
        block_on(changed)
        if timer is not None:
            timer.cancel()

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for changed in waiting:
            _end_wait(changed)


def _end_wait(changed: "asyncio.Future[None]") -> None:
    if not changed.done():
        changed.set_result(None)


class LoopThread:
    """`services.http.loop_thread.LoopThread`: its coroutines run on the one loop."""

    def __init__(self, _: str) -> None:
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.is_running = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """See there."""
        return self.start(work).result()

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """See there."""
        self.is_running = True
        context = copy_context()
        context.run(_OWNER.set, self)
        return context.run(asyncio.run_coroutine_threadsafe, work, running_loop())

    def close(self) -> None:
        """See there."""
        if self.is_running:
            block_on(running_loop().create_task(ended(*self.tasks)))
            self.is_running = False
