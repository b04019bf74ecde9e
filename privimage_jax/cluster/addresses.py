"""Which host an address leads to, and by which one this host is reached."""

import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Whether a name or address leads to this very host and to no other.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("192.0.2.1"), is_loopback("")
    (True, True, False, False)
    """
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)} if host else set()
        return bool(found) and all(ipaddress.ip_address(address).is_loopback for address in found)
    except (OSError, ValueError):
        return False  # of a name that is not known, or an address with a zone


def own_address() -> str:
    """The address by which this host sends to others; nothing is sent to find it out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation: any address outside would do
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostbyname(socket.gethostname())
