"""Debian's slapd with its own directory in a temporary folder."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from restante import tls

from .programs import need, running

BASE = "ou=people,dc=example,dc=org"
SERVICE = "cn=restante,dc=example,dc=org"
_PATIENCE = 10.0  # seconds

_CONFIGURATION = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {folder}/pid
argsfile {folder}/args
TLSCertificateFile {certificate}
TLSCertificateKeyFile {key}
database mdb
suffix dc=example,dc=org
directory {folder}/database
rootdn cn=admin,dc=example,dc=org
rootpw admin
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="{service}" read by anonymous auth by * none
"""

_ENTRIES = """
dn: dc=example,dc=org
objectClass: domain
dc: example

dn: {service}
objectClass: person
cn: restante
sn: restante
userPassword: search

dn: {base}
objectClass: organizationalUnit
ou: people

dn: uid=mrose,{base}
objectClass: inetOrgPerson
uid: mrose
cn: Marshall Rose
sn: Rose
mail: mrose@example.org
userPassword: {{SSHA}}TExMsgrGVvoOnwo7o+EyPVdJQRlzYWx0c2FsdA==

dn: uid=star\\2a,{base}
objectClass: inetOrgPerson
uid: star*
cn: Star
sn: Star
userPassword: tan staaf

dn: cn=Twin One,{base}
objectClass: inetOrgPerson
uid: twin
cn: Twin One
sn: One
userPassword: tan staaf

dn: cn=Twin Two,{base}
objectClass: inetOrgPerson
uid: twin
cn: Twin Two
sn: Two
userPassword: tan staaf

dn: uid=mueller,{base}
objectClass: inetOrgPerson
uid:: bcO8bGxlcg==
cn: Mueller
sn: Mueller
userPassword:: cMOkc3N3w7ZyZA==

dn: uid=open,{base}
objectClass: inetOrgPerson
uid: open
cn: Without password
sn: Open
"""


@dataclass
class Slapd:
    """Where it listens."""

    port: int
    tls_port: int
    certificate: Path


@contextmanager
def slapd(folder: Path) -> Iterator[Slapd]:
    program, loader = need("slapd"), need("slapadd")
    certificate, key = tls.make_self_signed(folder / "tls", ["localhost", "127.0.0.1", "127.0.0.2"])
    port, tls_port = _free_port(), _free_port()
    (folder / "database").mkdir()
    configuration, entries = folder / "slapd.conf", folder / "entries.ldif"
    names = {"folder": folder, "certificate": certificate, "key": key, "service": SERVICE}
    configuration.write_text(_CONFIGURATION.format(**names))
    entries.write_text(_ENTRIES.format(base=BASE, service=SERVICE))
    subprocess.run([loader, "-f", configuration, "-l", entries], check=True, capture_output=True)
    where = f"ldap://127.0.0.1:{port}/ ldap://127.0.0.2:{port}/ ldaps://127.0.0.1:{tls_port}/"
    with running(program, "-d", "0", "-f", configuration, "-h", where):
        _wait(port)
        yield Slapd(port, tls_port, certificate)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _wait(port: int) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            with closing(socket.create_connection(("127.0.0.1", port), 1)):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
