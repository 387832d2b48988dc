"""Which sandboxes the tests run in: both where they can be made, with the reason where they cannot."""

import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.verify import bubblewrap
from gemma4_jax.verify.sandbox import Sandbox


def _why_no_bubblewrap() -> str:
    try:
        bubblewrap.executable()
        Sandbox().run("")
        return ""
    except UserError as error:
        return str(error)


WHY_NOT = _why_no_bubblewrap()
needs_bubblewrap = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
BOTH = [pytest.param("bubblewrap", marks=needs_bubblewrap), "weak"]
