"""``python -m mmada_parallel``: the command ``mmada-parallel``."""

from .cli.main import main

raise SystemExit(main())
