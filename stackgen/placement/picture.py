"""The picture of a plan: one box for each GPU, in frames for the islands, with the models that it serves (SVG 1.1)."""

from __future__ import annotations

from xml.sax.saxutils import escape

from stackgen.fit.estimate import format_gib
from stackgen.placement.machine import ALONE, WHOLE, Device
from stackgen.placement.planner import Place, Plan

__all__ = ["draw"]

# light enough for black text; neighbours in the list differ also in brightness, for people who see no colors
COLORS = ("#8ecae6", "#ffd166", "#b7e4c7", "#f4a6a6", "#cdb4db", "#e9ecef", "#ffb703", "#90be6d")
WIDTH, BAR, GAP, COLUMNS = 190, 60, 12, 8
HEAD = 40


def draw(plan: Plan) -> str:
    """The SVG document. A bar is as wide as the share of the GPU that is reserved for the model."""
    islands: dict[tuple[str, str], list[Device]] = {}
    for one in plan.devices:
        islands.setdefault((one.host, one.island), []).append(one)
    names = list(dict.fromkeys(place.demand.name for place in plan.places))
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}
    body: list[str] = []
    top = GAP
    for (host, island), devices in islands.items():
        rows = -(-len(devices) // COLUMNS)
        height = rows * (BAR + HEAD) + GAP
        columns = min(len(devices), COLUMNS)
        title = "without NVLink" if island == WHOLE or island.startswith(f"{ALONE}-") else f"island {island}"
        body.append(f'<rect x="{GAP}" y="{top}" width="{columns * (WIDTH + GAP) + GAP}" height="{height}" '
                    'fill="none" stroke="#888"/>')  # fmt: skip
        body.append(_text(2 * GAP, top + 18, f"{host}: {title}" if host else title, bold=True))
        for number, device in enumerate(devices):
            left = 2 * GAP + number % COLUMNS * (WIDTH + GAP)
            body += _draw_device(plan, device, left, top + HEAD + number // COLUMNS * (BAR + HEAD), colors)
        top += height + GAP
    missing = [place for place in plan.places if not place.devices]
    for place in missing:
        body.append(_text(GAP, top + 16, f"no room: {_label(place)}", bold=True))
        top += 22
    widest = min(max(len(one) for one in islands.values()), COLUMNS)
    width = max(widest * (WIDTH + GAP) + 3 * GAP, 420)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top + GAP}" '
        f'viewBox="0 0 {width} {top + GAP}" font-family="sans-serif" font-size="12" role="img">',
        "<title>Models on GPUs</title>", '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>", "",
    ])  # fmt: skip


def _draw_device(plan: Plan, device: Device, left: int, top: int, colors: dict[str, str]) -> list[str]:
    found = [_text(left, top - 6, f"GPU {device.index}: {device.gpu.name}, {format_gib(device.gpu.memory)}"),
             f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{BAR}" fill="#fafafa" stroke="#444"/>']  # fmt: skip
    if owner := plan.blocked.get(device.uuid):
        found.append(f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{BAR}" fill="#ddd" stroke="#444"/>')
        found.append(_text(left + 4, top + 20, owner))
    users = [place for place in plan.places if device in place.devices]
    start, height = 0.0, BAR // max(1, len(users))
    for number, place in enumerate(users):
        share = place.demand.share
        x, y = left + start * WIDTH, top + number * height
        found.append(f'<rect x="{x:.1f}" y="{top}" width="{share * WIDTH:.1f}" height="{BAR}" '
                     f'fill="{colors[place.demand.name]}" stroke="#444"/>')  # fmt: skip
        # below each other, because a narrow bar has no room for a name
        found.append(_text(left + 4, y + 16, _label(place)))
        start += share
    # the names above all bars
    return [*(one for one in found if one.startswith("<rect")), *(one for one in found if one.startswith("<text"))]


def _label(place: Place) -> str:
    name = place.demand.name if len(place.demand.name) <= 20 else place.demand.name[:19] + "…"
    return f"{name} {place.replica + 1}" + (f" ({place.demand.share:.0%})" if place.demand.share < 1 else "")


def _text(x: float, y: float, text: str, bold: bool = False) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}"{" font-weight=" + chr(34) + "bold" + chr(34) if bold else ""}>' + (
        f"{escape(text)}</text>"
    )
