"""What is bought at which price: scores over a cost, and who is on the Pareto front (nobody else scores as much for less).

The front goes by the scores' values: where intervals overlap, so may the true front's members. It knows no arm by name.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mgm_lora.evaluation.axes import Axis, make_axis

_LOG_FROM_RATIO = 8.0
_CHARACTER_PERCENT = 1.15  # of the chart's width, at its usual size
_LABEL_HEIGHT = 4.6

LabelPlace = tuple[float, float, str]
"""From the left, from the top, text-anchor."""


@dataclass(frozen=True)
class Offer:
    """A score at a price."""

    label: str
    arm: str
    """Whose colour it has."""
    cost: float
    score: float
    low: float
    high: float
    is_trial: bool = False
    """One of a sweep: drawn small and without a label."""


@dataclass(frozen=True)
class Dot:
    """An offer on the chart, in percent from the left and the top."""

    label: str
    arm: str
    text: str
    x: float
    y: float
    top: float
    bottom: float
    is_on_front: bool
    label_at: LabelPlace | None
    """None for a trial, which is drawn small."""


@dataclass(frozen=True)
class ScatterChart:
    """Offers over a cost, and the front as steps."""

    title: str
    x_label: str
    x_axis: Axis
    y_axis: Axis
    dots: tuple[Dot, ...]
    front: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class _Box:
    left: float
    right: float
    y: float

    def overlaps(self, other: "_Box") -> bool:
        return abs(self.y - other.y) < _LABEL_HEIGHT and self.left < other.right and other.left < self.right


def pareto_front(offers: Sequence[Offer]) -> list[Offer]:
    """Those that nobody beats: no other costs as little or less and scores as much or more; by rising cost."""
    front: list[Offer] = []
    for offer in sorted(offers, key=lambda offer: (offer.cost, -offer.score)):
        if not front or offer.score > front[-1].score:
            front.append(offer)
    return front


def scatter_chart(
    offers: Sequence[Offer],
    *,
    title: str,
    x_label: str,
    cost_text: Callable[[float], str],
    score_text: Callable[[float], str],
) -> ScatterChart:
    """Lays offers over a cost axis, logarithmic where costs span more than a factor of eight."""
    costs = [offer.cost for offer in offers]
    is_log = min(costs) > 0 and max(costs) / min(costs) > _LOG_FROM_RATIO
    spread = max(costs) - min(costs) or max(costs)
    left, right = (min(costs) / 1.3, max(costs) * 1.3) if is_log else (min(costs) - spread / 8, max(costs) + spread / 8)
    x_axis = make_axis(max(left, 0.0) if not is_log else left, right, is_log=is_log, tick=cost_text)
    bounds = [bound for offer in offers for bound in (offer.low, offer.high)]
    margin = 0.08 * (max(bounds) - min(bounds)) or 0.01
    y_axis = make_axis(max(min(bounds) - margin, 0.0), min(max(bounds) + margin, 1.0), is_log=False, tick=score_text)
    front = pareto_front(offers)
    places = {offer: (x_axis.position(offer.cost), 100 - y_axis.position(offer.score)) for offer in offers}
    labels = _place_labels([(offer.label, *places[offer]) for offer in offers if not offer.is_trial])
    dots = [
        Dot(
            label=offer.label,
            arm=offer.arm,
            text=f"{score_text(offer.score)} at {cost_text(offer.cost)}",
            x=places[offer][0],
            y=places[offer][1],
            top=100 - y_axis.position(offer.high),
            bottom=100 - y_axis.position(offer.low),
            is_on_front=offer in front,
            label_at=None if offer.is_trial else labels[offer.label],
        )
        for offer in sorted(offers, key=lambda offer: not offer.is_trial)  # arms are drawn over trials
    ]
    return ScatterChart(title, x_label, x_axis, y_axis, tuple(dots), _steps([places[offer] for offer in front]))


def _steps(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Level from each offer to the next one's cost, and up there; level to the end."""
    path: list[tuple[float, float]] = []
    for x, y in points:
        if path:
            path.append((x, path[-1][1]))
        path.append((x, y))
    return (*path, (100.0, path[-1][1])) if path else ()


def _place_labels(dots: Sequence[tuple[str, float, float]]) -> dict[str, LabelPlace]:
    """By label, a place beside its dot: the first where no other label or dot is."""
    taken: list[_Box] = [_Box(x - 1, x + 1, y) for _, x, y in dots]
    found: dict[str, LabelPlace] = {}
    for label, x, y in dots:
        width = len(label) * _CHARACTER_PERCENT
        boxes = {place: _box(place, width) for place in _places_beside(x, y)}
        inside = [place for place, box in boxes.items() if box.left >= 0 and box.right <= 100] or list(boxes)
        free = [place for place in inside if not any(boxes[place].overlaps(box) for box in taken)]
        found[label] = (free or inside)[0]
        taken.append(boxes[found[label]])
    return found


def _places_beside(x: float, y: float) -> Iterator[LabelPlace]:
    for dy in (0.0, -5.0, 5.0, -9.0, 9.0):
        yield (x + 1.6, y + dy, "start")
        yield (x - 1.6, y + dy, "end")
        if dy:
            yield (x, y + dy, "middle")


def _box(place: LabelPlace, width: float) -> _Box:
    left = place[0] - {"start": 0.0, "middle": width / 2, "end": width}[place[2]]
    return _Box(left, left + width, place[1])
