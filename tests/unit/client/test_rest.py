"""The REST client: answers that a meshim service never gives, and URLs it must refuse."""

import httpx
import pytest

from meshim.client.rest import Api
from meshim.errors import ApiError, BackendUnavailable, UsageError

PROBLEM = b'{"type":"urn:x","title":"T","status":429,"detail":"Wait.","code":"slow_down","extra":1}'


def api(answer: httpx.Response | Exception, requests: list[httpx.Request] | None = None) -> Api:
    def handle(request: httpx.Request) -> httpx.Response:
        if requests is not None:
            requests.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Api("http://localhost:8100/", transport=httpx.MockTransport(handle))


@pytest.mark.parametrize("url", ["http://127.0.0.1:8100", "http://localhost", "http://[::1]:1", "https://chat.example"])
def test_urls_of_this_machine_and_https_are_allowed(url: str) -> None:
    Api(url)


@pytest.mark.parametrize("url", ["http://10.0.0.1", "http://chat.example:8100", "http://0.0.0.0:8100"])
def test_plain_http_to_another_machine_needs_insecure(url: str) -> None:
    with pytest.raises(UsageError, match="use https"):
        Api(url)
    Api(url, insecure=True)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8100", "localhost", "ftp://localhost", "http://", "http://[::1", "http://h:x"]
)
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is not the URL"):
        Api(url)


async def test_a_problem_answer_becomes_an_api_error_with_all_its_fields() -> None:
    headers = {"content-type": "application/problem+json; charset=utf-8", "retry-after": "7"}
    with pytest.raises(ApiError) as refused:
        await api(httpx.Response(429, headers=headers, content=PROBLEM)).register("alice", "x")
    error = refused.value
    assert (error.status, error.code, error.sentence, error.retry_after_s) == (429, "slow_down", "Wait.", 7.0)
    assert error.temporary


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (httpx.ConnectError("refused"), r"Cannot reach meshim at http://localhost:8100 \(refused\)"),
        (httpx.ReadTimeout("late"), "did not answer in time"),
        (httpx.RemoteProtocolError(""), "Cannot reach meshim"),
        (httpx.DecodingError("not gzip"), r"Cannot reach meshim at .* \(not gzip\)"),
        (httpx.Response(502, text="Bad gateway"), "answered 502"),
        (httpx.Response(503, headers={"content-type": "application/problem+json"}, content=PROBLEM[:20]), "cut off"),
        (httpx.Response(200, text="<html>"), "is the URL right"),
        (httpx.Response(200, json={"user_id": "x", "name": "alice"}), "is the URL right"),
    ],
)
async def test_an_answer_that_is_not_of_meshim_is_backend_unavailable(
    answer: httpx.Response | Exception, sentence: str
) -> None:
    with pytest.raises(BackendUnavailable, match=sentence):
        await api(answer).register("alice", "x")


async def test_a_name_is_quoted_as_one_path_segment_and_the_token_is_sent() -> None:
    requests: list[httpx.Request] = []
    client = api(httpx.Response(204), requests)
    client.token = "secret"
    await client.remove("a/../b?c")
    assert requests[0].url.raw_path == b"/v1/relations/a%2F..%2Fb%3Fc"
    assert requests[0].headers["authorization"] == "Bearer secret"


async def test_logout_clears_the_token() -> None:
    client = api(httpx.Response(204))
    client.token = "secret"
    await client.logout()
    assert client.token is None
