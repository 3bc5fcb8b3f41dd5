"""How much Hypothesis tries, in every suite: `ci` unless CRECHE_HYPOTHESIS_PROFILE names another.

`deep` is for long runs: many more examples, new ones each time.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", deadline=None, print_blob=True)
settings.register_profile("deep", deadline=None, print_blob=True, derandomize=False, max_examples=10_000)

settings.load_profile(os.environ.get("CRECHE_HYPOTHESIS_PROFILE", "ci"))
