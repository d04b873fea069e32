"""Code that a model wrote: what it may do, and what it may not, on machines that have a sandbox for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from align_anything.core.errors import WorldError
from align_anything.environments import Call, Said, sandbox
from align_anything.environments.base import make_environment
from align_anything.environments.pool import Pool
from align_anything.environments.sandbox import LAUNCHER, Bounds, refusal, run_python
from tests.environments.one import One

NEEDS = pytest.mark.skipif(bool(refusal()), reason=refusal())
SYSTEM_PYTHON = Path('/usr/bin/python3')

ALLOWED = {
    '1 + 1': '2\n',
    'x = [3]\nx * 2': '[3, 3]\n',
    '': '',
    'import os; dict(os.environ).keys() - {"PATH", "HOME", "TMPDIR", "LANG", "OMP_NUM_THREADS", "LC_CTYPE"}': 'set()\n',
    # A folder that the interpreter lies in may be there too.
    'open("/tmp/a", "w").write("x"); import os; [entry.name for entry in os.scandir("/tmp") if entry.is_file()]': (
        "['a']\n"
    ),
    'import subprocess; subprocess.run(["echo", "hm"], capture_output=True, text=True).stdout': "'hm\\n'\n",
    f'import os; os.path.exists({str(Path(__file__))!r}), os.path.exists("/etc/passwd"), os.path.exists("/proc/1")': (
        '(False, False, False)\n'
    ),
}
REFUSED = {
    '1 / 0': 'ZeroDivisionError',
    'def f(:': 'SyntaxError',
    'while True: pass': 'ended: it took longer than 1 s',
    'import time; time.sleep(60)': 'ended: it took longer than 1 s',
    'print("x" * 10**7)': 'ended: it printed more than 1000 bytes',
    'bytearray(10**9)': 'MemoryError',
    'f = open("/tmp/a", "wb")\nwhile True: f.write(b"x" * 2**20)': 'OSError',
    'import socket; socket.create_connection(("127.0.0.1", 80))': 'Network is unreachable',
    'import socket; socket.create_connection(("8.8.8.8", 53))': 'Network is unreachable',
    'import os, time\nfor _ in range(99):\n    if not os.fork(): time.sleep(9)': 'BlockingIOError',
    'open("/usr/x", "w")': 'Read-only file system',
    'import os; os.kill(1, 9)': 'Error',
    'import os; os.setuid(0)': 'Operation not permitted',
    'import os; os.abort()': 'ended by SIGABRT',
    'input()': 'EOFError',
}


@NEEDS
@pytest.mark.parametrize('code', ALLOWED)
def test_what_code_may_do(code: str) -> None:
    ran = run_python(code, Bounds(seconds=20, memory=256))
    assert (ran.output, ran.failed) == (ALLOWED[code], False)


@NEEDS
@pytest.mark.parametrize('code', REFUSED)
def test_what_code_may_not_do(code: str) -> None:
    ran = run_python(code, Bounds(seconds=1 if '1 s' in REFUSED[code] else 20, memory=256, output=1000))
    assert REFUSED[code] in ran.output and ran.failed and len(ran.output) < 1100


@NEEDS
def test_nothing_goes_on_when_code_is_done() -> None:
    length = f'{os.getpid()}.25'
    run_python(f'import subprocess; subprocess.Popen(["setsid", "sleep", "{length}"]).pid', Bounds(seconds=20))
    running = [path.read_bytes() for path in Path('/proc').glob('[0-9]*/cmdline') if path.exists()]
    assert not any(length.encode() in line and b'sleep' in line for line in running)


@pytest.mark.skipif(os.getuid() != 0 or not SYSTEM_PYTHON.exists(), reason='needs root, to be somebody else')
@NEEDS
def test_somebody_without_rights_has_the_same_sandbox() -> None:
    # Not among the folders of the tests, which nobody else may enter.
    folder = Path(tempfile.mkdtemp(prefix='nobody-'))
    try:
        shutil.copy(LAUNCHER, folder)
        (folder / 'root').mkdir()
        for path in (folder, folder / 'root', folder / LAUNCHER.name):
            os.chown(path, 65534, 65534)
        program = 'import os; print(os.getuid(), sorted(os.listdir("/tmp")))'
        argv = [folder / LAUNCHER.name, folder / 'root', '/usr', '/usr', '5', str(2**28), '8', program]
        done = subprocess.run(
            [SYSTEM_PYTHON, '-I', '-S', *map(str, argv)], user=65534, group=65534, capture_output=True, text=True
        )
    finally:
        shutil.rmtree(folder)
    assert (done.stdout, done.returncode) == ('65534 []\n', 0), done.stderr


@NEEDS
def test_the_tool_tells_results_and_errors() -> None:
    one = One(Pool('python', {'seconds': 20}), {'ground_truth': 42}, 0)
    assert 'last expression' in one.begin().tools[0]['function']['description']
    calls = (Call('python', {'code': '6 * 7'}), Call('python', {'code': '1 / 0'}))
    answered = one.step(Said('', calls))
    first, second = (message['content'][0]['text'] for message in answered.messages)
    assert first == '42\n' and second.startswith('Traceback') and answered.step.info == {'tool_errors': 1}
    assert one.step(Said('It is 42.')).step.reward == 1


def test_without_a_sandbox_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / 'launcher.py'
    broken.write_text('raise OSError("unshare: Operation not permitted")')
    monkeypatch.setattr(sandbox, 'LAUNCHER', broken)
    refusal.cache_clear()
    try:
        with pytest.raises(WorldError, match='no namespaces of their own.*unshare: Operation not permitted'):
            make_environment('python', {})
        with pytest.raises(WorldError, match='no namespaces'):
            run_python('1', Bounds())
    finally:
        refusal.cache_clear()
