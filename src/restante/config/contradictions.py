"""Find options that contradict or require each other, and secrets that other users can read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..server.address import Address
from .schema import TLS, Auth, Configuration, Server


def contradictions(config: Configuration) -> Iterator[str]:
    """Yield an error, beginning with the key, for each contradiction and each missing option."""
    yield from _proxy_contradictions(config.server)
    yield from _tls_contradictions(config.tls)
    yield from _auth_contradictions(config.auth)
    for address in config.metrics.listen:
        if not (Address.parse(address).is_local or config.metrics.allow_from):
            yield (
                f"metrics.listen: other machines can reach {address}, which requires "
                "metrics.allow_from, the networks of these machines"
            )
    for name, account in config.account.items():
        for key in ("url", "user", "to"):
            if not getattr(account, key):
                yield f"account.{name}.{key}: this option is required"
    if config.source is None:
        intake = config.intake
        for key, addresses in (
            ("server.listen", config.server.listen),
            ("intake.lmtp.listen", intake.lmtp.listen),
            ("intake.smtp.listen", intake.smtp.listen),
            ("metrics.listen", config.metrics.listen),
        ):
            for address in addresses:
                if not Address.parse(address).is_local:
                    yield f"{key}: {address} is public, which requires a configuration file"


def _proxy_contradictions(server: Server) -> Iterator[str]:
    for address in server.tls_at_proxy:
        if address not in server.listen:
            yield f"server.tls_at_proxy: {address} is not in server.listen"
    if server.tls_at_proxy and not server.proxy_from:
        yield "server.tls_at_proxy: this option requires server.proxy_from, the proxy addresses"


def _tls_contradictions(tls: TLS) -> Iterator[str]:
    if tls.mode == "files" and not (tls.cert and tls.key):
        yield 'tls.mode: "files" requires tls.cert and tls.key'
    for key in ("cert", "key"):
        if tls.mode == "self" and getattr(tls, key):
            yield f'tls.{key}: this option requires tls.mode = "files"'


def _auth_contradictions(auth: Auth) -> Iterator[str]:
    if not set(auth.chain) - {"oauth"}:
        yield "auth.chain: must contain a back end for passwords in addition to oauth"
    for section in (name.replace("-", "_") for name in auth.chain):
        values = getattr(auth, section)
        for key in getattr(values, "REQUIRED", ()):
            if not getattr(values, key):
                yield f"auth.{section}.{key}: this option is required"
    if "oauth" in auth.chain:
        oauth = auth.oauth
        if bool(oauth.jwks) == bool(oauth.introspection):
            yield "auth.oauth.jwks: set either this or auth.oauth.introspection"
        required = ["issuer", "audience", "claim"]
        required += ["client_id", "client_secret"] if oauth.introspection else ["algorithms"]
        for key in required:
            if not getattr(oauth, key):
                yield f"auth.oauth.{key}: this option is required"


def readable_secrets(path: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield an error for each secret in a configuration file that other users can read."""
    accounts = values.get("account", {})
    secrets = {}
    for name, account in accounts.items():
        secrets[f"account.{name}.password"] = account.password
        secrets[f"account.{name}.to_password"] = account.to_password
        secrets[f"account.{name}.oauth.client_secret"] = account.oauth.client_secret
        secrets[f"account.{name}.to_oauth.client_secret"] = account.to_oauth.client_secret
    if auth := values.get("auth"):
        secrets["auth.ldap.bind_password"] = auth.ldap.bind_password
        secrets["auth.oauth.client_secret"] = auth.oauth.client_secret
    if alert := values.get("alert"):
        secrets["alert.webhook"] = alert.webhook
    for key, secret in secrets.items():
        if secret.kind == "text" and secret:
            yield f"{key}: other users can read this file. Run: chmod 600 {path}"
