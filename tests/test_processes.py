"""Work in several processes: everything comes back, and a process that is killed is told in a line."""

import os
import warnings

import pytest

from rgfl.processes import each, usable_cores


def test_cores_are_those_that_may_be_used():
    assert 1 <= usable_cores() <= os.cpu_count()


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_everything_comes_back(workers):
    assert sorted(each(abs, [-3, 1, -2], workers)) == [1, 2, 3]
    assert list(each(abs, [], workers)) == []


def test_errors_of_the_work_are_raised_as_they_are():
    with pytest.raises(ValueError, match="invalid literal"):
        list(each(int, ["1", "x", "2"], 2))


def test_a_warning_of_a_worker_is_one_line_below_the_bar(capfd):
    list(each(warnings.warn, ["dark", "darker"], 2))
    told = capfd.readouterr().err
    assert sorted(told.split("\n")) == ["", "", "", "warning: dark", "warning: darker"]
    assert told.startswith("\nwarning: dark")


def test_a_worker_that_is_killed_is_told():
    with pytest.raises(ChildProcessError, match=r"a worker was killed, .* run again with fewer --workers"):
        list(each(os._exit, [9] * 20, 2))
