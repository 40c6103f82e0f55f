"""`python -m stackgen`."""

from stackgen.cli import main

raise SystemExit(main())
