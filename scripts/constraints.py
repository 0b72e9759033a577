"""Prints uv.lock as pip constraints, so that a machine without uv installs the same versions. Standard library only."""

import sys
import tomllib
from pathlib import Path


def constraints(lock: Path) -> list[str]:
    """`name==version ; markers` for every package the lock takes from a registry."""
    lines = []
    for package in tomllib.loads(lock.read_text(encoding="utf-8"))["package"]:
        if "registry" in package["source"]:
            markers = " or ".join(f"({marker})" for marker in package.get("resolution-markers", []))
            lines.append(f"{package['name']}=={package['version']}" + (f" ; {markers}" if markers else ""))
    return lines


if __name__ == "__main__":
    sys.stdout.write("\n".join(constraints(Path(__file__).parent.parent / "uv.lock")) + "\n")
