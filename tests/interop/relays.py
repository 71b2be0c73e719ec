"""Mail servers in front of ours, configured by our guide."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .dovecot import await_port, free_ports
from .unpacked import unpacked

_GUIDES = Path(__file__).parents[2] / "docs/howto"
CONCURRENCY = 12  # most deliveries at once: Exim begins ten in a connection, and one besides

_POSTFIX = """
mkdir -p /var/spool/postfix/restante
mount --bind {folder}/lmtp /var/spool/postfix/restante
echo 'restante:x:906:906::/:/bin/false' >> /etc/passwd
echo 'postfix:x:904:904::/:/bin/false' >> /etc/passwd
printf 'postfix:x:904:\\npostdrop:x:905:\\n' >> /etc/group
{commands}
cp /usr/share/postfix/main.cf.debian /etc/postfix/main.cf
cat >> /etc/postfix/main.cf <<'END'
{lines}
# For the test: it is the only server of this machine, and tries again soon.
myhostname = mx.example.net
mydestination =
inet_interfaces = 127.0.0.1
minimal_backoff_time = 1s
maximal_backoff_time = 2s
lmtp_destination_concurrency_limit = {concurrency}
maillog_file = /var/mail/log
maillog_file_prefixes = /var
END
sed 's/^smtp  *inet/127.0.0.1:{port} inet/' /usr/share/postfix/master.cf.dist \\
    > /etc/postfix/master.cf
postfix set-permissions > /dev/null 2>&1 || true  # of files that this system has not
postfix start
while sleep 0.3; do
    postqueue -f
    postqueue -p > /var/mail/queue.new
    mv /var/mail/queue.new /var/mail/queue
done
"""

_EXIM = """
echo 'Debian-exim:x:907:907::/var/spool/exim4:/bin/false' >> /etc/passwd
echo 'Debian-exim:x:907:' >> /etc/group
mkdir -p /etc/exim4 /var/spool/exim4 /var/log/exim4
chown Debian-exim:Debian-exim /var/spool/exim4 /var/log/exim4
cat > /etc/exim4/exim4.conf <<'END'
{main}
# For the test: it is the only server of this machine.
primary_hostname = mx.example.net
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
acl_smtp_rcpt = acl_check_rcpt
log_file_path = /var/log/exim4/%slog
begin acl
acl_check_rcpt:
{acl}
accept
  domains = example.org
begin routers
{router}
begin transports
{transport}
begin retry
* * F,1h,1s
END
exim4 -bd &  # its parent is process 1 here, so it stays in the foreground
while sleep 0.3; do
    exim4 -qff
    exim4 -bp > /var/mail/queue.new
    mv /var/mail/queue.new /var/mail/queue
done
"""


def guide(heading: str, language: str = "text", page: str = "first-server") -> list[str]:
    """Return the blocks below a heading of a guide."""
    part = re.split(r"^## ", (_GUIDES / f"{page}.md").read_text(), flags=re.MULTILINE)
    (found,) = (each for each in part if each.startswith(f"{heading}\n"))
    return re.findall(rf"^```{language}\n(.*?)^```$", found, re.MULTILINE | re.DOTALL)


class Relay:
    """A running mail server."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self._queue = folder / "mail/queue"

    def drain(self, seconds: float) -> None:
        """Wait until its queue is empty."""
        until = time.monotonic() + seconds
        self._queue.unlink(missing_ok=True)  # the list may be older than the last message
        queue = None
        while queue not in ("", "Mail queue is empty"):
            assert time.monotonic() < until, queue
            time.sleep(0.05)
            if self._queue.exists():
                queue = self._queue.read_text().strip()


@contextmanager
def postfix(folder: Path, address: str) -> Iterator[Relay]:
    """Run Postfix; ``address``: of our server, if not by TCP."""
    (lines,) = guide("Postfix")
    commands = [
        line
        for block in guide("Install", "console")
        for line in block.splitlines()
        if "/var/spool/postfix" in line
    ]
    (folder / "lmtp").mkdir(exist_ok=True)
    (port,) = free_ports(1)
    script = _POSTFIX.format(
        folder=folder,
        port=port,
        lines=lines,
        commands="\n".join(commands),
        concurrency=CONCURRENCY,
    )
    with unpacked("postfix", folder, script):
        await_port(port)
        yield Relay(port, folder)


@contextmanager
def exim(folder: Path, address: str) -> Iterator[Relay]:
    main, acl, router, transport = guide("Exim instead of Postfix")
    assert "2424" in transport
    transport = transport.replace("2424", address.rpartition(":")[2])
    (port,) = free_ports(1)
    script = _EXIM.format(main=main, acl=acl, router=router, transport=transport, port=port)
    with unpacked("exim", folder, script):
        await_port(port)
        yield Relay(port, folder)


RELAYS = {"postfix": postfix, "exim": exim}
