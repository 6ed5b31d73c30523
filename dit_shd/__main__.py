"""`python -m dit_shd`, for launchers: `accelerate launch -m dit_shd train CONFIG`."""

import sys

from dit_shd.cli.program import main

sys.exit(main())
