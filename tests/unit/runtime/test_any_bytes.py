"""Whatever stands in a file of keys, in a token or in a question of libzmq: it is understood, or refused."""

from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from meshim.errors import Code, PeerError, UsageError
from meshim.runtime.crypto import TOKEN_BYTES, MasterKey, format_token, parse_token
from meshim.runtime.sockets import key_file, zap

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
keys = st.text(alphabet='ABCxyz0189.-:+=^!/*?&<>()[]{}@%$# "\n', max_size=45)
key_files = st.builds('curve\n  public-key = "{}"\n  secret-key = "{}"\n'.format, keys, keys).map(str.encode)


@in_one_folder
@given(st.binary(max_size=100) | key_files)
@example(b'public-key = "' + b"0" * 40 + b'"\nsecret-key = "' + b"\xff" * 40 + b'"\n')
def test_of_key_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.key"
    path.write_bytes(content)
    path.chmod(0o600)
    for load in (key_file.load, MasterKey.load):
        try:
            load(path)
        except UsageError as error:
            refusal = error.sentence
            assert refusal.endswith(".")
            assert "\n" not in refusal


@given(st.text(max_size=60) | st.binary(min_size=TOKEN_BYTES, max_size=TOKEN_BYTES).map(format_token))
@example("A" * 42 + "B")
@example("é" * 43)
def test_of_tokens(text: str) -> None:
    try:
        assert format_token(parse_token(text)) == text
    except PeerError as error:
        assert error.code is Code.BAD_TOKEN  # noqa: PT017  (both may happen)


@given(st.lists(st.binary(max_size=40), max_size=12))
@example([b"", b"", b"1.0", b"", b"\xff", b"", b"", b"CURVE", bytes(32)])
def test_of_questions_of_libzmq(parts: list[bytes]) -> None:
    request = zap.parse(parts)
    assert request is None or (len(parts) == 9 and len(request.public) == 32)
