"""IRC logs as a schedule: who is online when, and who sends what to whom."""

import re
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from meshim.protocol.names import fold_name
from scripts.harness.replay.irclog import Action, LogLine, Step, addressee, count_addressed, parse, plan, user_name

thorough = settings(max_examples=300)

LOG = b"""\
[23:50] <ann> hello
[23:50]  * bob waves
=== cy [~cy@example.org]  has joined #talk
[23:58] <bob> ann: hi, you
[23:58] <ann> bob, hi
[00:01] <ann> bob : not by the rule
[00:01] <ann> ann: to myself
[00:01] <ann> Bob: another nick
[00:01] <cy> bobby: nobody
[00:05] <John[1] > ann:no space
[00:09] <ann> John[1] : nick with a space
[00:30] <ann>
"""


def summary(steps: list[Step]) -> list[tuple[float, str, str]]:
    return [(round(step.minute, 2), step.nick, step.to or step.action.value) for step in steps]


def test_a_plan_has_every_step() -> None:
    assert summary(plan([LOG])) == [
        (0, "ann", "connects"),
        (0.5, "bob", "connects"),
        (8, "bob", "ann"),
        (8.5, "ann", "bob"),
        (11.75, "cy", "connects"),
        (15, "John[1] ", "connects"),
        (15, "John[1] ", "ann"),
        (18, "bob", "disconnects"),
        (19, "ann", "John[1] "),
        (21.75, "cy", "disconnects"),
        (25, "John[1] ", "disconnects"),
        (29, "ann", "disconnects"),
        (40, "ann", "connects"),
        (50, "ann", "disconnects"),
    ]


def test_a_step_has_the_whole_text() -> None:
    assert [step.text for step in plan([LOG]) if step.action is Action.SEND] == [
        "ann: hi, you",
        "bob, hi",
        "ann:no space",
        "John[1] : nick with a space",
    ]


def test_a_log_begins_when_all_nicks_of_the_last_are_offline() -> None:
    one = plan([LOG])
    two = plan([LOG, b"", LOG])
    assert two[: len(one)] == one
    assert summary(two[len(one) :]) == [(round(minute + 51, 2), nick, what) for minute, nick, what in summary(one)]


def test_a_nick_that_is_quiet_for_exactly_the_limit_stays() -> None:
    log = b"[10:00] <ann> a\n[10:10] <ann> b\n[10:21] <ann> c\n"
    assert summary(plan([log])) == [
        (0, "ann", "connects"),
        (20, "ann", "disconnects"),
        (21, "ann", "connects"),
        (31, "ann", "disconnects"),
    ]


def minutes(*clock: str) -> list[float]:
    said = parse("".join(f"[{time}] <ann> x\n" for time in clock).encode())
    return [line.minute - said[0].minute for line in said]


def test_clocks_of_24_and_of_12_hours_wrap_around() -> None:
    assert minutes("23:59", "00:00", "12:30", "11:20", "00:10") == [0, 1, 751, 1401, 1451]
    assert minutes("11:55", "00:05", "11:59", "00:00") == [0, 10, 724, 725]


def test_a_clock_that_is_set_back_stands() -> None:
    assert minutes("10:00", "09:30", "10:10") == [0, 0.5, 10]


def test_lines_are_separated_by_line_feeds_only() -> None:
    log = "[10:00] <ann> one\x0b\x0c\x1c\x85\u2028two\r\n[10:00] <bob> ann: three\x0b\n".encode()
    assert [line.text for line in parse(log)] == ["one\x0b\x0c\x1c\x85\u2028two", "ann: three\x0b"]
    assert count_addressed(log) == 1


def test_a_line_that_is_not_utf8_is_latin_1() -> None:
    log = b"[10:00] <ann> \xe9\xff\n[10:00] <bob> ann: \xc3\xa9\n"
    assert [line.text for line in parse(log)] == ["éÿ", "ann: é"]


def test_other_lines_are_ignored() -> None:
    for log in (b"", b"\n", b"[10:00]", b"[10:00] <> x", b"10:00 <ann> x", b"=== ann is now known as bob", b"\x00\xff"):
        assert parse(log) == []
        assert plan([log]) == []
        assert count_addressed(log) == 0


def test_an_action_has_no_addressee() -> None:
    assert addressee(LogLine(0, "ann", "bob: x", is_message=False), {"ann", "bob"}) is None


nicks = st.sampled_from(["ann", "Ann", "bob", "b[ob]", "s3 x", "^", "ann|away"])
texts = st.one_of(
    st.text(max_size=8).map(lambda text: text.replace("\n", " ")),
    st.builds("{}{}{}".format, nicks, st.sampled_from([":", ",", " ", " :", ""]), st.text("ab :,", max_size=3)),
)
messages = st.builds("[{:02}:{:02}] <{}> {}".format, st.integers(0, 23), st.integers(0, 59), nicks, texts)
actions = st.builds("[{:02}:{:02}]  * {} {}".format, st.integers(0, 23), st.integers(0, 59), st.just("zed"), texts)
logs = st.lists(st.one_of(messages, actions, texts)).map(lambda lines: "\n".join(lines).encode())


@thorough
@given(st.lists(logs, max_size=3))
def test_any_plan_keeps_its_rules(days: list[bytes]) -> None:
    steps = plan(days)
    assert all(one.minute <= two.minute for one, two in pairwise(steps))
    online: set[str] = set()
    for step in steps:
        match step.action:
            case Action.CONNECT:
                assert step.nick not in online
                online.add(step.nick)
            case Action.SEND:
                assert step.nick in online
                assert step.to != step.nick
            case Action.DISCONNECT:
                online.remove(step.nick)
    assert not online


def slow_count(log: bytes) -> int:
    """Count in another way: nick by nick, with a pattern for each."""
    lines = log.split(b"\n")
    nicks = {nick for line in lines for nick in re.findall(rb"^\[\d\d:\d\d\] <([^>]+)>|^\[\d\d:\d\d\]  \* (\S+)", line)}
    count = 0
    for line in lines:
        for nick in filter(None, (nick for pair in nicks for nick in pair)):
            pattern = rb"\[\d\d:\d\d\] <(?!%b>)[^>]+> ?%b[:,]" % (re.escape(nick), re.escape(nick))
            count += re.match(pattern, line) is not None
    return count


@thorough
@given(logs)
def test_a_plan_has_as_many_messages_as_a_plain_count(log: bytes) -> None:
    said = sum(step.action is Action.SEND for step in plan([log]))
    assert said == count_addressed(log) == slow_count(log)


@thorough
@given(st.lists(st.text(min_size=1, max_size=20), unique=True))
def test_no_two_nicks_share_a_name(different: list[str]) -> None:
    names = [user_name(nick, tag="r1.") for nick in different]
    assert len(set(names)) == len(different)
    assert all(fold_name(name) == name for name in names)


def test_names_are_readable() -> None:
    assert [user_name(nick) for nick in ("h00k", "CarlFK", "|QuaD-", "s3 x")] == [
        "h00k",
        ".carl.f.k",
        "..7c.qua.d..2d",
        "s3..20x",
    ]
    assert user_name("|" * 100).startswith("...")
