"""Python code that a model wrote, run where it can do little harm: without a network, files, secrets or much time.

It runs in namespaces of its own (user, mount, network, processes), with what Python needs mounted to be read alone,
and a small folder in memory to write to. That needs Linux, and a machine that lets its users make namespaces. It does
not stop what breaks the kernel itself.
"""

from __future__ import annotations

import functools
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from align_anything.core.errors import WorldError

LAUNCHER = Path(__file__).with_name('sandbox_launcher.py')
CHUNK = 2**16
MEBIBYTE = 2**20
PROBE = 'print(6 * 7)'
RUNNER = """
import ast, linecache, sys, traceback
source = sys.stdin.read()
linecache.cache['<code>'] = (len(source), None, source.splitlines(True), '<code>')
try:
    tree = ast.parse(source, '<code>')
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    names = {'__name__': '__main__'}
    exec(compile(tree, '<code>', 'exec'), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), '<code>', 'eval'), names)
        if value is not None:
            print(repr(value))
except SystemExit:
    raise
except BaseException as error:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != '<code>':
        frames = frames.tb_next
    traceback.print_exception(type(error), error, frames)
    sys.exit(1)
"""
"""What runs the code in the sandbox: as a cell of a notebook, the value of the last expression is printed."""


@dataclass(frozen=True)
class Bounds:
    """What code may use.

    Attributes:
        seconds: on the clock, and of the processor.
        memory: MiB of each process, and of its files.
        processes: how many there may be.
        output: bytes that it may print; it is ended where it prints more.
    """

    seconds: float = 5.0
    memory: int = 512
    processes: int = 16
    output: int = 20_000


@dataclass(frozen=True)
class Ran:
    """What came of code.

    Attributes:
        output: what it printed, errors included.
        failed: whether it raised, or was ended.
    """

    output: str
    failed: bool


def run_python(code: str, bounds: Bounds) -> Ran:
    """Runs code and returns what came of it. Raises WorldError where this machine has no sandbox."""
    problem = refusal()
    if problem:
        raise WorldError(problem)
    return _run(code, bounds)


@functools.cache
def refusal() -> str:
    """Returns why code cannot be run safely on this machine, an empty string where it can."""
    told = _run(PROBE, Bounds(seconds=60))
    if told == Ran('42\n', False):
        return ''
    *_, why = told.output.strip().splitlines() or ['nothing came of a first try']
    return (
        'this machine gives programs no namespaces of their own, so that code would run with your files and network: '
        f'{why}. Allow user namespaces '
        '(kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces; in '
        'containers a seccomp profile that has unshare and mount), or serve the environment on a machine that has them '
        '(align-anything serve-environment).'
    )


def _run(code: str, bounds: Bounds) -> Ran:
    with tempfile.TemporaryDirectory(prefix='sandbox-', ignore_cleanup_errors=True) as folder:
        limits = [bounds.seconds, bounds.memory * MEBIBYTE, bounds.processes]
        launched = [sys.executable, '-I', '-S', str(LAUNCHER), folder, sys.prefix, sys.base_prefix, *map(str, limits)]
        process = subprocess.Popen(
            [*launched, RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
            cwd=folder,
            start_new_session=True,
        )
        try:
            return _watched(process, code.encode('utf-8', 'replace'), bounds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdin.close()
            process.stdout.close()


def _watched(process: subprocess.Popen[bytes], code: bytes, bounds: Bounds) -> Ran:
    """Feeds code to a process and reads what it prints, for as long and as much as it may."""
    end = time.monotonic() + bounds.seconds
    found, unsent = bytearray(), memoryview(code)
    os.set_blocking(process.stdin.fileno(), False)
    why = ''
    while not why:
        if not unsent and not process.stdin.closed:
            process.stdin.close()
        left = end - time.monotonic()
        writes = [process.stdin] if unsent else []
        readable, writable, _ = select.select([process.stdout], writes, [], max(0.0, left))
        if writable:
            try:
                unsent = unsent[os.write(process.stdin.fileno(), unsent[:CHUNK]) :]
            except BrokenPipeError:
                unsent = unsent[:0]
        if readable:
            chunk = os.read(process.stdout.fileno(), CHUNK)
            if not chunk:
                break
            found += chunk
        if len(found) > bounds.output:
            why = f'ended: it printed more than {bounds.output} bytes'
        elif time.monotonic() >= end:
            why = f'ended: it took longer than {bounds.seconds:g} s'
    text = bytes(found[: bounds.output]).decode('utf-8', 'replace')
    if why:
        return Ran(f'{text}\n[{why}]'.lstrip('\n'), True)
    code = process.wait()
    if code == 0:
        return Ran(text, False)
    by = f' by {signal.Signals(code - SIGNALLED).name}' if code > SIGNALLED else ''
    return Ran(text + (f'\n[ended{by}]' if by else ''), True)


SIGNALLED = 128
"""An exit code above it says by which signal a process ended, as shells have it."""
