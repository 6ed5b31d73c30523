"""What a launcher says of its processes."""

import pytest

from dit_shd.core.errors import UserError
from dit_shd.core.launcher import is_first_process, process_count


def test_without_a_launcher_there_is_one_process_which_prints(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert is_first_process() and process_count() == 1
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert not is_first_process() and process_count() == 8


@pytest.mark.parametrize("size", ["", "many", "-1"])
def test_a_number_of_processes_that_is_none_is_said_in_a_line(monkeypatch, size):
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UserError, match=f"WORLD_SIZE: wanted the number of a launcher's processes, found '{size}'"):
        process_count()
