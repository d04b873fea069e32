"""Media behind URLs, where they are allowed: public addresses alone, no redirects, so many bytes and seconds."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

from align_anything.serve.errors import RequestError

SECONDS = 20.0
CHUNK = 2**16
OK = 200
PORTS = {'http': 80, 'https': 443}


def fetch(url: str, limit: int, seconds: float = SECONDS) -> bytes:
    """Returns what lies at an http or https URL.

    The address is looked up once, checked, and connected to, so that a name cannot stand for another one meanwhile.

    Raises RequestError for another scheme, a name or port in the URL's own login, an address that is not public (those
    of this machine and its networks, of which metadata services are some), any answer but 200, redirects too, more
    than `limit` bytes, or more than `seconds`.
    """
    parts = _parts_of(url)
    end, alarm = time.monotonic() + seconds, None
    address = _public_address(parts.hostname, parts.port or PORTS[parts.scheme])
    connection = http.client.HTTPConnection(parts.hostname, parts.port or PORTS[parts.scheme], timeout=seconds)
    try:
        connection.sock = socket.create_connection(address, timeout=seconds)
        # Timeouts of sockets count from one byte to the next, which may be the last of very many.
        alarm = threading.Timer(seconds, _cut, [connection.sock])
        alarm.start()
        if parts.scheme == 'https':
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=parts.hostname)
        target = (parts.path or '/') + (f'?{parts.query}' if parts.query else '')
        connection.request('GET', target, headers={'Host': parts.netloc, 'User-Agent': 'align-anything'})
        answer = connection.getresponse()
        if answer.status != OK:
            what = 'redirects, which are not followed' if 300 <= answer.status < 400 else f'answers {answer.status}'
            raise RequestError(f'a medium cannot be fetched: {parts.hostname} {what}.', code='url_refused')
        data = bytearray()
        while chunk := answer.read1(CHUNK):
            data += chunk
            if len(data) > limit:
                raise RequestError(f'a medium at {parts.hostname} is larger than {limit} bytes.', code='url_refused')
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RequestError(
            f'a medium cannot be fetched from {parts.hostname}: {type(error).__name__}.', code='url_refused'
        ) from error
    finally:
        connection.close()
        if alarm is not None:
            alarm.cancel()
    if time.monotonic() > end:
        raise RequestError(f'a medium at {parts.hostname} takes too long to come.', code='url_refused')
    return bytes(data)


def _cut(opened: socket.socket) -> None:
    with suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)


def _parts_of(url: str):
    try:
        parts = urlsplit(url)
        usable = parts.scheme in PORTS and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or any(character <= ' ' for character in url):
        raise RequestError('a medium has a URL that is none of http or https.', code='url_refused')
    return parts


def _public_address(host: str, port: int) -> tuple[str, int]:
    """The first address of a host. All of them must be public: which one is taken should not matter."""
    try:
        found = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise RequestError(f'a medium cannot be fetched: there is no host {host}.', code='url_refused') from error
    if not all(_is_public(address) for address in found):
        raise RequestError(f'{host} is no public address, and others are never fetched from.', code='url_refused')
    return found[0], port


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition('%')[0])
    if address.version == 6:
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if inner:
            return _is_public(str(inner))
        if address in NAT64:
            return _is_public(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
    return address.is_global and not address.is_multicast and not address.is_reserved


NAT64 = ipaddress.ip_network('64:ff9b::/96')
