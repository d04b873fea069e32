"""What a stranger does with the first screen of README.md, from a clone of this repository, with the time of each step.

python3 scripts/stranger.py              # clones, installs, trains on a folder of pictures, chats and serves
python3 scripts/stranger.py --installed  # the same without the first two, in the environment whose python runs this

The commands are those of README.md, word for word but for the port of the server, which is a free one. Needs nothing
but Python; fails where a command fails, where an answer is wrong, and where all of it takes longer than ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADING = '## From nothing to a served model\n'
STEPS = ('install', 'train', 'chat', 'serve', 'ask')
"""The blocks of commands on the first screen, in their order."""
COLOURS = {'red': (220, 30, 30), 'black': (10, 10, 10), 'blue': (40, 60, 230), 'yellow': (240, 220, 40)}
QUESTION = 'Which colour is it?'
PICTURES = 128
SIDE = 56
SHOWN = 1
"""The picture that README.md asks about."""
LIMIT = 600.0
PATIENCE = 120.0
"""Seconds in which a server must answer, or end."""
PORT = 8000


class StrangerError(Exception):
    """Something did not do what the first screen says."""


def main() -> int:
    """Does all of it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--installed', action='store_true', help='in the environment whose python runs this')
    installed = parser.parse_args().installed
    times: dict[str, float] = {}
    try:
        with tempfile.TemporaryDirectory(prefix='stranger-') as folder:
            visit(Path(folder), installed, times)
    except StrangerError as error:
        sys.stderr.write(f'{error}\n')
        return 1
    finally:
        sys.stdout.write(''.join(f'\n{name:<24}{seconds:>7.1f} s' for name, seconds in times.items()))
        sys.stdout.write(f'\n{"all of it":<24}{sum(times.values()):>7.1f} s of {LIMIT:.0f}\n')
    return int(sum(times.values()) > LIMIT)


def visit(folder: Path, installed: bool, times: dict[str, float]) -> None:
    """Does all that the first screen says, in a folder; `times` gets the seconds of each step."""
    blocks = first_screen((ROOT / 'README.md').read_text(encoding='utf-8'))
    environ = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'VIRTUAL_ENV')}
    if installed:
        home = folder
        environ |= {'PATH': f'{Path(sys.executable).parent}:{environ["PATH"]}', 'PYTHONPATH': str(ROOT)}
    else:
        home = folder / 'align-anything'
        with timed('clone', times):
            shell(f'git clone --quiet "{ROOT}" "{home}"', folder, environ)
        with timed('install', times):
            shell(blocks['install'], home, environ)
        # What activating the environment does; each block has a shell of its own.
        environ |= {'PATH': f'{home / ".venv" / "bin"}:{environ["PATH"]}'}
    with timed('own data', times):
        write_pictures(home)
    with timed('train', times):
        shell(blocks['train'], home, environ)
    colour = colour_of(SHOWN)
    with timed('chat', times):
        said = shell(blocks['chat'], home, environ)
        if said.split()[-1:] != [colour]:
            raise StrangerError(f'chat: the picture is {colour}, and the answer {said!r}')
    port = free_port()
    with timed('serve, until it answers', times):
        server = begin(blocks['serve'], port, home, environ)
    try:
        with timed('ask', times):
            asking = blocks['ask'].replace(f':{PORT}/', f':{port}/')
            said = json.loads(shell(asking, home, environ))['choices'][0]['message']['content']
            if said.strip() != colour:
                raise StrangerError(f'serve: the picture is {colour}, and the answer {said!r}')
    finally:
        with timed('stop', times):
            end(server)


def first_screen(readme: str) -> dict[str, str]:
    """Returns the commands of the first screen, by step. Raises StrangerError when it has other blocks."""
    if HEADING not in readme:
        raise StrangerError(f'README.md has no section {HEADING.strip()!r}')
    blocks = re.findall(r'```bash\n(.*?)```', readme.split(HEADING)[1].split('\n## ')[0], re.DOTALL)
    if len(blocks) != len(STEPS):
        raise StrangerError(f'README.md: {HEADING.strip()!r} has {len(blocks)} blocks of commands, not {STEPS}')
    return dict(zip(STEPS, blocks, strict=True))


def shell(commands: str, folder: Path, environ: dict[str, str]) -> str:
    """Runs commands in a folder and shows them; returns what they wrote. Raises StrangerError when one fails."""
    sys.stdout.write(f'\n{commands.strip()}\n')
    sys.stdout.flush()
    done = subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', commands], cwd=folder, env=environ, stdout=subprocess.PIPE, text=True
    )
    sys.stdout.write(done.stdout)
    if done.returncode:
        raise StrangerError(f'ended with code {done.returncode}:\n{commands.strip()}')
    return done.stdout


def begin(command: str, port: int, folder: Path, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a server and waits until it answers. Raises StrangerError when it ends before, or does not."""
    sys.stdout.write(f'\n{command.strip()}\n')
    sys.stdout.flush()
    server = subprocess.Popen(['bash', '-c', f'exec {command.strip()} --port {port}'], cwd=folder, env=environ)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=5):
                return server
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    end(server)
    raise StrangerError(f'no answer from the server within {PATIENCE:.0f} s:\n{command.strip()}')


def end(server: subprocess.Popen[bytes]) -> None:
    """Asks a server to end and waits for it. Raises StrangerError when it does not."""
    if server.poll() is None:
        server.terminate()
    try:
        server.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        server.kill()
        raise StrangerError(f'the server did not end within {PATIENCE:.0f} s') from None


@contextmanager
def timed(name: str, times: dict[str, float]) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        times[name] = time.monotonic() - start


def free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def colour_of(number: int) -> str:
    return [*COLOURS][number % len(COLOURS)]


def write_pictures(folder: Path) -> None:
    """Writes pictures of squares and `pictures.jsonl` with a question and an answer about each."""
    (folder / 'pictures').mkdir()
    rows = []
    for number in range(PICTURES):
        (folder / 'pictures' / f'{number}.png').write_bytes(png(COLOURS[colour_of(number)], number % 17))
        rows.append({'question': QUESTION, 'answer': colour_of(number), 'image': f'pictures/{number}.png'})
    (folder / 'pictures.jsonl').write_text(''.join(f'{json.dumps(row)}\n' for row in rows), encoding='utf-8')


def png(colour: tuple[int, int, int], corner: int) -> bytes:
    """Returns a white picture with a square of that colour."""
    inside = range(corner, corner + 36)
    plain = bytes([255] * 3) * SIDE
    crossed = bytes(value for x in range(SIDE) for value in (colour if x in inside else (255, 255, 255)))
    lines = b''.join(b'\0' + (crossed if y in inside else plain) for y in range(SIDE))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', SIDE, SIDE, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b'')


if __name__ == '__main__':
    sys.exit(main())
