"""CPython's own tests of poplib, run with our module in its place.

They come with Python, in Debian as libpython3.11-testsuite.  Their server has an untrusted
certificate, and a time stamp that is not a Message-ID: for these tests two documented attributes
are changed, as programs may do.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.interop

PROGRAM = """
import re, ssl, sys, unittest
from restante import poplib
poplib.POP3.default_context = staticmethod(ssl._create_stdlib_context)
poplib.POP3.timestamp = re.compile(rb"<[!-;=?-~]+>")
sys.modules["poplib"] = poplib
unittest.main("test.test_poplib", argv=["test_poplib", "-v"])
"""


@pytest.mark.timeout(120)
def test_poplib_of_the_standard_library() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"Ran (\d+) tests", done.stderr)
    assert found is not None
    assert int(found[1]) > 60
    assert "skipped" not in done.stderr
