"""``python -m segfuse`` is the ``segfuse`` command."""

from segfuse.cli import main

raise SystemExit(main())
