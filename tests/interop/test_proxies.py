"""Proxies in front of our server: the client they report, and TLS at the proxy."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from pathlib import Path

import pytest

from restante import tls
from restante.store.memory import MemoryStore

from ..support import LOOPBACK, Client, Run, serving
from .dovecot import dovecot, free_ports
from .programs import need, running
from .relays import guide

pytestmark = pytest.mark.interop

HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 20s
    timeout server 20s
listen passing
    bind 127.0.0.1:{passing}
    server restante 127.0.0.1:{port} {header}
listen ending_tls
    bind 127.0.0.1:{ending} ssl crt {certificate}
    server restante 127.0.0.1:{port} send-proxy-v2-ssl
"""


async def through(port: int, context: ssl.SSLContext | None) -> Client:
    """Connect through the proxy, once it listens, from an address used only here."""
    async with asyncio.timeout(10):
        while True:
            try:
                return Client(
                    *await asyncio.open_connection(
                        "127.0.0.1",
                        port,
                        ssl=context,
                        server_hostname="localhost" if context else None,
                        local_addr=("127.0.0.5", 0),
                    )
                )
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "header", ["send-proxy", "send-proxy-v2 proxy-v2-options crc32c,unique-id"]
)
@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.rfc("P-181", "P-182", "P-183", "P-184")
def test_haproxy_reports_the_client(
    header: str,
    implicit: bool,
    tmp_path: Path,
    run: Run[None],
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With TLS passed through, and with TLS that ends there, when plaintext logins are allowed."""
    caplog.set_level(logging.INFO)
    program = need("haproxy")
    made, key = tls.make_self_signed(tmp_path, ["localhost"])
    together = tmp_path / "both.pem"
    together.write_bytes(made.read_bytes() + key.read_bytes())
    passing, ending = free_ports(2)

    async def main() -> None:
        async with serving(
            MemoryStore(), tls=server_tls, implicit=implicit, clear=False, proxy_from=LOOPBACK
        ) as server:
            where = {"passing": passing, "ending": ending, "port": server.port}
            text = HAPROXY.format(certificate=together, header=header, **where)
            (tmp_path / "haproxy.cfg").write_text(text)
            start = (program, "-db", "-f", tmp_path / "haproxy.cfg")
            with running(*start, last_signal=signal.SIGKILL):
                if implicit:
                    client = await through(passing, client_tls)
                else:
                    client = await through(ending, tls.client_context(made))
                assert (await client.line()).startswith(b"+OK")
                await client.log_in()
                client.writer.transport.abort()

    run(main())
    (fields,) = (vars(each)["fields"] for each in caplog.records if each.getMessage() == "login ok")
    assert (fields["ip"], fields["proxy"]) == ("127.0.0.5", "127.0.0.1")
    assert fields["tls"] == "1.3"


NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr;
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
events {{ }}
{block}"""
STUNNEL = "foreground = yes\npid =\ndebug = err\n{block}"


def by_the_guide(program: str, *, ends: bool, folder: Path, **ports: int) -> list[str | Path]:
    """Return the command of a proxy with the configuration of our guide, and its certificate."""
    blocks = guide("TLS ends at the proxy" if ends else "TLS passes through", page="load-balancer")
    (block,) = (
        each
        for each in blocks
        if ("stream {" in each) == (program == "nginx") and "mode tcp" not in each
    )
    made, key = tls.make_self_signed(folder, ["localhost"])
    for old, new in (
        ("192.0.2.20:1100", f"127.0.0.1:{ports['server']}"),
        ("192.0.2.20:995", f"127.0.0.1:{ports['server']}"),
        ("listen 995", f"listen 127.0.0.1:{ports['proxy']}"),
        ("accept = 995", f"accept = 127.0.0.1:{ports['proxy']}"),
        ("/etc/ssl/fullchain.pem", str(made)),
        ("/etc/ssl/private/key.pem", str(key)),
    ):
        block = block.replace(old, new)
    control = folder / "proxy.conf"
    control.write_text(
        {"nginx": NGINX, "stunnel": STUNNEL}[program].format(block=block, folder=folder)
    )
    return [need(program), *(["-c"] * (program == "nginx")), control]


@pytest.mark.parametrize(
    ("program", "ends", "tls_at_proxy", "logged"),
    [
        ("nginx", False, False, "1.3"),
        ("nginx", True, True, "proxy"),
        ("nginx", True, False, None),
        ("stunnel", True, True, "proxy"),
        ("stunnel", True, False, None),
    ],
)
def test_nginx_and_stunnel_as_documented(
    program: str,
    ends: bool,
    tls_at_proxy: bool,
    logged: str | None,
    tmp_path: Path,
    run: Run[None],
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """``logged`` is the TLS version of the login; None if it is refused for lack of TLS."""
    caplog.set_level(logging.INFO)
    (port,) = free_ports(1)

    async def main() -> None:
        async with serving(
            MemoryStore(),
            tls=server_tls,
            implicit=not ends,
            clear=False,
            proxy_from=LOOPBACK,
            tls_at_proxy=tls_at_proxy,
        ) as server:
            start = by_the_guide(
                program, ends=ends, folder=tmp_path, server=server.port, proxy=port
            )
            with running(*start, last_signal=signal.SIGKILL):
                trusted = tls.client_context(tmp_path / "certificate.pem") if ends else client_tls
                client = await through(port, trusted)
                assert (await client.line()).startswith(b"+OK")
                client.send(b"USER mrose\r\nPASS tan staaf\r\n")
                await client.line()
                assert (await client.line()).startswith(b"-ERR" if logged is None else b"+OK")
                client.writer.transport.abort()

    run(main())
    found = [vars(each)["fields"] for each in caplog.records if each.getMessage() == "login ok"]
    seen = [(fields["tls"], fields["ip"], fields["proxy"]) for fields in found]
    assert seen == ([] if logged is None else [(logged, "127.0.0.5", "127.0.0.1")])


def test_dovecots_proxy_names_the_client(
    run: Run[None], server_tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    """By XCLIENT; Dovecot 2.3 does not report TLS, so that of the connection counts."""
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with serving(
            MemoryStore(), tls=server_tls, implicit=True, clear=False, xclient_from=LOOPBACK
        ) as server:
            fields = f"proxy=y host=127.0.0.1 port={server.port} ssl=any-cert"
            with dovecot(fields=fields) as front:
                client = await through(front.ports["pop3s"], tls.client_context(front.ca))
                assert (await client.line()).startswith(b"+OK")
                await client.log_in()
                assert await client.ask(b"STAT") == b"+OK 0 0"
                client.writer.transport.abort()

    run(main())
    (found,) = (vars(each)["fields"] for each in caplog.records if each.getMessage() == "login ok")
    assert (found["ip"], found["proxy"]) == ("127.0.0.5", "127.0.0.1")
