"""Packing, islands and the file of a machine."""

from __future__ import annotations

import random
from typing import Any

import pytest

from benchmarks.placement import build_items, build_machine
from stackgen.errors import SpecError
from stackgen.fit import find_gpu
from stackgen.placement import Device, Item, join_islands, pack, parse_machine, parse_topology

H100, SMALL = find_gpu("H100"), find_gpu("RTX-4090")
BOTH = frozenset({H100, SMALL})
# written in the format of public reports (see machine.py), with the escape sequences of newer drivers: five GPUs, two
# bridges, and a network card, which is a column too
TOPOLOGY = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tGPU4\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV4\tSYS\tSYS\tSYS\tPIX\t0-31\t0\t\tN/A
GPU1\tNV4\t X \tSYS\tSYS\tSYS\tPIX\t0-31\t0\t\tN/A
GPU2\tSYS\tSYS\t X \tNV4\tPHB\tSYS\t32-63\t1\t\tN/A
GPU3\tSYS\tSYS\tNV4\t X \tPHB\tSYS\t32-63\t1\t\tN/A
GPU4\tSYS\tSYS\tPHB\tPHB\t X \tSYS\t32-63\t1\t\tN/A
NIC0\tPIX\tPIX\tSYS\tSYS\tSYS\t X \t\t\t\t

Legend:

  X    = Self
  NV#  = Connection traversing a bonded set of # NVLinks
"""


def devices(*islands: tuple[str, int]) -> list[Device]:
    found: list[Device] = []
    for number, (kind, count) in enumerate(islands):
        found += [Device(len(found) + one, f"GPU-{len(found) + one}", find_gpu(kind), f"i{number}")
                  for one in range(count)]  # fmt: skip
    return found


def indices(found: tuple[Device, ...]) -> list[int]:
    return [one.index for one in found]


def test_topology_gives_the_pairs_with_nvlink() -> None:
    pairs = parse_topology(TOPOLOGY)
    assert pairs == [(0, 1), (2, 3)]
    assert join_islands(range(5), pairs) == {0: "nvlink-0", 1: "nvlink-0", 2: "nvlink-2", 3: "nvlink-2", 4: "single-4"}


def test_without_nvlink_all_gpus_are_one_island() -> None:
    text = TOPOLOGY.replace("NV4", "PHB")
    assert set(join_islands(range(5), parse_topology(text)).values()) == {"pcie"}


def test_tensor_parallel_stays_in_the_smallest_island_with_room() -> None:
    machine = devices(("H100", 8), ("H100", 2))
    found = pack([Item((0, 0), 2, 1.0, BOTH), Item((1, 0), 8, 1.0, BOTH)], machine)
    assert indices(found.places[0, 0]) == [8, 9] and indices(found.places[1, 0]) == list(range(8))


def test_no_island_has_four_gpus() -> None:
    found = pack([Item((0, 0), 4, 1.0, BOTH)], devices(("H100", 2), ("H100", 2)))
    assert not found.places and found.left[0].key == (0, 0)


def test_shared_gpus_keep_a_margin_and_one_replica_of_each_model() -> None:
    machine = devices(("H100", 1), ("H100", 1))
    # 0.45 + 0.45 leaves 0.1, of which 0.05 is the margin
    items = [Item((0, 0), 1, 0.45, BOTH), Item((1, 0), 1, 0.45, BOTH), Item((2, 0), 1, 0.06, BOTH)]
    found = pack(items, machine)
    assert [indices(found.places[one.key]) for one in items] == [[0], [0], [1]]
    twice = pack([Item((0, 0), 1, 0.4, BOTH), Item((0, 1), 1, 0.4, BOTH)], machine)
    assert {one.index for place in twice.places.values() for one in place} == {0, 1}


def test_what_fits_nowhere_else_gets_the_large_gpu() -> None:
    machine = devices(("H100", 1), ("RTX-4090", 1))
    found = pack([Item((0, 0), 1, 1.0, BOTH), Item((1, 0), 1, 1.0, frozenset({H100}))], machine)
    assert indices(found.places[1, 0]) == [0] and indices(found.places[0, 0]) == [1]


def test_recorded_places_stay_and_blocked_gpus_are_left_alone() -> None:
    machine = devices(("H100", 4))
    kept = {(0, 0): (machine[2],)}
    found = pack([Item((1, 0), 1, 1.0, BOTH), Item((0, 0), 1, 1.0, BOTH)], machine, kept, ["GPU-0"])
    assert indices(found.places[0, 0]) == [2] and indices(found.places[1, 0]) == [1]


@pytest.mark.parametrize("seed", range(20))
def test_no_gpu_is_given_away_twice_and_no_group_leaves_its_island(seed: int) -> None:
    chance = random.Random(seed)
    machine = build_machine(chance, 24)
    items = build_items(chance, machine, 0.9)
    found = pack(items, machine)
    used: dict[Device, float] = {}
    for item in items:
        place = found.places.get(item.key, ())
        assert len(place) in (0, item.count) and len({(one.island, one.gpu) for one in place}) <= 1
        for one in place:
            assert one.gpu in item.kinds
            used[one] = used.get(one, 0) + item.share
    assert all(share <= 0.95 + 1e-9 or share == 1.0 for share in used.values())
    # the items were cut out of the machine: there is room for all
    assert not found.left
    assert pack(items, machine).places == found.places


@pytest.mark.parametrize(("row", "text"), [
    ("GPU-0", "is not a GPU"),
    ({"uuid": "0", "name": "H100"}, "is not the UUID of a GPU"),
    ({"uuid": "GPU-0"}, "has no name"),
    ({"uuid": "GPU-0", "name": "H1000X"}, "so the GPU needs the field memory"),
    ({"uuid": "GPU-0", "name": "X", "memory": "much"}, "is not the memory of a GPU"),
    ({"uuid": "GPU-0", "name": "H100", "index": -1}, "is not the index of a GPU"),
    ({"uuid": "GPU-0", "name": "H100", "island": [1]}, "is not a name"),
    ({"uuid": "GPU-0", "name": "H100", "vram": 1}, "vram is not a field of a GPU"),
])  # fmt: skip
def test_wrong_machines_name_the_place_and_the_remedy(row: Any, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_machine({"gpus": [row]}, "m.yaml")
    (mistake,) = caught.value.mistakes
    assert mistake.path == "gpus[0]" and text in mistake.message and mistake.hint


def test_a_machine_lists_each_gpu_once() -> None:
    row = {"uuid": "GPU-0", "name": "H100"}
    with pytest.raises(SpecError, match=r"gpus\[1\]: uuid GPU-0 is listed twice"):
        parse_machine({"gpus": [row, row]}, "m.yaml")
    for data in ({}, {"gpus": []}, {"gpus": [row], "name": "x"}):
        with pytest.raises(SpecError):
            parse_machine(data, "m.yaml")


def test_gpus_outside_of_the_table_have_their_own_memory() -> None:
    rows = [{"uuid": "GPU-0", "name": "New GPU", "memory": "48GiB", "island": 1}, {"uuid": "GPU-1", "name": "H100"}]
    first, second = parse_machine({"gpus": rows}, "m.yaml")
    assert 47 * 2**30 < first.gpu.memory < 48 * 2**30 and first.island == "1"
    assert second.gpu == H100 and second.island == "single-1"
