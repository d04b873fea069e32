"""Goes into a sandbox and runs Python there; see `sandbox.py`. A program of its own: it imports nothing from here.

Its arguments are an empty folder, the prefixes of Python, the seconds, bytes and processes that may be used, and the
program to run, which gets the standard input.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

NAMESPACES = {
    'CLONE_NEWNS': 0x00020000,
    'CLONE_NEWUTS': 0x04000000,
    'CLONE_NEWIPC': 0x08000000,
    'CLONE_NEWUSER': 0x10000000,
    'CLONE_NEWPID': 0x20000000,
    'CLONE_NEWNET': 0x40000000,
}
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
NOBODY, FIRST_USER = 65534, 1_000_000_000
RUNTIME = ('/usr', '/bin', '/lib', '/lib32', '/lib64', '/etc/ld.so.cache', '/etc/alternatives')
DEVICES = ('/dev/null', '/dev/zero', '/dev/urandom', '/dev/random')
FILES, SIGNALLED = 64, 128
LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Runs the program in the sandbox and ends as it does."""
    root, *prefixes, seconds, memory, processes, program = sys.argv[1:]
    _limit(float(seconds), int(memory))
    _leave()
    _furnish(root, prefixes, int(memory))
    # The first process there: whatever others are left when it ends, the kernel ends with it.
    first = os.fork()
    if first:
        _end_as(os.waitpid(first, 0)[1])
    _call('prctl', PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.chroot(root)
    os.chdir('/tmp')
    child = os.fork()
    if child:
        _end_as(_status_of(child))
    os.setsid()
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    _call('prctl', PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_NPROC, (int(processes), int(processes)))
    os.closerange(3, FILES)
    variables = {'PATH': '/usr/bin:/bin', 'HOME': '/tmp', 'TMPDIR': '/tmp', 'LANG': 'C.UTF-8', 'OMP_NUM_THREADS': '1'}
    # It loses its rights over the namespaces here, as nobody has any.
    os.execve(sys.executable, [sys.executable, '-I', '-B', '-c', program], variables)


def _limit(seconds: float, memory: int) -> None:
    whole = max(1, round(seconds + 0.5))
    for limit, most in (
        (resource.RLIMIT_CPU, whole),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, memory),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))


def _leave() -> None:
    """Goes into namespaces of its own, where its user is nobody's, or that of this sandbox alone if it may be.

    The kernel counts the processes of a user, and never those of root.
    """
    mapped = [f'{NOBODY} {os.getuid()} 1'], [f'{NOBODY} {os.getgid()} 1']
    if not os.getuid():
        mapped = ([f'0 {own} 1', f'{NOBODY} {FIRST_USER + os.getpid()} 1'] for own in (os.getuid(), os.getgid()))
    go_on, left = os.pipe()
    outside = os.fork()
    if not outside:
        os.close(left)
        # Once this one is gone, the other is in its namespaces.
        os.read(go_on, 1)
        for name, lines in zip(('setgroups', 'uid_map', 'gid_map'), (['deny'], *mapped), strict=True):
            with open(f'/proc/{os.getppid()}/{name}', 'w', encoding='ascii') as file:
                file.write('\n'.join(lines))
        os._exit(0)
    _call('unshare', sum(NAMESPACES.values()))
    os.close(left)
    if os.waitpid(outside, 0)[1]:
        raise OSError('its users cannot be mapped into a namespace')


def _furnish(root: str, prefixes: list[str], memory: int) -> None:
    """Makes a root of what Python needs, to be read alone, and an empty folder."""
    _mount(None, '/', None, MS_REC | MS_PRIVATE)
    _mount('tmpfs', root, 'tmpfs', MS_NOSUID | MS_NODEV, f'size={memory},mode=0755')
    os.mkdir(f'{root}/tmp')
    os.chmod(f'{root}/tmp', 0o777)
    for path in dict.fromkeys([*RUNTIME, *DEVICES, *prefixes]):
        _show(root, path)


def _show(root: str, path: str) -> None:
    there = root + path
    if not os.path.lexists(path) or os.path.lexists(there):
        return
    os.makedirs(os.path.dirname(there), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), there)
        _show(root, os.path.realpath(path))
        return
    if os.path.isdir(path):
        os.mkdir(there)
    else:
        os.close(os.open(there, os.O_CREAT | os.O_WRONLY))
    _mount(path, there, None, MS_BIND | MS_REC)
    _mount(None, there, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _call('mount', *texts[:3], ctypes.c_ulong(flags), texts[3])


def _call(name: str, *arguments: object) -> None:
    if LIBC[name](*arguments):
        error = ctypes.get_errno()
        raise OSError(error, f'{name}: {os.strerror(error)}')


def _status_of(child: int) -> int:
    """How a child ends, while what it leaves behind is waited for as well."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            return status


def _end_as(status: int) -> None:
    os._exit(SIGNALLED + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


if __name__ == '__main__':
    main()
