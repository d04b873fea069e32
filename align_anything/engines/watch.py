"""Ends a run on all nodes when one of its ranks is gone, with one message that names the rank, its node and the cause.

Collectives do not: peers of a rank that is killed fail with errors of their own, or wait until the time limit of the
process group, as they do for a rank that raised something. So each rank keeps a connection to one of them, the hub,
beside the group. A connection that closes without a word tells of a process that was killed; one whose other end the
kernel gets no answer from, of a machine or a network that is down. As the kernel asks, a rank that computes for minutes
in one call counts as alive; and nothing is sent or computed while all is well.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import psutil

from align_anything.core.connections import KEPT_ALIVE, SILENCE
from align_anything.core.distributed import all_gather_object, is_main, rank, world_size
from align_anything.core.errors import AlignAnythingError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.engines.meeting import ENDED_BY_ANOTHER
from align_anything.engines.process_group import join_process_group

logger = get_logger(__name__)

CONNECT_SECONDS = 10.0
DOUBT_SECONDS = 2.0
"""How long an error that may come of another rank's end waits for the news of that."""
OUT_SECONDS = 5.0
"""How long what a rank does may take to come to its end by itself, once the run is over."""
LEAVING_SECONDS = 30.0
"""How long the others may go on when one has left before its end, as SIGTERM or Ctrl-C lets all of them do."""
LONGEST = 1 << 16
GO_ON = 'The same command with --resume auto goes on from the last checkpoint.'


@dataclass(frozen=True)
class Member:
    """A rank: the name of its node, its process, and whether it is where the group meets (`MASTER_ADDR`)."""

    node: str
    process: int
    at_master: bool

    def called(self, number: int) -> str:
        return f'rank {number} on {self.node} (process {self.process})'


@dataclass(frozen=True)
class Verdict:
    """Why a run ends.

    Attributes:
        rank: where it began.
        cause: what happened to it.
        lost: whether it can say nothing any more.
        tells: whether it says itself what it raised.
        delay: seconds that the others have to end by themselves.
    """

    rank: int
    cause: str
    lost: bool = False
    tells: bool = False
    delay: float = 0.0


KILLED = (
    'was killed, or crashed: it ended without a word. Its launcher says by which signal; for a process that took too '
    'much memory the log of the kernel there does (dmesg).'
)
SILENT = f'has not been heard of for {SILENCE} seconds: its node, or the network to it, is down.'


@contextmanager
def watched() -> Iterator[None]:
    """Joins the ranks of a launcher, and watches over them while the block runs. Every rank calls it.

    What the block raises is told to the others, which end. When it is another rank that ended the run, the process ends
    with code 2; one rank of each node says why. One process alone is not watched.
    """
    if world_size() < 2:
        yield
        return
    join_process_group()
    watch = _begun()
    if watch is None:
        yield
        return
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as leaving:
        code = leaving.code if isinstance(leaving, SystemExit) else 1
        watch.leave(code if isinstance(code, int) else int(code is not None))
        raise
    except BaseException as error:
        watch.fail(error)
        raise
    watch.leave(0)


def _begun() -> Watch | None:
    """The watch of this rank; None, which is told, where one of them cannot reach the hub."""
    master = os.environ.get('MASTER_ADDR', 'localhost')
    members = all_gather_object(Member(socket.gethostname(), os.getpid(), _is_here(master)))
    at = next((number for number, member in enumerate(members) if member.at_master), 0)
    together = all(member.at_master for member in members)
    address = '127.0.0.1' if together else master if members[at].at_master else members[at].node
    hub = _Hub(address if together else '', members, secrets.token_hex(16)) if rank() == at else None
    port, secret = all_gather_object(None if hub is None else (hub.port, hub.secret))[at]
    if hub is not None:
        hub.start()
        address = '127.0.0.1'
    problem, link = '', None
    try:
        link = _connected(address, port)
    except OSError as error:
        problem = f'{members[rank()].called(rank())} does not reach {address}, port {port}: {error}'
    problems = [one for one in all_gather_object(problem) if one]
    if problems:
        if hub is not None:
            hub.close()
        if link is not None:
            _close(link)
        if is_main():
            logger.warning('%s. So a rank that dies may end the others only after minutes.', problems[0])
        return None
    watch = Watch(members, link, at, hub)
    watch.begin(secret)
    return watch


class Watch:
    """What one rank knows of the others.

    Args:
        members: all ranks.
        link: the connection to the hub.
        at: the rank of the hub.
        hub: the hub, on that rank.
    """

    def __init__(self, members: Sequence[Member], link: socket.socket, at: int, hub: _Hub | None) -> None:
        self._members, self._link, self._at, self._hub = members, link, at, hub
        self._verdict: Verdict | None = None
        self._judged, self._out, self._left = threading.Event(), threading.Event(), threading.Event()
        self._own: BaseException | None = None
        self._thread = threading.Thread(target=self._listen, name='watch', daemon=True)

    def begin(self, secret: str) -> None:
        """Makes itself known to the hub, and listens."""
        _send(self._link, {'rank': rank(), 'secret': secret})
        self._thread.start()

    def leave(self, code: int) -> None:
        """Says that this rank ends, with a code, and listens no more."""
        self._left.set()
        self._out.set()
        with suppress(OSError):
            _send(self._link, {'left': code})
        if self._hub is not None:
            self._hub.close(code)
        self._close()

    def fail(self, error: BaseException) -> None:
        """Tells the others what this rank raised. Returns where that is the cause, or the user's to mend; where it
        comes of another rank's end, this process ends."""
        self._own = error
        claim = {
            'raised': f'{type(error).__name__}: {error}'[:4000],
            # Another rank's end lets collectives fail, which raises errors of torch.
            'doubt': isinstance(error, (RuntimeError, OSError)),
            'tells': self._tells(error),
        }
        with suppress(OSError):
            _send(self._link, claim)
        end = time.monotonic() + SILENCE + DOUBT_SECONDS
        # Where the hub has ended well already, nobody judges.
        while not self._judged.wait(0.1) and self._thread.is_alive() and time.monotonic() < end:
            pass
        verdict = self._verdict
        if verdict is not None and verdict.rank != rank() and not isinstance(error, AlignAnythingError):
            self._out.set()
            self._thread.join()  # ends the process
        self._left.set()
        self._out.set()
        if self._hub is not None:
            self._hub.join(OUT_SECONDS)
        self._close()

    def _close(self) -> None:
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._thread.join(OUT_SECONDS)
        _close(self._link)

    def _tells(self, error: BaseException | None) -> bool:
        """Whether this rank itself says what it raised: settings that are wrong are wrong on all ranks."""
        return error is not None and (is_main() or not isinstance(error, SettingsError))

    def _listen(self) -> None:
        verdict = self._heard()
        if verdict is None or self._left.wait(verdict.delay):
            return
        self._verdict = verdict
        self._judged.set()
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)
        if self._speaks(verdict):
            sentence = f'{self._members[verdict.rank].called(verdict.rank)} {verdict.cause}'
            # What was raised says itself what to do.
            logger.error('TrainingError:\n%s', f'{sentence}\n{GO_ON}' if verdict.lost else sentence)
        # Who fails by the end of another rank, and not in a call that waits for it, still closes what it has open.
        self._out.wait(OUT_SECONDS)
        if self._left.is_set() or verdict.rank == rank() or isinstance(self._own, AlignAnythingError):
            return
        if self._hub is not None:
            self._hub.join(OUT_SECONDS)
        if verdict.rank == self._at and verdict.cause == SILENT and 'TORCHELASTIC_RUN_ID' in os.environ:
            # The agent of torchrun, which started this process, asks the store of its rendezvous there before it
            # leaves, waits for the answer until TCP gives up, for a quarter of an hour, and hears of no other signal.
            os.kill(os.getppid(), signal.SIGKILL)
        _end()

    def _heard(self) -> Verdict | None:
        """Waits for why the run ends; None where the hub ends well, or this rank."""
        try:
            with self._link.makefile('r', encoding='utf-8') as lines:
                for line in lines:
                    told = json.loads(line)
                    return Verdict(**told['verdict']) if 'verdict' in told else None
        except ConnectionResetError:
            pass
        except (OSError, ValueError):
            return None if self._left.is_set() else Verdict(self._at, SILENT, lost=True)
        return None if self._left.is_set() else Verdict(self._at, KILLED, lost=True)

    def _speaks(self, verdict: Verdict) -> bool:
        """Whether this rank says why: the first of its node that can, unless another there does."""
        own, where = self._members[rank()], self._members[verdict.rank]
        if verdict.tells and own.node == where.node:
            return False
        if isinstance(self._own, AlignAnythingError) and self._tells(self._own):
            return False
        able = [number for number, member in enumerate(self._members) if member.node == own.node]
        return rank() == next(number for number in able if not (verdict.lost and number == verdict.rank))


class _Hub(threading.Thread):
    """Hears of the ends of all ranks and tells them to the others.

    Args:
        address: where it listens.
        members: all ranks.
        secret: what a rank shows that it is one.
    """

    def __init__(self, address: str, members: Sequence[Member], secret: str) -> None:
        super().__init__(name='hub', daemon=True)
        self.secret = secret
        self._members = members
        self._listener = _kept(socket.create_server((address, 0)))
        self.port = self._listener.getsockname()[1]
        self._peers: dict[socket.socket, _Peer] = {}
        self._doubted: tuple[float, Verdict] | None = None
        self._bell, self._ring = (_kept(end) for end in socket.socketpair())

    def close(self, code: int = 0) -> None:
        """Ends it: this rank leaves, with a code, before or after the others."""
        with suppress(OSError):
            self._ring.send(b'1' if code else b'0')
        self.join(OUT_SECONDS)

    def run(self) -> None:
        with selectors.PollSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._bell, selectors.EVENT_READ)
            verdict = self._awaited(selector)
            for peer in [*self._peers]:
                with suppress(OSError):
                    _send(peer, {'end': True} if verdict is None else {'verdict': asdict(verdict)})
            if verdict is not None:
                self._drain(selector)
        for one in (self._listener, self._bell, self._ring, *self._peers):
            _close(one)

    def _awaited(self, selector: selectors.BaseSelector) -> Verdict | None:
        while True:
            limit = None if self._doubted is None else max(self._doubted[0] - time.monotonic(), 0.0)
            ready = selector.select(limit)
            if not ready and limit is not None:
                return self._doubted[1]
            for key, _ in ready:
                if key.fileobj is self._listener:
                    self._accept(selector)
                elif key.fileobj is self._bell:
                    code = int(self._bell.recv(1))
                    return None if not code else self._leaving(rank(), code)
                elif (verdict := self._read(key.fileobj, selector)) is not None:
                    return verdict

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with suppress(OSError):
            peer, _ = self._listener.accept()
            _kept(peer)
            _ask_for_life(peer)
            self._peers[peer] = _Peer()
            selector.register(peer, selectors.EVENT_READ)

    def _read(self, link: socket.socket, selector: selectors.BaseSelector) -> Verdict | None:
        """What a connection says of its rank's end, if it does."""
        peer, cause = self._peers[link], KILLED
        try:
            data = link.recv(LONGEST)
        except ConnectionResetError:
            data = b''
        except OSError:
            data, cause = b'', SILENT
        peer.unread += data
        *lines, peer.unread = peer.unread.split(b'\n')
        for line in lines:
            if peer.rank is None and not self._introduced(peer, line):
                data = b''
                break
            told = json.loads(line)
            if 'left' in told:
                peer.left = True
                if told['left']:
                    return self._leaving(peer.rank, told['left'])
            elif 'raised' in told:
                peer.left = True
                verdict = Verdict(peer.rank, f'raised {told["raised"]}', tells=told['tells'])
                if not told['doubt']:
                    return verdict
                self._doubted = self._doubted or (time.monotonic() + DOUBT_SECONDS, verdict)
        if data and len(peer.unread) < LONGEST:
            return None
        selector.unregister(link)
        del self._peers[link]
        _close(link)
        return None if peer.rank is None or peer.left else Verdict(peer.rank, cause, lost=True)

    def _introduced(self, peer: _Peer, line: bytes) -> bool:
        with suppress(ValueError, KeyError, TypeError):
            told = json.loads(line)
            if secrets.compare_digest(told['secret'], self.secret):
                peer.rank = told['rank']
        return peer.rank is not None

    def _leaving(self, number: int, code: int) -> Verdict:
        return Verdict(number, f'left the run with code {code}, before its end.', delay=LEAVING_SECONDS)

    def _drain(self, selector: selectors.BaseSelector) -> None:
        """Waits until all have heard: a connection that closes with something unread takes back what was sent."""
        end = time.monotonic() + DOUBT_SECONDS
        while self._peers and (limit := end - time.monotonic()) > 0:
            for key, _ in selector.select(limit):
                if key.fileobj in self._peers:
                    self._read(key.fileobj, selector)
                elif key.fileobj is self._bell:
                    return


@dataclass
class _Peer:
    """A connection: whose it is, whether it has said its last word, and what of a message is there."""

    rank: int | None = None
    left: bool = False
    unread: bytes = field(default=b'', repr=False)


_open: set[socket.socket] = set()


def _kept(one: socket.socket) -> socket.socket:
    """Keeps a socket out of what this process forks, whose end would not be that of the connection else."""
    _close_in_forks()
    _open.add(one)
    return one


@cache
def _close_in_forks() -> None:
    def close() -> None:
        for one in _open:
            os.close(one.detach())

    os.register_at_fork(after_in_child=close)


def _close(one: socket.socket) -> None:
    _open.discard(one)
    one.close()


def _connected(address: str, port: int) -> socket.socket:
    link = _kept(socket.create_connection((address, port), CONNECT_SECONDS))
    link.settimeout(None)
    _ask_for_life(link)
    return link


def _ask_for_life(link: socket.socket) -> None:
    for option in KEPT_ALIVE:
        link.setsockopt(*option)


def _send(link: socket.socket, message: Any) -> None:
    link.sendall(json.dumps(message).encode() + b'\n')


def _is_here(address: str) -> bool:
    """Whether an address, or a name, is one of this machine."""
    with suppress(OSError):
        for family, kind, protocol, _, where in socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(where)
                return True
    return False


def _end() -> None:
    """Ends this process and what it started, whatever its main thread waits for."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ENDED_BY_ANOTHER)
