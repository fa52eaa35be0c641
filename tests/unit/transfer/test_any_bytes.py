"""Whatever bytes a connector sends, at any time: a coded answer, and the other connectors go on."""

from hypothesis import given
from hypothesis import strategies as st

from meshim.errors import Code
from meshim.wire.link import Close
from tests.unit.any_msgpack import frames
from tests.unit.transfer.world import B1, BOB, Connector, Transfer, presence_of, route
from tests.wire_samples import FROM_CONNECTOR, PINNED

from_connectors = frames(
    [FROM_CONNECTOR.encode(value) for coding, value, _ in PINNED if coding == "connector to transfer"]
)


@given(st.lists(from_connectors, max_size=8), st.booleans())
def test_of_a_connector(batch: list[bytes], greeted: bool) -> None:
    transfer = Transfer()
    one, two = transfer.connector(1), transfer.connector(2)
    mallory = Connector(transfer, 3)
    if greeted:
        mallory.greet()
    mallory.send_bytes(*batch)
    assert all(frame.code in Code.__members__.values() and frame.sentence for frame in mallory.received(Close))
    transfer.pass_time(1.0)
    transfer.publish_all()
    transfer.answer_lookups()
    transfer.publish_all()
    one.send_items(route(9, BOB))
    transfer.answer_lookups({BOB: presence_of(2, B1)})
    assert (9, (B1,)) in two.delivered
    assert one.linked
    assert two.linked
