"""The faults of `make faults` fit the code as it is."""

from __future__ import annotations

import pytest
from faults import ROOT
from faults.planted import FAULTS


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_old_text_of_a_fault_occurs_once(fault):
    assert fault.occurrences() == 1
    assert fault.old not in fault.new.replace(fault.old, "", 1)
    for test in fault.tests:
        path, _, name = test.partition("::")
        assert (f"def {name}(" if name else "def test_") in (ROOT / path).read_text(encoding="utf-8")


def test_there_are_enough_faults_of_different_names():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20


def test_a_fault_is_planted_once(tmp_path):
    fault = FAULTS[0]
    path = tmp_path / fault.file
    path.parent.mkdir(parents=True)
    path.write_text(fault.old, encoding="utf-8")
    fault.plant(tmp_path)
    assert path.read_text(encoding="utf-8") == fault.new
    with pytest.raises(ValueError, match="occurs 0 times"):
        fault.plant(tmp_path)
