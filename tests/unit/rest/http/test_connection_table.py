"""Who has to go when there is no room."""

from hypothesis import given
from hypothesis import strategies as st

from meshim.rest.http.connection_table import ConnectionTable


def test_the_one_that_waits_longest_goes_and_one_that_is_worked_for_stays() -> None:
    table = ConnectionTable[str]()
    for name in ("a", "b", "c"):
        table.add(name, name.encode())
    table.works("a")
    assert table.to_cut_for(b"new") == "b"
    table.waits("a")  # it waits again, and shortest
    table.works("b")
    assert table.to_cut_for(b"new") == "c"
    table.remove("c")
    assert table.to_cut_for(b"new") == "a"
    table.works("a")
    assert table.to_cut_for(b"new") is None
    assert len(table) == 2


def test_an_address_that_has_half_of_all_makes_room_for_itself() -> None:
    table = ConnectionTable[str]()
    table.add("honest", b"1")
    for name in ("x1", "x2"):
        table.add(name, b"2")
    assert table.to_cut_for(b"2") == "x1"
    assert table.to_cut_for(b"3") == "honest"


def test_what_is_not_known_is_no_error() -> None:
    table = ConnectionTable[str]()
    table.add("a", b"1")
    table.remove("a")
    for act in (table.remove, table.waits, table.works):
        act("a")
    assert len(table) == 0
    assert table.to_cut_for(b"1") is None


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "waits", "works"]), st.integers(0, 9)), max_size=80))
def test_it_agrees_with_a_list(steps: list[tuple[str, int]]) -> None:
    table, waiting, known = ConnectionTable[int](), list[int](), set[int]()
    for step, connection in steps:
        if step == "add" and connection not in known:
            table.add(connection, b"%d" % (connection % 3))
            known.add(connection)
            waiting.append(connection)
        elif step == "remove":
            table.remove(connection)
            known.discard(connection)
        elif step == "waits":
            table.waits(connection)
            if connection in known and connection not in waiting:
                waiting.append(connection)
        elif step == "works":
            table.works(connection)
            waiting = [each for each in waiting if each != connection]
        waiting = [each for each in waiting if each in known]
        assert len(table) == len(known)
        assert table.to_cut_for(b"none") == next(iter(waiting), None)


def test_a_connection_that_moves_counts_for_its_new_address() -> None:
    table = ConnectionTable[str]()
    for connection in ("a", "b", "c"):
        table.add(connection, b"proxy")
    table.works("b")
    for connection in ("a", "b", "c", "unknown"):
        table.move(connection, b"client")
    assert (table.count(b"proxy"), table.count(b"client"), len(table)) == (0, 3, 3)
    assert table.to_cut_for(b"client") == "a"
    table.works("a")
    table.move("a", b"client")
    table.works("c")
    assert table.to_cut_for(b"client") is None, "those that are worked for still are"
    table.waits("b")
    assert table.to_cut_for(b"client") == table.to_cut_for(b"other") == "b"
