"""Who may ask: this machine's names and no others, and no page from elsewhere.

A browser sends requests of any page that it shows. A foreign page is told by its Origin; one whose
name was made to point here (DNS rebinding), by the Host, which is then that name. An address of
digits is nobody's name, so it cannot be made to point elsewhere.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit


def host_of(netloc: str) -> str | None:
    """Returns the name or address in a Host header, lower-case; None where it is none."""
    try:
        parts = urlsplit(f"//{netloc}")
        host = parts.hostname
        _ = parts.port  # ValueError where it is no number
    except ValueError:
        return None
    return host if host and parts.netloc == netloc and "@" not in netloc else None


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a host is this machine to itself alone."""
    return host == "localhost" or (is_address(host) and _plain(host).is_loopback)


def _plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(address.split("%")[0])
    return getattr(found, "ipv4_mapped", None) or found


def refusal(hosts: list[str], origins: list[str], allowed: Collection[str]) -> str | None:
    """Returns why a request with these headers is refused, None where it is not.

    allowed: names, lower-case, beside localhost and addresses.
    """
    host = host_of(hosts[0]) if len(hosts) == 1 else None
    if host is None:
        return "the request needs one Host header"
    if not (host == "localhost" or host in allowed or is_address(host)):
        return f"{host} is no name of this server; serve.py --allow-host NAME allows it"
    if all(_same(origin, hosts[0]) for origin in origins):
        return None
    return "pages from elsewhere may not ask this server"


def _same(origin: str, host: str) -> bool:
    """Whether an Origin is the page of this server, under the name that it was asked by."""
    scheme, _, place = origin.partition("://")
    return scheme in ("http", "https") and place.lower() == host.lower()
