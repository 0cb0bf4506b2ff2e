"""Loaded by every Python process of a test run (through PYTHONPATH): only loopback and Unix sockets connect."""

import ipaddress
import socket

_connect, _connect_ex, _sendto = socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto


def _require_local(sock: socket.socket, address) -> None:
    if sock.family == socket.AF_UNIX:
        return
    host = address[0] if isinstance(address, tuple) else address
    try:
        local = host in ("localhost", "") or ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        local = False
    if not local:
        raise OSError(f"the tests run without network: refused a connection to {host}")


def _guarded_connect(self, address):
    _require_local(self, address)
    return _connect(self, address)


def _guarded_connect_ex(self, address):
    _require_local(self, address)
    return _connect_ex(self, address)


def _guarded_sendto(self, data, *rest):
    _require_local(self, rest[-1])
    return _sendto(self, data, *rest)


socket.socket.connect = _guarded_connect
socket.socket.connect_ex = _guarded_connect_ex
socket.socket.sendto = _guarded_sendto
