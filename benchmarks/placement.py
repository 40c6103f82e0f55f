"""Measures `stackgen plan`: how long 1,000 models on 200 GPUs take, and how near its packing is to a solver's.

    .venv/bin/python benchmarks/placement.py            # the time
    .venv/bin/python benchmarks/placement.py --solver   # also the quality; needs ortools in this Python

The solver is CP-SAT of OR-tools. It is no dependency of stackgen: docs/decisions/placement.md has the figures.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict

from benchmarks.fit_starts import MODELS
from stackgen.engines import get
from stackgen.fit import Gpu, Model, Weights, find_gpu
from stackgen.fit.config import read_config
from stackgen.placement import Device, Item, find_demand, pack, plan_places

KINDS = ("RTX-4090", "A100-80GB", "H100")
SHARES = (0.2, 0.3, 0.45)


def build_machine(chance: random.Random, count: int) -> list[Device]:
    """GPUs in islands of 1, 2, 4 and 8, each island of one kind."""
    devices: list[Device] = []
    while len(devices) < count:
        size = min(chance.choice((1, 2, 4, 8)), count - len(devices))
        gpu, island = find_gpu(chance.choice(KINDS)), f"i{len(devices)}"
        devices += [Device(len(devices) + one, f"GPU-{len(devices) + one}", gpu, island) for one in range(size)]
    return devices


def build_items(chance: random.Random, devices: list[Device], load: float) -> list[Item]:
    """Replicas that take about `load` of the machine, cut out of it, so that there is room for all of them."""
    kinds = sorted({one.gpu for one in devices}, key=lambda gpu: gpu.memory)
    islands: dict[str, list[Device]] = defaultdict(list)
    for one in devices:
        islands[one.island].append(one)
    cut: list[tuple[int, float, Gpu]] = []
    for group in islands.values():
        left = len(group)
        while left:
            count = chance.choice([one for one in (1, 1, 2, 4, 8) if one <= left])
            left -= count
            if count > 1 or chance.random() < 0.5:
                cut.append((count, 1.0, group[0].gpu))
                continue
            rest = 95
            while fitting := [one for one in SHARES if round(100 * one) <= rest]:
                cut.append((1, chance.choice(fitting), group[0].gpu))
                rest -= round(100 * cut[-1][1])
    chance.shuffle(cut)
    room, items = load * len(devices), []
    for count, share, gpu in cut:
        if room >= count * share:
            # what fits on a small GPU fits on larger ones
            larger = kinds[chance.randrange(kinds.index(gpu) + 1) :]
            items.append(Item((len(items), 0), count, share, frozenset(larger)))
            room -= count * share
    return items


def solve(items: list[Item], devices: list[Device], seconds: float) -> int:
    """The most replicas for which CP-SAT finds room within `seconds`."""
    from ortools.sat.python import cp_model

    model, groups = cp_model.CpModel(), defaultdict(list)
    for one in devices:
        groups[one.island, one.gpu].append(one)
    placed, whole, shared = [], defaultdict(list), defaultdict(list)
    for item in items:
        choices = []
        if item.share < 1:
            for one in (one for one in devices if one.gpu in item.kinds):
                choices.append(variable := model.new_bool_var(""))
                shared[one].append((item, variable))
        else:
            # GPUs of a group are alike, so only their number counts
            for key, group in groups.items():
                if key[1] in item.kinds and len(group) >= item.count:
                    choices.append(variable := model.new_bool_var(""))
                    whole[key].append(item.count * variable)
        model.add_at_most_one(choices)
        placed += choices
    for key, group in groups.items():
        opened = []
        for one in group:
            opened.append(is_open := model.new_bool_var(""))
            model.add(sum(round(100 * item.share) * variable for item, variable in shared[one]) <= 95 * is_open)
        model.add(sum(whole[key]) + sum(opened) <= len(group))
    model.maximize(sum(placed))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds, solver.parameters.num_workers = seconds, 1
    found = solver.solve(model) in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    return round(solver.objective_value) if found else 0


def compare(seeds: int, seconds: float) -> None:
    """Prints in how many cases each of both finds room for all replicas, and how many replicas each of them places."""
    for load in (0.6, 0.8, 0.9, 1.0):
        all_ours = all_solver = ours = most = total = 0
        for seed in range(seeds):
            chance = random.Random(seed)
            devices = build_machine(chance, chance.choice((8, 16, 24)))
            items = build_items(chance, devices, load)
            solved, found = solve(items, devices, seconds), len(pack(items, devices).places)
            all_ours, all_solver = all_ours + (found == len(items)), all_solver + (solved == len(items))
            ours, most, total = ours + found, most + solved, total + len(items)
        print(f"load {load:.0%}: room for all in {all_ours} of {seeds} cases, CP-SAT in {all_solver}; {ours} of "
              f"{total} replicas placed ({ours / total:.2%}), CP-SAT {most}")  # fmt: skip


def measure() -> None:
    """Prints the time for 1,000 models, with the estimates, on 200 GPUs of three kinds."""
    chance = random.Random(1)
    devices = build_machine(chance, 200)
    kinds: list[Gpu] = list(dict.fromkeys(one.gpu for one in devices))
    configs = [read_config(config) for config in MODELS.values()]
    spec = get("vllm").Model
    start = time.perf_counter()
    demands = []
    for index in range(1000):
        # ten of them share each GPU, so that there is room for 1,000
        fields = {"share_gpus": True, "gpu_memory_utilization": 0.15, "max_num_seqs": 16}
        one = spec(model="./m", engine="vllm", gpus="auto", served_names=[f"m{index}"], **fields)
        size = chance.randrange(2**26, 2**29)
        model = Model(configs[index % len(configs)], Weights(size, (), "given"), f"m{index}")
        demands.append(find_demand(index, f"m{index}", one, model, kinds))
    estimated = time.perf_counter()
    plan = plan_places(demands, devices)
    end = time.perf_counter()
    places = sum(bool(one.devices) for one in plan.places)
    print(f"1,000 models on 200 GPUs: {end - start:.2f} s: {estimated - start:.2f} s for the estimates, "
          f"{end - estimated:.2f} s for the places; {places} have one")  # fmt: skip
    items = [Item((index, 0), chance.choice((1, 1, 2, 4)), 1.0, frozenset(kinds[index % 3 :])) for index in range(1000)]
    start = time.perf_counter()
    found = pack(items, devices)
    print(f"1,000 models of 1 to 4 whole GPUs, far too many: {time.perf_counter() - start:.2f} s; "
          f"{len(found.places)} have a place")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--solver", action="store_true", help="compare with CP-SAT")
    parser.add_argument("--seeds", type=int, default=100, help="number of cases for each load")
    parser.add_argument("--seconds", type=float, default=5.0, help="time limit of the solver for each case")
    args = parser.parse_args()
    measure()
    if args.solver:
        compare(args.seeds, args.seconds)
