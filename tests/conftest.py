"""Real backends for the tests: started at first use, in folders and on ports of their own, ended by pid.

`valkey_url` and `nats_url` are one server each for the whole run: tests stay apart by `namespace`.  `mariadb_url` and
`sqlite_url` are a fresh database for each test; `new_mariadb` makes one for fixtures with a longer life.
"""

import itertools
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from meshim.deploy.embedded import Nats, Valkey
from scripts.harness.mesh.options import interrupt_on_sigterm
from tests.servers import MariaDB, running

# The same examples in every run, and no time limit on one: it would fail on a busy machine.
settings.register_profile(
    "meshim", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("meshim")

_count = itertools.count(1)

# bin/test ends a run with SIGTERM: as with Ctrl-C, fixtures then end their servers and remove their folders.
interrupt_on_sigterm()
# A shell lets what it starts in the background ignore SIGINT.  The processes of tests must not inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    # Not tmp_path: the path of a Unix socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="meshim-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def valkey_url(servers_folder: Path) -> Iterator[str]:
    with running(Valkey(servers_folder / "valkey")) as server:
        yield server.url


@pytest.fixture(scope="session")
def nats_url(servers_folder: Path) -> Iterator[str]:
    with running(Nats(servers_folder / "nats")) as server:
        yield server.url


@pytest.fixture(scope="session")
def mariadb(servers_folder: Path) -> Iterator[MariaDB]:
    database = MariaDB(servers_folder / "mariadb")
    with running(database):
        yield database


@pytest.fixture(scope="session")
def new_mariadb(mariadb: MariaDB) -> Callable[[], str]:
    """Make an empty database and return its URL."""
    return lambda: mariadb.create(f"test_{next(_count)}")


@pytest.fixture
def mariadb_url(new_mariadb: Callable[[], str]) -> str:
    return new_mariadb()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'meshim.db'}"


@pytest.fixture
def namespace() -> str:
    """A prefix of keys, subjects and streams that no other test uses."""
    return f"test{next(_count)}"
