"""The sampler's configuration as it is kept with a study."""

import json
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from optuna_robustloss.sampler.config import SamplerConfig


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.dictionaries(
        st.sampled_from([*SamplerConfig.__dataclass_fields__, "other"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2)
            ),
            max_leaves=5,
        ),
    )
)
def test_any_configuration_is_read_or_refused(changes):
    text = SamplerConfig(popsize=4, seed=0).to_json()
    with suppress(ValueError):
        config = SamplerConfig.from_json(json.dumps(json.loads(text) | changes))
        assert 4 <= config.popsize <= 10_000
