"""Python and the command line have the same defaults: an option is a field of a settings class."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

from quantrim.cli import ptq
from quantrim.cli.options import OPTIONS
from quantrim.judges import Judging
from quantrim.post_training import PtqConfig

#: Parameters of the verb that say the same as a field in another form.
SPELLED = {
    "tune": ("tune_seconds", lambda value: 60.0 if value else 0.0),
    "tune_seconds": ("", lambda value: value),
    "per_tensor": ("per_channel", lambda value: not value),
    "refine": ("refinements", lambda v: (v,)),
}
NAMES = {field: option.removeprefix("--").replace("-", "_") for field, option in OPTIONS.items()}


#: Fields of how a file is judged that the verb offers; they stand in one field of the settings.
JUDGING = ("task", "decoder", "accept")


@pytest.mark.parametrize(
    "field", [*(entry.name for entry in fields(PtqConfig) if entry.name != "judging"), *JUDGING]
)
def test_options_of_ptq_default_to_the_fields_of_its_settings(field: str) -> None:
    parameters = inspect.signature(ptq.ptq).parameters
    wanted = getattr(Judging() if field in JUDGING else PtqConfig(), field)
    for name, parameter in parameters.items():
        spelled, convert = SPELLED.get(name, (name, lambda value: value))
        if field in (spelled, name) or NAMES.get(field) == name or (field, name) == ("engines", "engine"):
            given = convert(parameter.default)
            assert given == wanted or (not given and not wanted), f"{name}: {given}, {field}: {wanted}"
            return
    pytest.fail(f"ptq has no option for {field}")
