"""The ``segfuse`` command: ``segfuse doctor``, ``segfuse demo`` and ``segfuse nnunet``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from segfuse import doctor
from segfuse.integrations import NNUNET_TRAINERS, nnunet_trainer_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        status = _main(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _main(argv: Sequence[str] | None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["demo"]:  # the demo parses its own options, and is imported only here
        from segfuse import demo

        return demo.main(args[1:])
    options = _parser().parse_args(args)
    if options.command == "nnunet":
        print(nnunet_trainer_folder())
        return 0
    return doctor.main(as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segfuse", description="Fused segmentation losses for PyTorch.")
    parser.add_argument("--version", action="version", version=f"segfuse {doctor.version('segfuse')}")
    commands = parser.add_subparsers(metavar="command", dest="command", required=True)
    doctor_parser = commands.add_parser("doctor", help="report what is installed, and why a backend is missing")
    doctor_parser.add_argument("--json", action="store_true", help="print the report as JSON")
    commands.add_parser("demo", help="train on small pictures and compare losses; see 'segfuse demo --help'")
    commands.add_parser(
        "nnunet",
        help="print the folder where nnU-Net finds this package's trainers; see 'segfuse nnunet --help'",
        description=_NNUNET.format(trainers="\n".join(f"  {n:32}{what}" for n, what in NNUNET_TRAINERS.items())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


_NNUNET = """\
Print the folder with trainers for nnU-Net v2, which finds them by name in the folders of nnUNet_extTrainer:

  export nnUNet_extTrainer=$(segfuse nnunet)
  nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerSegfuse

{trainers}

Several folders are separated as in PATH. Inference looks the trainer up again: set the variable there too. Versions of
nnU-Net that do not know it find the file of that folder after it is copied to nnunetv2/training/nnUNetTrainer.
"""
