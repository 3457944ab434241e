"""Runs the quickstart, also with int8 traces and with LoRA, and its unpruned control; prints Pass@1 by round and seed.

    python benchmarks/quickstart_seeds.py --output sweeps/seeds [--seeds 3] [--picture docs/pictures/quickstart.svg]

A sweep of four arms: finished runs in the output folder are not run again. Round 0 is the base model, sampled with the
run's seed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import tpt_jax as tpt
from tpt_jax.report.svg import HEIGHT, WIDTH, Frame, Unit, round_ticks, tag
from tpt_jax.report.sweep_read import ArmResult

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
# The last two arms are configs/quickstart_lora.yaml and configs/quickstart_no_prune.yaml.
ARMS: dict[str, Any] = {
    "pruned": {},
    "int8": {"think.weights": "int8", "think.cache_type": "int8"},
    "lora": {"train.lora.rank": 16, "train.optimizer.name": "adamw", "train.optimizer.learning_rate": 2e-3},
    "not pruned": {"prune.steps": ["any", "unique_texts"]},
}
COLORS = {"pruned": "#0068a8", "not pruned": "#c05a00"}
STYLE = "text { font: 12px sans-serif; fill: #59626b } .grid { stroke: #e2e4e3 } polyline { fill: none }"
PERCENT = Unit(lambda value: f"{value:.0f}%", lambda value: f"{value:.1f}%")

Curve = list[tuple[float, float]]  # per round: Pass@1 and half of its 95% interval, in percent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the sweep")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture", type=Path, help="SVG file for the curves")
    args = parser.parse_args()
    swept = tpt.sweep(CONFIG, arms=ARMS, seeds=args.seeds, sweep_dir=args.output)
    curves = {arm.name: [pass_at_1(read_rounds(swept, arm, seed)) for seed in arm.seeds] for arm in swept.arms}
    for name, seed_curves in curves.items():
        print(table(name, seed_curves))
    if args.picture is not None:
        args.picture.write_text(picture(curves) + "\n")


def read_rounds(swept: tpt.Sweep, arm: ArmResult, seed: int) -> list[dict[str, Any]]:
    """The metrics of a run's rounds."""
    paths = swept.path.glob(f"arms/{arm.folder}/seed-{seed}/rounds/*/metrics.json")
    return [json.loads(path.read_text()) for path in sorted(paths)]


def pass_at_1(rounds: list[dict[str, Any]]) -> Curve:
    half_width = [(high - low) * 50 for low, high in (metrics["intervals"]["pass_at_1"] for metrics in rounds)]
    return list(zip([100 * metrics["pass_at_1"] for metrics in rounds], half_width, strict=True))


def table(name: str, curves: list[Curve]) -> str:
    """A Markdown table with each seed's gain and the mean over seeds."""
    means = np.mean([[value for value, _ in curve] for curve in curves], axis=0)
    gains = [curve[-1][0] - curve[0][0] for curve in curves]
    lines = [
        f"| {name} | {' | '.join(f'round {index}' for index in range(len(means)))} | gain |",
        f"|---|{'---|' * (len(means) + 1)}",
    ]
    for seed, (curve, gain) in enumerate(zip(curves, gains, strict=True)):
        cells = " | ".join(f"{value:.1f} ± {half:.1f}" for value, half in curve)
        lines.append(f"| seed {seed} | {cells} | {gain:+.1f} |")
    lines.append(f"| mean | {' | '.join(f'{mean:.1f}' for mean in means)} | {np.mean(gains):+.1f} |")
    return "\n".join(lines) + "\n"


def picture(curves: dict[str, list[Curve]]) -> str:
    """An SVG with a line and intervals for each seed of the arms with a color, and the arm's name at the end."""
    curves = {name: curves[name] for name in COLORS}
    values = [value for seed_curves in curves.values() for curve in seed_curves for value, _ in curve]
    last = len(next(iter(curves.values()))[0]) - 1
    frame = Frame((0, last), round_ticks(min(values) - 5, max(values) + 5), PERCENT, inset=20, right=90)
    elements = [frame.axes([(index, str(index)) for index in range(last + 1)], "round (0: the model as given)")]
    for name, seed_curves in curves.items():
        for shift, curve in enumerate(seed_curves):
            points = [(frame.x(index) + 5 * (shift - 1), value, half) for index, (value, half) in enumerate(curve)]
            line = " ".join(f"{x:.1f},{frame.y(value):.1f}" for x, value, _ in points)
            elements.append(tag("polyline", points=line, stroke=COLORS[name], stroke_width=1.5))
            for x, value, half in points:
                ends = {"x1": x, "x2": x, "y1": frame.y(value - half), "y2": frame.y(value + half)}
                elements.append(tag("line", **ends, stroke=COLORS[name], stroke_opacity="0.4"))
        end = np.mean([curve[-1][0] for curve in seed_curves])
        elements.append(tag("text", name, x=WIDTH - 92, y=frame.y(float(end)) + 4, style=f"fill: {COLORS[name]}"))
    title = tag("title", f"Pass@1 on held-out questions, {len(values) // (2 * last + 2)} seeds, with 95% intervals")
    box = f"0 0 {WIDTH} {HEIGHT}"
    return tag(
        "svg", title, tag("style", STYLE), *elements, xmlns="http://www.w3.org/2000/svg", viewBox=box, width=WIDTH
    )


if __name__ == "__main__":
    main()
