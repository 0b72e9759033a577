"""Several processes as one run: how they find each other, what the first one tells the others, and whether all of them
are still there.

JAX's own runtime connects them (`jax.distributed`); its key-value store carries what is said here. The first process
owns the run's directory; every process sees it, on a shared file system. A process that dies, hangs or fails ends the
others within a minute, each with a sentence that names it. (When the first is killed the rest abort at once, with JAX's
own words: it is where they meet.)
"""

import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from lsp import Exit, LspError, Stopped, directory, interrupt
from lsp.launch import Launch

BEAT = 1.0  # seconds between two signs of life
SILENT = 30.0  # seconds without one after which a process counts as lost
ASSEMBLE = 300  # seconds for all processes to come


@contextmanager
def joined(launch: Launch | None, fail: Callable[[LspError], None]) -> Iterator[None]:
    """Connects this process with the others for the length of a command; does nothing when it is alone.

    `fail` shows an error to the user: it is called before the process ends because another one did. Raises LspError
    (exit 5) when they do not come together.
    """
    if launch is None:
        yield
        return
    _keep_stdout()
    try:
        # Left to itself JAX aborts every process when one is lost, where ours end with a sentence, and takes SIGTERM.
        jax.config.update("jax_enable_recoverability", True)
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            launch.coordinator or None, launch.count, launch.index, initialization_timeout=ASSEMBLE
        )
    except (RuntimeError, ValueError) as error:
        place = f" at {launch.coordinator}" if launch.coordinator else ""
        raise LspError(
            f"Process {launch.index} did not meet the other {launch.count - 1}{place} ({str(error).splitlines()[0]}).",
            hint="Start all of them within five minutes, with the same --coordinator HOST:PORT of the first one.",
            code=Exit.MACHINE,
        ) from None
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(launch, over, fail), daemon=True)
    watch.start()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, LspError | Stopped | KeyboardInterrupt):
            # Most likely a collective whose other end is gone: the watch will know which, and ends this process.
            time.sleep(SILENT + 3 * BEAT if "loo" in str(error) or "oordination" in str(error) else 0)
        code = error.code if isinstance(error, LspError | Stopped) else Exit.BUG
        _set(f"end/{launch.index}", f"{int(code)} {error}")
        over.set()
        time.sleep(3 * BEAT if launch.index == 0 else 0)  # with the first process goes what it said
        raise
    meet()
    over.set()
    if launch.index == 0:  # with this process goes the place where they meet: the others leave first
        for index in range(1, launch.count):
            hear(f"left/{index}")
        time.sleep(BEAT)
    _set(f"left/{launch.index}", "")
    jax.distributed.shutdown()


def alone() -> bool:
    """Whether there is no other process."""
    return jax.process_count() == 1


def first() -> bool:
    """Whether this process owns the directory and speaks for all."""
    return jax.process_index() == 0


@contextmanager
def claim(out: Any, **asked: Any) -> Iterator[directory.Run]:
    """`directory.claim` by the first process; the others follow it."""
    if first():
        with directory.claim(out, **asked) as held:
            tell("claim", str(held.complete))
            yield held
    else:
        yield directory.Run(out, asked["command"], asked["inputs"], complete=hear("claim") == "True")


_turns = itertools.count()


def first_alone(work: Callable[[], object]) -> None:
    """The first process does it; the others wait until it is done. Every process must come here in the same order."""
    turn = f"turn/{next(_turns)}"
    if first():
        work()
        tell(turn, "done")
    else:
        hear(turn)


_meetings = itertools.count()


def meet() -> None:
    """Waits until every process is here, each for the same time; the watch ends the wait for one that is lost."""
    if not alone():
        _client().wait_at_barrier(_key(f"meeting/{next(_meetings)}"), 24 * 3600 * 1000)


def tell(name: str, value: str) -> None:
    """Says something that `hear` gets, once."""
    if not alone():
        _set(name, value)


def hear(name: str) -> str:
    """Waits for what a process says under this name. The watch ends the wait if it never will."""
    while True:
        try:
            return str(_client().key_value_try_get(_key(name)))
        except Exception as error:
            if "NOT_FOUND" not in str(error):
                raise
        interrupt.check()
        time.sleep(0.1)


def _watch(launch: Launch, over: threading.Event, fail: Callable[[LspError], None]) -> None:
    """Gives signs of life and looks for those of the others."""
    client, me = _client(), f"{socket.gethostname()} process {os.getpid()}"
    seen = {index: ("", time.monotonic()) for index in range(launch.count)}
    names: dict[int, str] = {}
    for beat in itertools.count():
        try:
            client.key_value_set(_key(f"beat/{launch.index}"), f"{beat} {me}", allow_overwrite=True)
            said = {key: value for key, value in client.key_value_dir_get(_key(""))}
        except Exception:
            if not over.is_set():
                _leave(
                    fail, f"Process 0, the coordinator{' at ' * bool(launch.coordinator)}{launch.coordinator}, is gone."
                )
            return
        now = time.monotonic()
        for index, (last, when) in seen.items():
            if ended := said.get(_key(f"end/{index}")):
                code, _, message = ended.partition(" ")
                if index != launch.index and not over.is_set():
                    _leave(fail, f"Process {index} ended: {message}", Exit.of(int(code)))
            beat_now = said.get(_key(f"beat/{index}"), "")
            names[index] = beat_now.partition(" ")[2] or names.get(index, "")
            if beat_now != last:
                seen[index] = (beat_now, now)
            elif now - when > SILENT and not over.is_set():
                where = f" ({names[index]})" if names[index] else ""
                _leave(fail, f"Process {index} of {launch.count}{where} has not answered for {now - when:.0f} s.")
        if over.wait(BEAT):
            return


def _leave(fail: Callable[[LspError], None], message: str, code: Exit = Exit.MACHINE) -> None:
    """Ends this process from the watch's thread: the main one may sit in a collective that never returns."""
    hint = "Start all processes again with the same command: the run goes on from its newest saved step."
    fail(LspError(message, hint=hint, code=code))
    os._exit(int(code))


def _keep_stdout() -> None:
    """Gloo greets on stdout, which is for data: from here on only Python's own stdout leads there."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(kept, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  it stays open to the end


def _set(name: str, value: str) -> None:
    try:
        _client().key_value_set(_key(name), value, allow_overwrite=True)
    except Exception:  # the coordinator is gone: nobody is left to be told
        return


def _key(name: str) -> str:
    return f"lsp/{name}"


def _client() -> Any:
    from jax._src import distributed  # JAX has no public way to its key-value store; Orbax takes this one too

    return distributed.global_state.client
