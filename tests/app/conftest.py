"""The application is tested through the command line, with the fixtures of its tests."""

from ..cli.conftest import ann as ann
from ..cli.conftest import home as home
from ..cli.conftest import restante as restante
from ..cli.conftest import state as state
