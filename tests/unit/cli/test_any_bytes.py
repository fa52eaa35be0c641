"""Whatever stands in a file of users, `meshim user import` reads it or says in a sentence what is wrong."""

from io import BytesIO, TextIOWrapper

from hypothesis import example, given
from hypothesis import strategies as st

from meshim.cli.accounts import users_of
from meshim.errors import UsageError

files = st.lists(st.binary(max_size=30) | st.text(max_size=30).map(str.encode), max_size=5).map(b"\n".join)


@given(files)
@example(b"ann p\xff")
def test_of_a_file_of_users(content: bytes) -> None:
    file = TextIOWrapper(BytesIO(content), encoding="utf-8")
    try:
        users = users_of(file, "users.txt")
    except UsageError as error:
        assert error.sentence.endswith(".")  # noqa: PT017  (both may happen)
        return
    assert all(name and password for name, password in users)
