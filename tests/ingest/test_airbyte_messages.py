"""Lines of the protocol, however they are cut, spaced and mixed."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LakeRejected
from pipeline.ingest.airbyte_messages import Splitter, Spool


def lines(count: int) -> list[str]:
    """Records of two streams in three layouts, with states and chatter between them."""
    result = []
    for number in range(count):
        stream, data = ("a", "b")[number % 3 == 0], {"id": number, "text": 'tricky "type":"STATE" \\ \n {"stream":"b"}'}
        message = {"type": "RECORD", "record": {"stream": stream, "data": data, "emitted_at": 1}}
        if number % 5 == 0:
            message = {"record": {"data": data, "stream": stream}, "type": "RECORD"}
        result.append(json.dumps(message, separators=(", ", ": ") if number % 7 == 0 else (",", ":")))
        if number % 4 == 0:
            result.append(json.dumps({"type": "STATE", "state": {"at": number}}))
        if number % 6 == 0:
            result.append("chatter")
    return result


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(1, 4000), min_size=1, max_size=30), count=st.integers(1, 60))
def test_every_record_arrives_once_in_order_wherever_the_blocks_are_cut(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], count: int
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spools = {name: Spool(name, folder / name) for name in "ab"}
    seen: list[tuple[int, int]] = []
    splitter = Splitter(
        spools,
        lambda message: seen.append((message["state"]["at"], spools["a"].rows + spools["b"].rows)),
        doing="Reading",
    )
    output = "\n".join(lines(count)).encode()

    position = 0
    for cut in cuts:
        splitter.feed(output[position : position + cut])
        position += cut
    splitter.feed(output[position:])
    splitter.finish()

    for name, spool in spools.items():
        ids = [json.loads(line)["record"]["data"]["id"] for line in spool.path.read_text().splitlines()]
        assert ids == [number for number in range(count) if ("a", "b")[number % 3 == 0] == name]
        assert spool.rows == len(ids)
        assert spool.bytes == spool.path.stat().st_size
        spool.close()
    assert seen == [(number, number + 1) for number in range(0, count, 4)]
    assert splitter.garbage == len(range(0, count, 6))


def test_what_no_state_covers_can_be_dropped(tmp_path: Path) -> None:
    spool = Spool("a", tmp_path / "a")
    spool.add(b"1\n2\n", 2)
    spool.cover()
    spool.add(b"3\n", 1)

    assert spool.drop_uncovered() == 1
    assert spool.path.read_bytes() == b"1\n2\n"
    spool.clear()
    spool.add(b"4\n", 1)
    assert (spool.path.read_bytes(), spool.rows, spool.rows_before) == (b"4\n", 1, 2)
    spool.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_said_plainly() -> None:
    spool = Spool("items", Path("/dev/full"))

    with pytest.raises(LakeRejected, match="Reading items: /dev: No space left on device"):
        spool.add(b"1\n", 1)
    spool.close()
