"""A run's loss curve as an SVG: a picture that any page shows, without a plotting library."""

from collections.abc import Sequence

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 28, 36
SMOOTHING = 0.95
NUM_POINTS = 400
NUM_TICKS = 5


def loss_curve(losses: Sequence[float], title: str) -> str:
    """Returns the SVG of the losses of steps 1, 2, ...: each as a faint line, smoothed as a strong one.

    Args:
        losses: In nats per token; at least one.
    """
    smooth = smoothed(losses)
    low, high = min(*losses, *smooth), max(*losses, *smooth)
    high = max(high, low + 1e-9)

    def point(number: int, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * number / max(1, len(losses) - 1)
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)
        return f"{x:.1f},{y:.1f}"

    every = max(1, len(losses) // NUM_POINTS)
    kept = range(0, len(losses), every)
    lines = [
        _line("#c8d2dc", 1, [point(number, losses[number]) for number in kept]),
        _line("#1f6feb", 2, [point(number, smooth[number]) for number in kept]),
    ]
    ticks = [low + (high - low) * tick / (NUM_TICKS - 1) for tick in range(NUM_TICKS)]
    labels = [_text(LEFT - 6, float(point(0, tick).split(",")[1]) + 4, f"{tick:.1f}", "end") for tick in ticks]
    steps = [round((len(losses) - 1) * tick / (NUM_TICKS - 1)) for tick in range(NUM_TICKS)]
    labels += [_text(float(point(step, low).split(",")[0]), HEIGHT - 16, str(step + 1), "middle") for step in steps]
    labels += [_text(LEFT, 16, title, "start"), _text(WIDTH - RIGHT, HEIGHT - 2, "step", "end")]
    frame = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    return "\n".join([head, frame, *lines, *labels, "</svg>"]) + "\n"


def smoothed(losses: Sequence[float]) -> list[float]:
    """Returns the running mean in which each new loss counts 5 %.

    >>> smoothed([4.0, 2.0])
    [4.0, 3.9]
    """
    found: list[float] = []
    for loss in losses:
        found.append(loss if not found else SMOOTHING * found[-1] + (1 - SMOOTHING) * loss)
    return found


def _line(colour: str, width: int, points: Sequence[str]) -> str:
    return f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" points="{" ".join(points)}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" fill="#57606a" text-anchor="{anchor}">{text}</text>'
