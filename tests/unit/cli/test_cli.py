"""The command line: every error is one sentence and an exit code."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import rich_click as click

from meshim import __main__ as program
from meshim import topology
from meshim.cli import main as command_line
from meshim.cli.next_step import next_step
from meshim.deploy import supervisor
from meshim.deploy.state import DataFolder
from meshim.errors import BackendUnavailable, UsageError
from meshim.runtime.sockets import key_file
from meshim.topology import Backends, Security

_PLACEHOLDER = "mysql+pymysql://meshim:change-me@127.0.0.1:3306/meshim"

Meshim = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """Restore the umask: the command changes that of its process, here of all tests."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def meshim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Meshim:
    """Run `meshim ARGUMENTS` in an empty folder; returns exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["meshim", *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        code = ended.value.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Add a command `meshim fail` that raises an error."""

    def install(error: BaseException) -> None:
        @click.command("fail")
        def fail() -> None:
            raise error

        monkeypatch.setitem(command_line.cli.commands, "fail", fail)

    return install


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["conector"], 2, "No such command 'conector'. Did you mean 'connector'? Try `meshim --help`."),
        (["status", "--jsn"], 2, "No such option '--jsn'. Did you mean '--json'? Try `meshim status --help`."),
        (["connector"], 2, "Missing argument 'NAME'. Try `meshim connector --help`."),
        (["topology", "check", "none.yaml"], 2, "none.yaml does not exist: name a topology file."),
        (["connector", "c9"], 2, "The topology has no connector named 'c9': choose one of c1, c2."),
        (["down"], 2, "No mesh runs on {}/data: start one with `meshim up`."),
        (["status"], 2, "No mesh runs on {}/data: start one with `meshim up`."),
        (["status", "--data", "x"], 2, "No mesh runs on {}/x: start one with `meshim up`."),
    ],
)
def test_wrong_usage_is_one_sentence(
    meshim: Meshim, tmp_path: Path, arguments: list[str], code: int, sentence: str
) -> None:
    assert meshim(*arguments) == (code, "", f"meshim: {sentence.format(tmp_path)}\n")


@pytest.mark.parametrize("command", [["send", "ann", "ben", "hi"], ["listen", "ann"], ["chat", "ann", "--to", "ben"]])
@pytest.mark.parametrize("password", [[], ["--password-stdin"]], ids=["prompt", "stdin"])
def test_a_state_file_needs_a_folder(
    meshim: Meshim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str], password: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("correct horse\n"))
    sentence = f"There is no folder {tmp_path}/statse for the state file: make it, or name another file."
    state = ["--state", "statse/ann.db"]
    assert meshim(*command, *state, *password, "--api", "http://127.0.0.1:9") == (2, "", f"meshim: {sentence}\n")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_the_default_state_file_is_made(
    meshim: Meshim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("correct horse\n"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home" / "state"))
    code, _, errors = meshim("listen", "ann", "--password-stdin", "--api", "http://127.0.0.1:9")
    assert (code, errors[:45]) == (1, "meshim: Cannot reach meshim at http://127.0.0")
    assert (tmp_path / "home" / "state" / "meshim").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["100%2Fdir", "a b", "?#;&$", "%", "ü"])
def test_the_name_of_the_data_folder_is_no_part_of_a_url(meshim: Meshim, tmp_path: Path, name: str) -> None:
    assert meshim("db", "upgrade", "--data", name) == (0, "The database is up to date.\n", "")
    assert (tmp_path / name / "meshim.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_data_folder_needs_a_folder_around_it(meshim: Meshim, tmp_path: Path) -> None:
    sentence = f"There is no folder {tmp_path}/dta for the data: make it, or choose other --data."
    assert meshim("db", "upgrade", "--data", "dta/mesh") == (2, "", f"meshim: {sentence}\n")
    assert list(tmp_path.iterdir()) == []


def test_status_json_without_a_mesh_is_stopped(meshim: Meshim, tmp_path: Path) -> None:
    code, output, errors = meshim("status", "--json")
    assert (code, errors) == (2, f"meshim: No mesh runs on {tmp_path}/data: start one with `meshim up`.\n")
    assert json.loads(output) == {
        "state": "stopped", "pid": None, "api": None, "data": f"{tmp_path}/data", "roles": [], "backends": [],
    }  # fmt: skip


def test_a_single_role_needs_urls_of_backends(meshim: Meshim) -> None:
    code, _, errors = meshim("transfer", "t1")
    assert code == 2
    assert "`$.backends.redis`: `embedded` works with `meshim up` only" in errors


@pytest.mark.parametrize(
    ("error", "code", "errors"),
    [
        (UsageError("Choose another name."), 2, "meshim: Choose another name.\n"),
        (BackendUnavailable("Redis does not answer."), 1, "meshim: Redis does not answer.\n"),
        (PermissionError(13, "Permission denied", "/data"), 1, "meshim: /data: Permission denied.\n"),
        (KeyboardInterrupt(), 130, "\n"),  # the line after ^C
    ],
)
def test_every_error_has_its_exit_code(
    meshim: Meshim, failing: Callable[[BaseException], None], error: BaseException, code: int, errors: str
) -> None:
    failing(error)
    assert meshim("fail") == (code, "", errors)


def test_ctrl_c_during_the_imports_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("meshim.compiled.use", interrupt)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 130


def test_an_unexpected_exception_is_raised(
    monkeypatch: pytest.MonkeyPatch, failing: Callable[[BaseException], None]
) -> None:
    failing(AssertionError("a bug"))
    monkeypatch.setattr(sys, "argv", ["meshim", "fail"])
    with pytest.raises(AssertionError, match="a bug"):
        command_line.main()


def test_a_valid_topology_is_summarised(meshim: Meshim, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(topology.dump(topology.default()))
    assert meshim("topology", "check", "good.yaml") == (
        0,
        "good.yaml is a topology: 2 connectors, 2 transfers, 1 writers, 1 rest.\n",
        "",
    )


def test_every_fault_and_every_warning_of_a_topology_is_listed(meshim: Meshim, tmp_path: Path) -> None:
    text = topology.dump(msgspec.structs.replace(topology.default(), backends=Backends(sql=_PLACEHOLDER)))
    file = tmp_path / "mesh.yaml"
    file.write_text(text)
    file.chmod(0o600)
    code, output, error = meshim("topology", "check", "mesh.yaml")
    assert (code, error) == (0, "")
    warning, summary = output.splitlines()
    assert warning == (
        "warning: The password 'change-me' is that of the example: choose another one - at `$.backends.sql`."
    )
    assert summary.startswith("mesh.yaml is a topology: ")
    file.write_text(text.replace("sweep_s: 30.0", "sweep_s: 0").replace("namespace:", "namespaze:"))
    code, output, error = meshim("topology", "check", "mesh.yaml")
    assert (code, error) == (2, "meshim: mesh.yaml is not a topology: 2 faults, see above.\n")
    assert [line.partition(": ")[0] for line in output.splitlines()] == ["fault", "fault"]
    assert "- at `$.timers.sweep_s`.\n" in output


def test_up_logs_each_warning_at_its_start(meshim: Meshim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(*_: object) -> None:
        """Start nothing."""

    monkeypatch.setattr(supervisor, "run", run)
    file = tmp_path / "topology.yaml"
    file.write_text(topology.dump(msgspec.structs.replace(topology.default(), backends=Backends(sql=_PLACEHOLDER))))
    file.chmod(0o644)
    code, _, error = meshim("up")
    assert code == 0
    assert [line.split()[1:5] for line in error.splitlines()] == [["warning", "mesh", "up", "suspicious-topology"]] * 2
    assert "is that of the example" in error
    assert "chmod 600 topology.yaml" in error


def test_the_exit_status_of_warnings_is_in_the_help(meshim: Meshim) -> None:
    help_text = " ".join(meshim("topology", "check", "--help")[1].split())
    assert "with warnings alone the exit status is 0" in help_text


def test_a_new_connector_key_is_made_once(meshim: Meshim, tmp_path: Path) -> None:
    code, output, errors = meshim("key", "new", "connector.key")
    public = key_file.load(tmp_path / "connector.key").public.decode()
    assert (code, errors) == (0, "")
    assert output == (
        f"connector.key holds a new key pair with the public key {public}: copy it to the host of every connector.\n"
    )
    again = "meshim: connector.key exists already, and clients may know its key: choose another name.\n"
    assert meshim("key", "new", "connector.key") == (2, "", again)


def test_a_connector_does_not_start_with_a_wrong_key_file(meshim: Meshim, tmp_path: Path) -> None:
    backends = Backends("redis://127.0.0.1:1/0", "nats://127.0.0.1:1", "sqlite:////nowhere.db")
    mesh = msgspec.structs.replace(
        topology.default(), backends=backends, security=Security(connector_key_file="connector.key")
    )
    (tmp_path / "mesh.yaml").write_text(topology.dump(mesh))
    missing = "does not exist: make it with `meshim key new connector.key`, once for all connectors."
    assert meshim("connector", "c1", "-t", "mesh.yaml") == (
        2,
        "",
        f"meshim: The connector key connector.key {missing}\n",
    )
    meshim("key", "new", "connector.key")
    (tmp_path / "connector.key").chmod(0o644)
    code, _, errors = meshim("connector", "c1", "-t", "mesh.yaml")
    assert (code, errors.count("\n")) == (2, 1)
    assert "(mode 0644): run chmod 600 on it." in errors


def test_files_in_an_existing_folder_are_readable_by_their_owner_only(meshim: Meshim, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    assert meshim("db", "upgrade") == (0, "The database is up to date.\n", "")
    assert {path.name: path.stat().st_mode & 0o077 for path in data.iterdir()} == {"meshim.db": 0, "log": 0, "run": 0}


def test_help_lists_every_command(meshim: Meshim) -> None:
    code, output, _ = meshim("--help")
    assert code == 0
    for name in ("up", "down", "status", "topology", "db", "connector", "transfer", "writer", "rest"):
        assert f" {name} " in output


def test_commands_for_operators_do_not_import_the_client() -> None:
    program = (
        "import sys; sys.argv = ['meshim', 'topology', '--help']\n"
        "from meshim.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print([m for m in ('meshim.client', 'meshim.cli.accounts', 'zmq') if m in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("[]\n")


def test_the_next_step_is_short_where_the_defaults_find_the_mesh(meshim: Meshim, tmp_path: Path) -> None:
    assert meshim("db", "upgrade")[0] == 0
    data = DataFolder(tmp_path / "data")
    backends = msgspec.structs.replace(topology.default().backends, sql=data.sqlite_url)
    data.topology.write_text(topology.dump(msgspec.structs.replace(topology.default(), backends=backends)))
    for api in ("http://127.0.0.1:8100", "http://0.0.0.0:8100"):
        assert next_step(api, data) == (
            "Make an account with `meshim user register NAME`; end the mesh with `meshim down`."
        )
    assert "`meshim user register NAME --api http://127.0.0.1:8200`" in next_step("http://0.0.0.0:8200", data)
