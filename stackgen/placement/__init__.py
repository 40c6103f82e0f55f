"""Where the models with `gpus: auto` run on one machine, chosen by their estimated memory.

Pure: reads no file, starts no program, and sends no request.
"""

from stackgen.placement.demand import Demand, Option, find_demand
from stackgen.placement.machine import Device, join_islands, parse_machine, parse_topology
from stackgen.placement.offers import Candidate, Offer, find_offers
from stackgen.placement.pack import Item, Packing, pack
from stackgen.placement.planner import Place, Plan, plan_places

__all__ = [
    "Candidate", "Demand", "Device", "Item", "Offer", "Option", "Packing", "Place", "Plan", "find_demand",
    "find_offers", "join_islands", "pack", "parse_machine", "parse_topology", "plan_places",
]  # fmt: skip
