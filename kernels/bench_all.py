"""Run every bench: `python -m kernels.bench_all [--device cuda] [--write docs/gpu.md]`, one JSON line each.

With `--write`, the table of a GPU is put in place of the one in that page.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

START, END = "<!-- table -->", "<!-- end of table -->"


def ops() -> list[str]:
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/bench.py"))


def run(op: str, device: str) -> dict[str, Any]:
    """One bench in a process of its own, so that no op warms another one's allocator.

    Raises CalledProcessError; why is on stderr.
    """
    command = [sys.executable, "-W", "ignore", "-m", f"kernels.{op}.bench", "--json", "--device", device]
    line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()[-1]
    result: dict[str, Any] = json.loads(line)
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, a line per shape; "floor" is the H200's least possible time over ours, where the bench states one."""
    lines = [f"Device: {results[0]['device']}, torch {torch.__version__}.", ""]
    lines += ["| op | shape | baseline ms | ours ms | ratio | error | floor / ours |", "|---|---|---|---|---|---|---|"]
    for result in results:
        for row in result["shapes"]:
            floor = f"{row['floor_ms'] / row['ours_ms']:.2f}" if row["floor_ms"] else ""
            times = f"{row['baseline_ms']:.4g} | {row['ours_ms']:.4g} | {row['ratio']:.3g} | {row['max_error']:.1e}"
            lines.append(f"| {result['op']} | {row['shape']} | {times} | {floor} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the bench of every kernel.")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--write", type=Path, help="page whose table to replace, docs/gpu.md")
    arguments = parser.parse_args()
    results = []
    for op in ops():
        results.append(run(op, arguments.device))
        print(json.dumps(results[-1]), flush=True)
    if arguments.write:
        before, _, rest = arguments.write.read_text().partition(START)
        after = rest.partition(END)[2]
        arguments.write.write_text(f"{before}{START}\n{table(results)}\n{END}{after}")


if __name__ == "__main__":
    main()
