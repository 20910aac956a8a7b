"""``python -m mmada_parallel.cli``: the same where the command is not on the path."""

from .main import main

raise SystemExit(main())
