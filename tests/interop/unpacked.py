"""Programs that cannot be installed together: .ci/run unpacks their packages into build/.

Each runs as if it were installed, in its own mount namespace with its own users.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .programs import missing, need, running

_BUILD = Path(__file__).parents[2] / "build"
MAIL = 8
"""User and group mail of Debian."""

_NAMESPACE = """
set -eu
mount -t tmpfs none /mnt
for each in etc usr var; do
    mkdir "/mnt/$each" "/mnt/$each.work"
    lower="/$each"
    if [ -d "{files}/$each" ]; then lower="{files}/$each:$lower"; fi
    mount -t overlay none "/$each" \\
        -o "lowerdir=$lower,upperdir=/mnt/$each,workdir=/mnt/$each.work"
done
mount -t tmpfs none /run
mount --bind {folder}/mail /var/mail
"""


@contextmanager
def unpacked(package: str, folder: Path, script: str) -> Iterator[None]:
    """Run ``script`` as root where the files of build/PACKAGE are in the system's places.

    /var/mail is ``folder``/mail; all other changes are gone afterwards, and so is each process.
    """
    if os.geteuid() != 0:
        missing("only root can make a mount namespace with another system in it")
    if not (_BUILD / package).is_dir():
        missing(f"there is no build/{package}; .ci/run shows what is unpacked there")
    mail = folder / "mail"
    mail.mkdir()
    mail.chmod(0o1777)
    before = _NAMESPACE.format(files=_BUILD / package, folder=folder)
    alone = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    command = (need("unshare"), *alone, "bash", "-c", before + script)
    with running(*command, last_signal=signal.SIGKILL):
        yield
