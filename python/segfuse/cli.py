"""The ``segfuse`` command: ``segfuse doctor`` and ``segfuse demo``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from segfuse import doctor


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["demo"]:  # the demo parses its own options, and is imported only here
        from segfuse import demo

        return demo.main(args[1:])
    options = _parser().parse_args(args)
    return doctor.main(as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segfuse", description="Fused segmentation losses for PyTorch.")
    parser.add_argument("--version", action="version", version=f"segfuse {doctor.version('segfuse')}")
    commands = parser.add_subparsers(metavar="command", required=True)
    doctor_parser = commands.add_parser("doctor", help="report what is installed, and why a backend is missing")
    doctor_parser.add_argument("--json", action="store_true", help="print the report as JSON")
    commands.add_parser("demo", help="train on small pictures and compare losses; see 'segfuse demo --help'")
    return parser
