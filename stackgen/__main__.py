"""`python -m stackgen`."""

from stackgen.cli.main import main

raise SystemExit(main())
