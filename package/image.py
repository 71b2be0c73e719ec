"""Build a container image from scratch: Debian's Python, restante and its libraries, no shell.

It contains what the Debian package contains, so that package must have been built before.
"""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import restante

from .common import BUILD, DIST, checksum, debian_sources, run, source_date

RELEASE = "bookworm"
BASE = (
    *("base-files", "libc6", "python3-minimal", "libpython3.11-stdlib", "libssl3"),
    *("libsqlite3-0", "libffi8", "zlib1g", "libexpat1", "ca-certificates", "netbase", "tzdata"),
)
_LEFT_OUT = ("doc/*", "man/*", "locale/*", "info/*")
_PROGRAMS = ("python3", "python3.11", "restante")
"""All programs in the image; what an attacker could use is not there."""
ENVIRONMENT = {
    "PATH": "/usr/bin",
    "HOME": "/data",
    "XDG_STATE_HOME": "/data",
    "RESTANTE_CONFIG": "/data/restante.toml",
    "container": "oci",  # as podman and systemd set it; `restante init` uses it
}
USER = "10001:10001"
"""User and group id; a number, so that an orchestrator can see that it is not root."""
COMMAND = ["serve"]
HEALTH_CHECK = ["CMD", "/usr/bin/restante", "status", "--exit-code"]


def build() -> list[Path]:
    """Return the path of an archive that ``docker load`` and ``podman load`` read.

    The archive is written here and not by a tool such as buildah, because buildah writes random
    names into it, and two builds would differ.
    """
    root = BUILD / "image"
    _make_root(root)
    for old in DIST.glob("restante_*_image.tar*"):
        old.unlink()
    target = DIST / f"restante_{restante.__version__}_image.tar"
    layer = BUILD / "layer.tar"
    _pack(layer, root, ".")
    parts = BUILD / "image-archive"
    shutil.rmtree(parts, ignore_errors=True)
    (parts / "layer").mkdir(parents=True)
    shutil.move(layer, parts / "layer/layer.tar")
    config = json.dumps(_config(checksum(parts / "layer/layer.tar")), sort_keys=True)
    (parts / "config.json").write_text(config)
    manifest = {
        "Config": "config.json",
        "RepoTags": [f"restante:{restante.__version__}"],
        "Layers": ["layer/layer.tar"],
    }
    (parts / "manifest.json").write_text(json.dumps([manifest]))
    _pack(target, parts, "manifest.json", "config.json", "layer")
    run("gzip", "-n", target)
    return [target.with_name(f"{target.name}.gz")]


def _config(layer: str) -> dict[str, object]:
    """Return the configuration (Docker Image Specification v1.3) of an image with one layer.

    OCI's specification has no health check.
    """
    created = datetime.fromtimestamp(int(source_date()), UTC).isoformat()
    labels = {"title": "restante", "version": restante.__version__, "licenses": "Apache-2.0"}
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": created,
        "config": {
            "User": USER,
            "WorkingDir": "/data",
            "Volumes": {"/data": {}},
            "ExposedPorts": {"1995/tcp": {}},
            "Env": [f"{name}={value}" for name, value in ENVIRONMENT.items()],
            "Entrypoint": ["/usr/bin/restante"],
            "Cmd": COMMAND,
            "StopSignal": "SIGTERM",
            "Healthcheck": {"Test": HEALTH_CHECK, "Interval": 30 * 10**9},  # in nanoseconds
            "Labels": {f"org.opencontainers.image.{name}": text for name, text in labels.items()},
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
        "history": [{"created": created, "comment": f"restante {restante.__version__}"}],
    }


def _pack(target: Path, directory: Path, *names: str) -> None:
    """Write a tar file that depends only on the content, owners and modes of the files."""
    same = ("--format=gnu", "--sort=name", "--numeric-owner", f"--mtime=@{source_date()}")
    run("tar", *same, "-C", directory, "-cf", target, *names)


def _make_root(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{pattern}" for pattern in _LEFT_OUT]
    include = f"--include={','.join(BASE)}"
    copyrights = "--dpkgopt=path-include=/usr/share/doc/*/copyright"
    options = ["--quiet", "--variant=extract", "--mode=root", include, *excluded, copyrights]
    run("mmdebstrap", *options, RELEASE, root, *debian_sources())
    (deb,) = DIST.glob("restante_*.deb")
    run("dpkg-deb", "-x", deb, root)
    # No scripts of packages run, so their results are written here.
    number, _, group = USER.partition(":")
    etc = root / "etc"
    (etc / "passwd").write_text(
        f"root:x:0:0:root:/:/usr/sbin/nologin\nrestante:x:{number}:{group}::/data:/usr/sbin/nologin\n"
    )
    (etc / "group").write_text(f"root:x:0:\nrestante:x:{group}:\n")
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = etc / "ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_bytes(b"".join(path.read_bytes() for path in certificates))
    shutil.rmtree(root / "dev")  # the container's own
    for name in ("dev", "data"):
        (root / name).mkdir()
    shutil.chown(root / "data", int(number), int(group))
    # The hash of a source file, not its time, decides whether its byte code is valid.
    compileall = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    run("chroot", root, "/usr/bin/python3", *compileall, "/usr/lib/restante", "/usr/lib/python3.11")
    for directory in ("bin", "sbin", "usr/bin", "usr/sbin"):
        for path in (root / directory).iterdir():
            if path.name not in _PROGRAMS:
                path.unlink()
