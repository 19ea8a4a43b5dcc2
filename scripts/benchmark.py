"""Compare the speed of both bundles with MONAI's modules, used as the bundles of the model zoo use them.

    python scripts/benchmark.py [--size published|middle|tiny] [--quick] [--only NAME ...] [--use_device cpu] [--output DIR]

Both ways run in turns in one process, with random weights. On a GPU the sizes are those of the published models, in bfloat16.
On a CPU they are smaller and in float32, and the times are CPU seconds of all threads. The command prints a table, and writes
benchmark.json and benchmark.png into DIR.

    ratio      time of MONAI's way divided by time of ours: above 1, ours is faster
    TFLOP      floating-point operations, counted
    GiB        memory that is needed beyond weights and inputs
    of floor   time that the operations would take in a product of two large matrices, as a share of ours
    differ     relative difference of the results (root of the sum of squares), where both ways give the same
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
from pathlib import Path

from command_line import Parser
from whole_numbers import at_least


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--size", choices=("published", "middle", "tiny"), help="default: published on a GPU, middle on a CPU")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, each case once")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only cases whose name contains one of these words")
    parser.add_argument(
        "--repeats",
        type=at_least(0),
        default=3,
        help="runs of each case after the first; 0 takes the first (default: 3)",
    )
    parser.add_argument("--use_device", default="auto", help="auto, cpu or cuda:N (default: auto)")
    parser.add_argument("--output", type=Path, default=Path("benchmark"), metavar="DIR", help="default: benchmark")
    parser.add_argument("--quiet", action="store_true", help="show only the table at the end")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse_arguments()  # answers --help and wrong options before the imports below, which take seconds

import matplotlib.pyplot as plt
import monai
import torch
from shared import device as devices
from shared import refusals
from shared.files import refuse_unwritable, save_figure, write_json
from shared.tables import print_table
from speed import file_cases, ldm_cases, spade_cases
from speed.measuring import Meter, highest_gib

GROUPS = (ldm_cases, spade_cases, file_cases)


def row(found: dict) -> list[str]:
    """Format the result of a case for the table."""

    def number(key: str, digits: str) -> str:
        return "" if found.get(key) is None else format(found[key], digits)

    formats = {
        **{"theirs_s": ".3g", "ours_s": ".3g", "ratio": ".2f", "theirs_tflop": ".3g", "ours_tflop": ".3g"},
        **{"theirs_peak_gib": ".2f", "ours_peak_gib": ".2f", "share_of_floor": ".0%", "relative_difference": ".0e"},
    }
    return [found["case"], *(number(key, digits) for key, digits in formats.items()), found["comment"]]


def draw(results: list[dict], title: str, path: Path) -> None:
    """Draw the ratio of each case."""
    figure, axis = plt.subplots(figsize=(7, 0.4 * len(results) + 1.2), layout="constrained")
    names, ratios = [found["case"] for found in results], [found["ratio"] for found in results]
    bars = axis.barh(names, ratios, color="#33658a")
    axis.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3)
    axis.axvline(1, color="black", linewidth=1)
    axis.set(xscale="log", xlabel="times as fast as MONAI's modules", title=title)
    axis.invert_yaxis()
    save_figure(path, figure, dpi=150)
    plt.close(figure)


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    refuse_unwritable(options.output / "benchmark.json")
    device = devices.choose(options.use_device)
    amp = devices.supports_bfloat16(device)
    size = options.size or ("tiny" if options.quick else "published" if device.type == "cuda" else "middle")
    meter = Meter(device, amp)
    results = []
    for group in GROUPS:
        for case in group.cases(size, device, amp):
            if options.only and not any(word in case.name for word in options.only):
                continue
            results.append(meter.compare(case, 0 if options.quick else options.repeats))
            if not options.quiet:
                print(f"{case.name}: {results[-1]['ratio']:.2f} times as fast", flush=True)
            del case
            gc.collect()
    if not results:
        raise ValueError(f"--only {' '.join(options.only)}: no case has such a name")

    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else f"CPU, {os.cpu_count()} cores, {platform.machine()}"
    unit = "s" if cuda else "CPU-s"
    header = ["case", f"MONAI {unit}", f"ours {unit}", "ratio", "MONAI TFLOP", "ours TFLOP", "MONAI GiB", "ours GiB"]
    header += ["of floor", "differ", ""]
    print()
    print_table({"header": header, "rows": [row(found) for found in results]})
    settings = {
        "device": name,
        "size": size,
        "precision": "bfloat16" if amp else "float32",
        "threads": torch.get_num_threads(),
        "tflop_per_s": meter.rate / 1e12,
        "highest_resident_gib": highest_gib(),
        "torch": torch.__version__,
        "monai": monai.__version__,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "benchmark.json", {"settings": settings, "results": results})
    draw(results, f"{size} size, {name}, {settings['precision']}", options.output / "benchmark.png")
    print(f"{options.output / 'benchmark.json'} and {options.output / 'benchmark.png'} hold the results.")


if __name__ == "__main__":
    refusals.run(main)
