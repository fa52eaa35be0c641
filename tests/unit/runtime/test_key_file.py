"""The file of the connectors' shared key: made once, and one sentence for each wrong file."""

import os
from pathlib import Path

import pytest
import zmq
import zmq.auth

from meshim.errors import UsageError
from meshim.runtime.sockets import KeyPair, key_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "connector.key"


def write(path: Path, public: str, secret: str) -> None:
    path.write_text(f'curve\n    public-key = "{public}"\n    secret-key = "{secret}"\n')
    path.chmod(0o600)


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as refused:
        key_file.load(path)
    sentence = refused.value.sentence
    assert sentence.startswith(f"The connector key {path} ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence.removeprefix(f"The connector key {path} ")


def test_a_new_file_holds_one_key_pair_for_its_owner_alone(path: Path) -> None:
    public = key_file.create(path)
    keys = key_file.load(path)
    assert keys.public == public == zmq.curve_public(keys.secret)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_that_exists_is_not_replaced(path: Path) -> None:
    key_file.create(path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        key_file.create(path)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"The connector key .* cannot be made: "):
        key_file.create(tmp_path / "file" / "connector.key")


def test_it_is_a_certificate_of_czmq_in_both_directions(path: Path) -> None:
    key_file.create(path)
    assert zmq.auth.load_certificate(path) == key_file.load(path)
    _, theirs = zmq.auth.create_certificates(path.parent, "theirs", metadata={"name": "theirs"})
    os.chmod(theirs, 0o600)
    assert key_file.load(Path(theirs)) == KeyPair(*zmq.auth.load_certificate(theirs))  # type: ignore[arg-type]  # it has a secret key


def test_a_missing_file_is_refused_with_the_command_that_makes_one(path: Path) -> None:
    assert refusal(path) == f"does not exist: make it with `meshim key new {path}`, once for all connectors."


def test_a_file_that_cannot_be_read_is_refused(path: Path) -> None:
    path.mkdir()
    assert refusal(path) == "cannot be read: Is a directory."


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_file_that_others_may_access_is_refused(path: Path, mode: int) -> None:
    key_file.create(path)
    path.chmod(mode)
    with pytest.raises(UsageError) as refused:
        key_file.load(path)
    assert refused.value.sentence == f"Others may read the connector key {path} (mode {mode:04o}): run chmod 600 on it."


# The two pairs of the manual of libzmq (zmq_curve).
PUBLIC, SECRET = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID", "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"
OTHER = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(range(200, 232)),
        SECRET.encode(),
        f'public-key = "{PUBLIC}"\n'.encode(),  # the half that is not secret
        f'secret-key = "{SECRET}"\n'.encode(),
        f'public-key = "{PUBLIC}"\nsecret-key = "{SECRET}"\n'.encode() * 2,
        f"public-key = {PUBLIC}\nsecret-key = {SECRET}\n".encode(),
        f'public-key = "{PUBLIC}"\nsecret-key = "{SECRET}"\n'.encode() + b"\n" * 10_000,
    ],
    ids=["empty", "binary", "bare secret", "no secret", "no public", "two pairs", "unquoted", "large"],
)
def test_a_file_of_another_form_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    assert refusal(path).startswith("is not as `meshim key new` makes it, with one public and one secret key: ")


@pytest.mark.parametrize(
    ("public", "secret"),
    [
        (OTHER, SECRET),
        (PUBLIC, OTHER),
        (PUBLIC[:-1], SECRET),
        (PUBLIC, SECRET[:-1]),
        ("", ""),
        (PUBLIC, "~" * 40),
        (PUBLIC, "ü" * 20),
    ],
    ids=["another public", "another secret", "short public", "short secret", "empty", "not Z85", "not ASCII"],
)
def test_a_file_without_a_key_pair_is_refused(path: Path, public: str, secret: str) -> None:
    write(path, public, secret)
    assert refusal(path).startswith("does not hold a CURVE key pair: ")
