"""Warnings that ``restante check`` prints about valid settings that are probably mistakes."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, suppress
from ipaddress import IPv6Network, ip_address, ip_network
from pathlib import Path

from ..auth.names import BadName, check_new_name
from ..config import ALL_MECHANISMS, Configuration, Secret, Server
from ..passdb import Network, UserAccount
from ..sasl.choice import USER_AND_PASS
from ..server.address import Address
from ..server.login import supported_mechanisms
from . import backends, stores

_EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


def unreadable_files(config: Configuration) -> Iterator[Path]:
    """Yield configuration files and directories that this process cannot read.

    Root can read them, and then becomes the server's user, who may be unable to.
    """
    if config.source is not None and not os.access(config.source, os.R_OK):
        yield config.source
    for path in (config.folder, *sorted(config.folder.glob("*.toml"))):
        if os.path.lexists(path) and not os.access(path, os.R_OK):
            yield path


def configuration_warnings(config: Configuration, *, with_files: bool = True) -> Iterator[str]:
    """Yield one sentence for each probable mistake.  None of them prevents the server's start.

    Without ``with_files``, permissions of files are not checked.
    """
    users, auth = stores.users(config), config.auth
    with closing(backends.chain(config, users)) as chain:
        mechanisms = {USER_AND_PASS, *supported_mechanisms(chain, auth.mechanisms)}
    accounts = [user.account for user in users.list()]
    if "passwd-file" in auth.chain:
        with closing(backends.passwd_file(auth)) as file:
            file_accounts, problems = file.review()
        yield from problems
        accounts += file_accounts
    for account in accounts:
        try:
            check_new_name(account.user)
        except BadName as error:  # added by an earlier version or another program
            yield str(error)
    if with_files:
        for key, path in world_accessible_files(config):
            yield f"{key}: all users of this machine can read {path}; run: chmod o= {path}"
    yield from _settings_that_trust_all(config)
    client_networks = _client_networks(config)
    for account in accounts:
        if account.is_enabled:
            yield from _mechanism_warnings(account, mechanisms)
            yield from _network_warnings(account, client_networks)


# Trusted peers.


def _settings_that_trust_all(config: Configuration) -> Iterator[str]:
    """Warn about settings that should name a few trusted peers but include all addresses."""
    server, auth = config.server, config.auth
    forgery = "could report any address as its own"
    for key, networks, consequence in (
        ("server.proxy_from", server.proxy_from, forgery),
        ("server.xclient_from", server.xclient_from, forgery),
        ("auth.trusted", auth.trusted, "could guess passwords without a growing delay"),
        (
            "auth.allow_plaintext_from",
            auth.allow_plaintext_from,
            "could send passwords in clear text",
        ),
    ):
        for network in networks:
            if network.prefixlen == 0:
                yield f"{key}: {network} includes all addresses, so every client {consequence}"
    for text in config.intake.lmtp.listen:
        if not Address.parse(text).is_local:
            yield (
                f"intake.lmtp.listen: {text} can be reached from other machines, and LMTP requires "
                "no password; use a Unix socket or a loopback address, or a firewall that admits "
                "only your mail server"
            )


# Files.


def secret_files(config: Configuration) -> Iterator[tuple[str, str]]:
    """Yield the setting and the path of each file that contains a single secret."""
    auth = config.auth
    secrets: dict[str, Secret] = {
        "auth.ldap.bind_password": auth.ldap.bind_password,
        "auth.oauth.client_secret": auth.oauth.client_secret,
        "alert.webhook": config.alert.webhook,
        "collect.key": config.collect.key,
    }
    for name, account in config.account.items():
        secrets[f"account.{name}.password"] = account.password
        secrets[f"account.{name}.to_password"] = account.to_password
        secrets[f"account.{name}.oauth.client_secret"] = account.oauth.client_secret
        secrets[f"account.{name}.to_oauth.client_secret"] = account.to_oauth.client_secret
    for key, secret in secrets.items():
        if secret.kind == "file":
            yield key, str(Path(str(secret.value)).expanduser())


def world_accessible_files(config: Configuration) -> Iterator[tuple[str, str]]:
    """Yield the setting and the path of each file with secrets that all users can read."""
    files = [("auth.users", config.auth.users)]
    if "passwd-file" in config.auth.chain:
        files.append(("auth.passwd_file.path", config.auth.passwd_file.path))
    if config.tls.mode == "files":
        files.append(("tls.key", config.tls.key))
    for key, path in (*files, *secret_files(config)):
        with suppress(OSError):  # other checks report missing files
            if Path(path).stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
                yield key, path


# Users who cannot log in.


def _mechanism_warnings(account: UserAccount, available: Collection[str]) -> Iterator[str]:
    if unknown := set(account.mechanisms) - {USER_AND_PASS, *ALL_MECHANISMS}:
        yield f"user {account.user} has an unknown mechanism: {', '.join(sorted(unknown))}"
    allowed = ", ".join(account.mechanisms)
    if all(account.refusal("", mechanism=each) == "mechanism" for each in available):
        yield f"user {account.user} may log in only with {allowed}, which the server does not offer"


def _network_warnings(account: UserAccount, client_networks: Iterable[Network]) -> Iterator[str]:
    for network in account.networks:
        if mapped := _mapped(network):
            yield f"user {account.user} may log in from {network}; write it as {mapped}"
    allowed = ", ".join(map(str, account.networks))
    possible = [each for each in account.networks if not (_has_no_clients(each) or _mapped(each))]
    can_log_in = any(_overlap(one, other) for one in possible for other in client_networks)
    if not account.networks or can_log_in:
        return
    if possible:
        yield (
            f"user {account.user} may log in only from {allowed}, "
            "but no address in server.listen can be reached from there"
        )
    else:
        yield (
            f"user {account.user} may log in only from {allowed}, but no client has such an address"
        )


def _mapped(network: Network) -> Network | None:
    """Return the IPv4 network of an IPv4-mapped network, which never matches a client's address."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return ip_network(f"{mapped}/{network.prefixlen - 96}") if mapped else None


def _has_no_clients(network: Network) -> bool:
    return network.is_multicast or network.is_unspecified


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _client_networks(config: Configuration) -> list[Network]:
    """Return the networks from which clients can connect, according to the configuration."""
    server = config.server
    if server.proxy_from or server.xclient_from or server.listen == Server().listen:
        return list(_EVERYWHERE)  # a proxy or a systemd socket unit may accept from anywhere
    return [each for text in server.listen for each in _sources(Address.parse(text))]


def _sources(address: Address) -> Iterator[Network]:
    networks = _LOOPBACK if address.is_local else _EVERYWHERE
    try:
        version = ip_address(address.host).version
    except ValueError:  # the host is a name, or empty for all addresses
        version = None
    is_dual = version is None or address.host == "::"
    return (each for each in networks if is_dual or each.version == version)
