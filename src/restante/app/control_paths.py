"""The paths of the control sockets."""

from __future__ import annotations

from pathlib import Path


def folder_of(runtime: Path) -> Path:
    """Return the directory of the control sockets below the runtime directory."""
    return runtime / "control"


def socket_of(runtime: Path, worker: int) -> Path:
    """Return the path of the control socket of a worker."""
    return folder_of(runtime) / f"{worker}.sock"
