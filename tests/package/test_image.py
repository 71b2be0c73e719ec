"""The container image: its configuration, and the demonstration as an unprivileged user."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import restante
from package import common, image

from ..docs.test_pages import blocks, commands
from . import booted
from .conftest import build

pytestmark = [pytest.mark.package, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def archive(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, uncompressed, because Debian 12's skopeo does not read it otherwise."""
    assert deb.exists()  # the image takes its content from it
    build("image")
    target = tmp_path_factory.mktemp("archive") / "image.tar"
    with gzip.open(path()) as packed, open(target, "wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    return target


def path() -> Path:
    (only,) = common.DIST.glob("restante_*_image.tar.gz")
    return only


@pytest.fixture(scope="session")
def bundle(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image, unpacked for crun."""
    return unpacked(archive, tmp_path_factory.mktemp("image"))


def unpacked(archive: Path, directory: Path) -> Path:
    common.run("skopeo", "copy", "-q", f"docker-archive:{archive}", f"oci:{directory}/oci:restante")
    common.run("umoci", "unpack", "--image", f"{directory}/oci:restante", directory / "bundle")
    return directory / "bundle"


def configuration(archive: Path) -> dict[str, Any]:
    command = ["skopeo", "inspect", "--config", "--raw", f"docker-archive:{archive}"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    config: dict[str, Any] = json.loads(shown)["config"]
    return config


def test_two_builds_are_equal(archive: Path) -> None:
    assert archive.exists()
    before = common.checksum(path())
    build("image")
    assert common.checksum(path()) == before


def test_image_is_configured(archive: Path) -> None:
    config = configuration(archive)
    assert config["User"] == image.USER
    assert config["Entrypoint"] == ["/usr/bin/restante"]
    assert config["Cmd"] == image.COMMAND == ["serve"]
    assert config["WorkingDir"] == "/data"
    assert list(config["Volumes"]) == ["/data"]
    assert list(config["ExposedPorts"]) == ["1995/tcp"]
    assert config["Healthcheck"]["Test"] == image.HEALTH_CHECK


@pytest.fixture(scope="session")
def built(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image that contrib/Containerfile makes, with Debian in place of its base image."""
    assert deb.exists()  # built from the same wheels
    directory = tmp_path_factory.mktemp("containerfile")
    context, base, image = directory / "context", directory / "base", directory / "image.tar"
    (wheels,) = (common.BUILD / "deb").glob("restante-*/wheels")
    shutil.copytree(wheels, context / "wheels")
    for wheel in common.DIST.glob("restante-*.whl"):
        shutil.copy(wheel, context)
    include = "--include=python3-venv,ca-certificates"
    options = ("--quiet", "--variant=minbase", include, booted.RELEASE)
    common.run("mmdebstrap", *options, f"{base}.tar", *common.debian_sources())
    storage = ("--root", directory / "root", "--runroot", directory / "run")
    buildah = ("buildah", *storage, "--storage-driver", "vfs")
    base.mkdir()
    (base / "Containerfile").write_text("FROM scratch\nADD base.tar /\n")
    shutil.move(f"{base}.tar", base)
    build = (*buildah, "bud", "--quiet", "--isolation", "chroot", "--pull-never")
    common.run(*build, "--format", "docker", "--tag", "base", base)
    file = common.ROOT / "contrib/Containerfile"
    settings = ("--build-arg", "BASE=localhost/base", "--file", file, "--tag", "restante")
    common.run(*build, "--format", "docker", *settings, context)
    common.run(*buildah, "push", "--quiet", "restante", f"docker-archive:{image}")
    return image


def test_containerfile_makes_an_equal_image(archive: Path, built: Path) -> None:
    ours, theirs = configuration(archive), configuration(built)
    same = "User Entrypoint Cmd WorkingDir Volumes ExposedPorts StopSignal Healthcheck"
    for name in same.split():
        assert theirs[name] == ours[name], name
    variables = {f"{name}={value}" for name, value in image.ENVIRONMENT.items() if name != "PATH"}
    assert variables <= set(ours["Env"]) & set(theirs["Env"])


def test_demonstration_runs_in_the_image_of_the_containerfile(built: Path, tmp_path: Path) -> None:
    contained(unpacked(built, tmp_path), "demo")
    name = f"restante-containerfile-{os.getpid()}"
    assert "restored" in crun(tmp_path / "bundle", f"$crun run {name}").lower()


def test_image_has_no_other_program(bundle: Path) -> None:
    root = bundle / "rootfs"
    found = [
        path for place in ("bin", "sbin", "usr/bin", "usr/sbin") for path in root.glob(f"{place}/*")
    ]
    assert sorted(path.name for path in found) == ["python3", "python3.11", "restante"]
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in files if path.stat().st_mode & 0o6000] == []


def contained(bundle: Path, *arguments: str, data: Path | None = None) -> None:
    """Configure the bundle: no privileges, a read-only root, and memory or ``data`` for /data."""
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    config["root"]["readonly"] = True
    process = config["process"]
    process.update(terminal=False, noNewPrivileges=True, args=["/usr/bin/restante", *arguments])
    process["capabilities"] = {}
    # Its own network: the ports are free.
    config["linux"]["namespaces"] = [
        *(each for each in config["linux"]["namespaces"] if each["type"] != "network"),
        {"type": "network"},
    ]
    memory = {"type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]}
    bound = {"type": "bind", "source": str(data), "options": ["bind", "rw"]}
    config["mounts"] = [
        *(each for each in config["mounts"] if each["destination"] not in ("/tmp", "/data")),
        {"destination": "/tmp", **memory},
        {"destination": "/data", **(bound if data else memory)},
    ]
    path.write_text(json.dumps(config))


def crun(bundle: Path, script: str) -> str:
    """Run a shell script in which ``$crun`` is crun, and return its output."""
    # crun refuses this machine's mixture of cgroup versions, so it gets a name space of its own.
    prepare = (
        "mount --make-rprivate /; umount -R /sys/fs/cgroup || umount -l /sys/fs/cgroup;"
        " mount -t cgroup2 none /sys/fs/cgroup; crun='crun --cgroup-manager=disabled'"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-ec", f"set +e; {prepare}; set -e; cd '{bundle}'; {script}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_demonstration_runs_without_privileges(bundle: Path) -> None:
    contained(bundle, "demo")
    assert "restored" in crun(bundle, f"$crun run restante-demo-{os.getpid()}").lower()


def test_server_that_init_has_set_up_is_healthy(bundle: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    user, _, group = image.USER.partition(":")
    shutil.chown(data, int(user), int(group))
    contained(bundle, "init", "ann@example.org", "--yes", "--mail", "smtp", data=data)
    assert "shown only once" in crun(bundle, f"$crun run restante-init-{os.getpid()}")
    assert 'listen = ["pop3s://[::]:1995"]' in (data / "restante.toml").read_text()
    contained(bundle, *image.COMMAND, data=data)
    check = " ".join(image.HEALTH_CHECK[1:])
    name = f"restante-{os.getpid()}"
    output = crun(
        bundle,
        f'trap "$crun delete --force {name}" EXIT;'
        f" $crun run -d {name} > log 2>&1 || {{ cat log; exit 1; }};"
        f' exec="$crun exec --user {image.USER} {name}"; n=0; until $exec {check}; do'
        " n=$((n+1)); [ $n -lt 100 ] || { cat log; exit 1; }; sleep 0.2; done;"
        " printf 'secret-of-bob\\n' | $exec /usr/bin/restante user add bob@example.org;"
        f" $exec /usr/bin/restante status",
    )
    assert "Created user bob@example.org" in output


PAGE = common.ROOT / "docs/howto/containers.md"
NAME = f"restante-page-{os.getpid()}"


def on_page(beginning: str) -> list[list[str]]:
    """Return the arguments for restante in the commands of the page that begin so."""
    lines = [line for name, text in blocks(PAGE) if name == "console" for line in commands(text)]
    chosen = (shlex.split(line) for line in lines if line.startswith(beginning))
    return [words[words.index(f"restante:{restante.__version__}") + 1 :] for words in chosen]


def test_commands_of_the_page_work_with_the_image(bundle: Path, tmp_path: Path) -> None:
    """crun in place of an engine: docker run --rm, docker run --detach, docker exec."""
    lines = [line for name, text in blocks(PAGE) if name == "console" for line in commands(text)]
    init, restore = on_page("docker run --rm")
    (serve,) = on_page("docker run --detach")
    assert serve == []
    prefix = "docker exec restante restante "
    executed = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    assert [line.split()[0] for line in executed] == ["user", "status", "backup"]
    data = tmp_path / "data"
    data.mkdir()
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9"]
    make += ["-subj", "/CN=mail.example.org", "-addext", "subjectAltName=DNS:mail.example.org"]
    files = {"-out": data / "fullchain.pem", "-keyout": data / "privkey.pem"}
    common.run(*make, *(each for pair in files.items() for each in pair))
    user, _, group = image.USER.partition(":")
    for path in (data, *data.iterdir()):
        shutil.chown(path, int(user), int(group))
    contained(bundle, *init, data=data)
    assert "shown only once" in crun(bundle, f"$crun run {NAME}")
    contained(bundle, *image.COMMAND, data=data)
    check = " ".join(image.HEALTH_CHECK[1:])
    script = (
        f'trap "$crun delete --force {NAME}" EXIT; $crun run -d {NAME} > log 2>&1;'
        f' exec="$crun exec --user {image.USER} {NAME}"; n=0; until $exec {check}; do'
        " n=$((n+1)); [ $n -lt 100 ] || { cat log; exit 1; }; sleep 0.2; done;"
    )
    crun(bundle, script + ";".join(f" $exec /usr/bin/restante {each}" for each in executed))
    shutil.rmtree(data / "restante")
    (data / "restante.toml").unlink()
    contained(bundle, *restore, data=data)
    crun(bundle, f"$crun run {NAME}")
    contained(bundle, *image.COMMAND, data=data)
    users = crun(bundle, f"{script} $exec /usr/bin/restante user list")
    assert "ann@example.org" in users
    assert "bob@example.org" in users
