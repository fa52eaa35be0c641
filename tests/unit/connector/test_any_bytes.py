"""Whatever bytes a client or a transfer sends, at any time: a coded answer, and the other sessions go on."""

from hypothesis import given
from hypothesis import strategies as st

from meshim.connector import events as e
from meshim.errors import Code
from tests.unit.any_msgpack import frames
from tests.unit.connector.world import A1, B1, Client, Connector, Transfer, envelope, live_copy
from tests.wire_samples import FROM_CLIENT, FROM_TRANSFER, PINNED

SAMPLES = {name: [value for coding, value, _ in PINNED if coding == name] for name, *_ in PINNED}
from_clients = frames([FROM_CLIENT.encode(value) for value in SAMPLES["client"]])
from_transfers = frames([FROM_TRANSFER.encode(value) for value in SAMPLES["transfer"]])


def expect_bob_is_served(connector: Connector, bob: Client, transfer: Transfer) -> None:
    transfer.give(live_copy(B1, 1))
    assert bob.seqs == [1]
    assert not bob.closed


@given(st.lists(from_clients, max_size=8), st.sampled_from(["a stranger", "greeted", "online"]))
def test_of_a_client(batch: list[bytes], state: str) -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    if state == "a stranger":
        mallory = Client(connector, b"peer", A1)
        connector.clients[mallory.peer] = mallory
    else:
        mallory = connector.online(A1) if state == "online" else connector.connect(A1)
    mallory.send_bytes(*batch)
    assert all(code in Code.__members__.values() and sentence for code, sentence in mallory.closed)
    connector.pass_time(1.0)
    expect_bob_is_served(connector, bob, transfer)


@given(st.lists(st.binary(max_size=200) | frames([envelope()]), max_size=8))
def test_of_an_envelope(made: list[bytes]) -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    mallory = connector.online(A1)
    for each in made:
        mallory.submit(each)
    assert all(code in Code.__members__.values() and sentence for code, sentence in mallory.closed)
    expect_bob_is_served(connector, bob, transfer)


@given(st.lists(from_transfers, max_size=8), st.booleans())
def test_of_a_transfer(batch: list[bytes], greeted: bool) -> None:
    """The link ends; over another transfer the sessions go on."""
    connector = Connector()
    good = connector.transfer(901)
    connector.receive(e.TransfersDiscovered((901, 902)))
    if greeted:
        connector.transfers[902].accept()
    bob = connector.online(B1)
    connector.receive(e.TransferSent(902, batch))
    connector.pass_time(1.0)
    expect_bob_is_served(connector, bob, good)
